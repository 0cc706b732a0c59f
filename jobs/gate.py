"""Decide, before score, whether the run's model may replace the published one; exit 3: it may not.

python jobs/gate.py CONFIG.yaml [section.key=value ...]
"""

from crossrec.job import run_job

if __name__ == "__main__":
    run_job(__doc__, "crossrec.gate:gate")
