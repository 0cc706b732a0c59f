"""Check behaviour and catalogue, and lay histories out in buckets (stage 1).

python jobs/prepare.py CONFIG.yaml [section.key=value ...]
"""

from crossrec.job import run_job

if __name__ == "__main__":
    run_job(__doc__, "crossrec.data.prepare:prepare")
