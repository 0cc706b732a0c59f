"""Verify the run's files, write its manifest and switch readers to it (stage 5).

python jobs/publish.py CONFIG.yaml [section.key=value ...]
python jobs/publish.py rollback CONFIG.yaml [...]    readers get the publication before
python jobs/publish.py purge CONFIG.yaml [...]       users of data.forget go from all earlier runs
"""

import sys

from crossrec.job import run_job

OTHERS = {"rollback": "crossrec.publish:switch_back", "purge": "crossrec.purge:purge"}

if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in OTHERS:
        run_job(__doc__, OTHERS[sys.argv.pop(1)], is_of_run=False)
    run_job(__doc__, "crossrec.publish:publish")
