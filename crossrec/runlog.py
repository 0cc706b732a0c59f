"""How a job speaks: progress on stderr, one JSON object as the last line of stdout.

with stage("prepare") as facts:
    facts["rows"] = 5_000_000
# stderr: 02:11:09 prepare done: rows 5,000,000, seconds 9.1, 549,451 rows/s

With CROSSREC_LOG=json every line of stderr is one JSON object, for a log collector: ts, level,
run_id, stage, message, facts. A variable, not a key of the config: it belongs to the place where a
process runs, not to the night, and must hold for the line that says what is wrong with the config.
"""

import contextlib
import datetime as dt
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from crossrec.errors import ConfigError, explain

log = logging.getLogger("crossrec")

FORM = "CROSSREC_LOG"
"""The variable: `lines`, for people, is the default; `json`."""


@dataclass(frozen=True)
class StageEvent:
    """What happens to a stage; facts are its summary so far, with `seconds` once it is over."""

    name: str
    state: Literal["began", "done", "failed"]
    facts: Mapping[str, Any]


@dataclass
class _Now:
    """Where this process is: a run and a stage at a time, whatever thread speaks."""

    run_id: str | None = None
    stage: str | None = None


_now = _Now()
_watchers: list[Callable[[StageEvent], None]] = []
_of_others: list[logging.Handler] = []


class Lines(logging.Formatter):
    """Lines for people: the time and what is said, after the traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = f"{self.formatTime(record, '%H:%M:%S')} {record.getMessage()}"
        return f"{self.formatException(record.exc_info)}\n{line}" if record.exc_info else line


class JsonLines(logging.Formatter):
    """One JSON object a line, for programs."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        moment = dt.datetime.fromtimestamp(record.created, dt.UTC)
        said: dict[str, Any] = {
            "ts": moment.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "run_id": _now.run_id,
            "stage": getattr(record, "stage", _now.stage),
            "message": record.getMessage(),
            "facts": getattr(record, "facts", {}),
        }
        if record.exc_info:
            said["traceback"] = self.formatException(record.exc_info)
        return json.dumps(to_plain(said), ensure_ascii=False)


FORMS: dict[str, type[logging.Formatter]] = {"lines": Lines, "json": JsonLines}


def start_logging() -> None:
    """Send crossrec's log lines to stderr, other libraries' only from warnings up.

    Raises:
        ConfigError: CROSSREC_LOG asks for what does not exist; lines are for people then.
    """
    form = os.environ.get(FORM) or "lines"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(FORMS.get(form, Lines)())
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False
    while _of_others:
        logging.getLogger().removeHandler(_of_others.pop())
    if form == "json":
        # Without a handler Python prints the warnings of others, as they are.
        theirs = logging.StreamHandler(sys.stderr)
        theirs.setFormatter(JsonLines())
        theirs.setLevel(logging.WARNING)
        logging.getLogger().addHandler(theirs)
        _of_others.append(theirs)
    logging.captureWarnings(form == "json")
    if form not in FORMS:
        mend = "set it to one of them or leave it out"
        raise ConfigError(explain(FORM, " or ".join(FORMS), repr(form), mend))


def name_run(run_id: str) -> None:
    """Say which run the JSON lines of this process are about."""
    _now.run_id = run_id


@contextlib.contextmanager
def watching(watcher: Callable[[StageEvent], None]) -> Iterator[None]:
    """Call the watcher at the start and the end of every stage of the block."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


@contextlib.contextmanager
def stage(name: str) -> Iterator[dict[str, Any]]:
    """Time a stage; the dict it yields is its summary, gets `seconds`, and becomes one log line."""
    outer, _now.stage = _now.stage, name
    log.info("%s ...", name)
    began = time.perf_counter()
    facts: dict[str, Any] = {}
    try:
        _tell(StageEvent(name, "began", {}))
        try:
            yield facts
        except BaseException:
            seconds = round(time.perf_counter() - began, 2)
            _tell(StageEvent(name, "failed", {**facts, "seconds": seconds}))
            raise
        facts["seconds"] = round(time.perf_counter() - began, 2)
        said = [
            f"{key} {value:,}" if isinstance(value, int) else f"{key} {value}"
            for key, value in facts.items()
            if not isinstance(value, dict | list)
        ]
        if "rows" in facts and facts["seconds"]:
            said.append(f"{facts['rows'] / facts['seconds']:,.0f} rows/s")
        log.info("%s done: %s", name, ", ".join(said), extra={"facts": facts})
        _tell(StageEvent(name, "done", facts))
    finally:
        _now.stage = outer


def _tell(event: StageEvent) -> None:
    for watcher in _watchers:
        watcher(event)


def print_summary(summary: dict[str, Any]) -> None:
    """Print a job's last line: one JSON object."""
    print(json.dumps(summary, ensure_ascii=False, default=str), flush=True)


def to_plain(value: Any) -> Any:
    """Return a value as what any JSON parser reads: no NaN, no infinity, no other type.

    >>> to_plain({"loss": float("nan"), "days": (1, 2), "when": dt.date(2026, 1, 2)})
    {'loss': None, 'days': [1, 2], 'when': '2026-01-02'}
    """
    if isinstance(value, Mapping):
        return {str(key): to_plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(inner) for inner in value]
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
