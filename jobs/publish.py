"""Verify the run's files, write its manifest and switch readers to it (stage 5).

python jobs/publish.py CONFIG.yaml [section.key=value ...]
python jobs/publish.py rollback CONFIG.yaml [...]    readers get the publication before
"""

import sys

from crossrec.job import run_job

if __name__ == "__main__":
    if sys.argv[1:2] == ["rollback"]:
        del sys.argv[1]
        run_job(__doc__, "crossrec.publish:switch_back", is_of_run=False)
    run_job(__doc__, "crossrec.publish:publish")
