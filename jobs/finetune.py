"""Fine-tune the recommender on Ray Train (stage 2); a killed run continues.

python jobs/finetune.py CONFIG.yaml [section.key=value ...]
"""

from crossrec.job import run_job

if __name__ == "__main__":
    run_job(__doc__, "crossrec.train.launch:finetune")
