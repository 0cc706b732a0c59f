"""Score every user in every domain on Ray Data (stage 4); a rerun does what is missing.

python jobs/score.py CONFIG.yaml [section.key=value ...]
"""

from crossrec.job import run_job

if __name__ == "__main__":
    run_job(__doc__, "crossrec.scored:score_and_tell")
