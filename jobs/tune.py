"""Search settings with Ray Tune, and write the best as a config for the night; a rerun continues.

python jobs/tune.py CONFIG.yaml [section.key=value ...]
"""

from crossrec.job import run_job

if __name__ == "__main__":
    run_job(__doc__, "crossrec.tune.pipeline:tune", check="crossrec.tune.space:draw_trials")
