"""Print the last runs as a table, from storage alone: what happened last night?

python jobs/status.py CONFIG.yaml [section.key=value ...] [runs=10]

* is the run that readers follow. Under each stage: its seconds, those of all attempts together.
The last line is one JSON object with the same of each run, and the errors. Exit 0 whatever became
of the runs, 1 and 2 as the other jobs.
"""

import signal
import sys

from crossrec.configfile import load_config
from crossrec.errors import ConfigError, CrossrecError, UserError, explain
from crossrec.job import parse_arguments
from crossrec.runlog import log, print_summary, start_logging
from crossrec.status import last_runs, to_table
from crossrec.storage import Store

RUNS = 10
MOST_RUNS = 1_000


def _count(given: list[str]) -> int:
    text = given[-1].partition("=")[2] if given else str(RUNS)
    if not text.isdecimal() or not 1 <= int(text) <= MOST_RUNS:
        raise ConfigError(
            explain("runs", f"a number from 1 to {MOST_RUNS}", repr(text), "write it as runs=10")
        )
    return int(text)


def main() -> int:
    """Run the job: 0 done, 1 failed, 2 the user's mistake."""
    arguments = parse_arguments(__doc__)
    try:
        start_logging()
        given = [argument for argument in arguments.overrides if argument.startswith("runs=")]
        count = _count(given)
        others = [argument for argument in arguments.overrides if argument not in given]
        config = load_config(arguments.config, others)
        store = Store(config.storage.root, config.storage.options)
        rows = last_runs(store, count)
    except CrossrecError as error:
        log.error("%s", error)
        return 2 if isinstance(error, UserError) else 1
    # All is read: a reader that has seen enough, as head, ends this quietly.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    print(to_table(rows) if rows else f"no runs under {store.uri()}")
    print_summary({"storage_root": store.root, "runs": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
