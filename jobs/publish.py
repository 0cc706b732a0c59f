"""Verify the run's files, write its manifest and switch readers to it (stage 5).

python jobs/publish.py CONFIG.yaml [section.key=value ...]
"""

from crossrec.job import run_job

if __name__ == "__main__":
    run_job(__doc__, "crossrec.publish:publish")
