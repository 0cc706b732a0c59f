"""Run the whole night: prepare, finetune, evaluate, score, publish; a rerun continues it.

python jobs/nightly.py CONFIG.yaml [section.key=value ...]
"""

from crossrec.job import run_job

if __name__ == "__main__":
    run_job(__doc__, "crossrec.nightly:nightly")
