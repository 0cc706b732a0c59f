"""How a job speaks: progress on stderr, one JSON object as the last line of stdout.

with stage("prepare") as facts:
    facts["rows"] = 5_000_000
# stderr: 02:11:09 prepare done: rows 5,000,000, seconds 9.1, 549,451 rows/s
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
    """Send crossrec's log lines to stderr, other libraries' only from warnings up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


@contextlib.contextmanager
def stage(name: str) -> Iterator[dict[str, Any]]:
    """Time a stage; the dict it yields is its summary, gets `seconds`, and becomes one log line."""
    log.info("%s ...", name)
    began = time.perf_counter()
    facts: dict[str, Any] = {}
    yield facts
    facts["seconds"] = round(time.perf_counter() - began, 2)
    said = [
        f"{key} {value:,}" if isinstance(value, int) else f"{key} {value}"
        for key, value in facts.items()
        if not isinstance(value, dict | list)
    ]
    if "rows" in facts and facts["seconds"]:
        said.append(f"{facts['rows'] / facts['seconds']:,.0f} rows/s")
    log.info("%s done: %s", name, ", ".join(said))


def print_summary(summary: dict[str, Any]) -> None:
    """Print a job's last line: one JSON object."""
    print(json.dumps(summary, ensure_ascii=False, default=str), flush=True)
