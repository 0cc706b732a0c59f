"""Judge the hold-out beside baselines, and write metrics.json and report.html (stage 3).

python jobs/evaluate.py CONFIG.yaml [section.key=value ...]
"""

from crossrec.job import run_job

if __name__ == "__main__":
    run_job(__doc__, "crossrec.study.pipeline:evaluate_and_study")
