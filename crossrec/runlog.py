"""How a job speaks: progress on stderr, one JSON object as the last line of stdout, exit codes 0, 1 and 2.

    def main(config: Config) -> dict[str, object]: ...
    if __name__ == "__main__":
        run_job(__doc__, lambda: main)   # the heavy imports happen inside, so --help answers at once
"""

import contextlib
import json
import logging
import sys
import time
from collections.abc import Iterator
from typing import Any

log = logging.getLogger("crossrec")


def start_logging() -> None:
    """Send crossrec's log lines to stderr; other libraries only from warnings up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


@contextlib.contextmanager
def stage(name: str) -> Iterator[dict[str, Any]]:
    """Time a stage; the dict it yields becomes its summary and its one log line.

    Numbers put into the dict under `rows` also give a rate.
    """
    log.info("%s ...", name)
    began = time.perf_counter()
    summary: dict[str, Any] = {}
    yield summary
    summary["seconds"] = round(time.perf_counter() - began, 2)
    facts = [f"{key} {value:,}" if isinstance(value, int) else f"{key} {value}" for key, value in summary.items() if not isinstance(value, dict | list)]
    if "rows" in summary and summary["seconds"]:
        facts.append(f"{summary['rows'] / summary['seconds']:,.0f} rows/s")
    log.info("%s done: %s", name, ", ".join(facts))


def print_summary(summary: dict[str, Any]) -> None:
    """Print the job's last line: one JSON object."""
    print(json.dumps(summary, ensure_ascii=False, default=str), flush=True)
