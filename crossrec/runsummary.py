"""What became of a run: one JSON file that says it to an operator, a program and a webhook.

In: the stages as they begin and end, and how the job ended. Out: runs/<run_id>/summary.json,
written anew at every step, so that a job that is killed leaves what it had done; a rerun continues
it.

    summary = RunSummary(config, "nightly")
    with summary.kept(store, describe):       # begins; ends as done, failed or interrupted
        with watching(summary.on_stage): ...
    summary.said["status"], summary.said["stages"]["score"]["seconds"]

It holds no secret, and nothing that goes wrong with it goes beyond a warning.
"""

import contextlib
import datetime as dt
import hashlib
import json
import platform
import re
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

from crossrec.config import Config
from crossrec.current import read_current
from crossrec.errors import ALERT, BadObject, CrossrecError, StorageError, UserError
from crossrec.lease import confirm
from crossrec.runlog import StageEvent, log, to_plain
from crossrec.storage import Store
from crossrec.storage_errors import without_secrets

FORMAT = 1
SUMMARY = "summary.json"

PACKAGES = ("crossrec", "ray", "torch", "transformers", "pyarrow")

PASSWORD = re.compile(r"(?<=://)[^/\s@]+@")
"""User and password of a URI."""

MOST_CHARACTERS = 2_000
"""Of an error."""

Ending = tuple[str, str, int]
"""Status (done, failed, interrupted), what was wrong in one line, exit code."""


class RunSummary:
    """The summary of a run while one job works on it."""

    def __init__(self, config: Config, command: str) -> None:
        self.said: dict[str, Any] = {
            "format": FORMAT,
            "run_id": config.run_id,
            "command": command,
            "status": "running",
            "began": None,
            "attempts": {},
            "stages": {},
            "versions": _versions(),
            "config_digest": digest_config(config),
        }
        self._config = config
        self._store: Store | None = None
        self._clock = time.monotonic()

    @contextlib.contextmanager
    def kept(self, store: Store, describe: Callable[[BaseException], Ending]) -> Iterator[None]:
        """Keep the summary in the store for the block, in which this process holds the run."""
        self._begin(store)
        try:
            yield
        except BaseException as error:
            self.end(*describe(error))
            raise
        else:
            self.end("done", "", ALERT if self.said.get("alert") else 0)
        finally:
            self._store = None

    def on_stage(self, event: StageEvent) -> None:
        """Take down that a stage began or ended."""
        stages = self.said["stages"]
        if event.state == "began":
            before = stages.get(event.name, {})
            stages[event.name] = {
                **before,
                "status": "running",
                "began": _now(),
                "attempts": before.get("attempts", 0) + 1,
            }
        else:
            entry = stages[event.name]
            seconds = event.facts["seconds"]
            entry |= {
                "status": event.state,
                "ended": _now(),
                "seconds": seconds,
                "total_seconds": round(entry.get("total_seconds", 0.0) + seconds, 2),
            }
            if event.state == "done":
                entry["facts"] = {k: v for k, v in event.facts.items() if k != "seconds"}
                # What other stages left is no alert of this job.
                if event.name == "gate":
                    self.said["alert"] = event.facts["reasons"]
            else:
                self.said["failed_stage"] = event.name
            self.said |= _overview(stages)
        self._write()

    def end(self, status: str, error: str, exit_code: int) -> None:
        """Say how the job ended, unless that is said."""
        if self.said.get("exit_code") == exit_code:
            return
        self.said |= {
            "status": status,
            "exit_code": exit_code,
            "error": self._without_secrets(error) if error else None,
            "ended": _now(),
            "seconds": round(time.monotonic() - self._clock, 2),
        }
        if status == "done" and self._store is not None:
            # Not where it failed: a job that is being stopped has seconds to say so.
            try:
                folder = f"runs/{self.said['run_id']}"
                self.said["bytes"] = self._store.size(folder)
            except StorageError as failure:
                log.warning("summary: the size of the run is not known: %s", failure)
        self.said["text"] = describe_run(self.said)
        self._write()

    def _begin(self, store: Store) -> None:
        self._store = store
        before: dict[str, Any] = {}
        try:
            before = read_summary(store, self.said["run_id"]) or {}
        except StorageError as error:
            log.warning("summary: what was done before is not known: %s", error)
        for entry in before.get("stages", {}).values():
            if entry["status"] == "running":
                entry["status"] = "interrupted"  # by what left it no time to say so
        command = self.said["command"]
        attempts = {command: 0} | before.get("attempts", {})
        keep = ("stages", "rows", "metrics", "publication", "bytes")
        self.said |= {name: before[name] for name in keep if name in before}
        now = _now()
        self.said |= {
            "attempts": attempts | {command: attempts[command] + 1},
            "began": before.get("began") or now,
            "attempt_began": now,
        }
        self._write()

    def _write(self) -> None:
        if self._store is None:
            return
        run_id = self.said["run_id"]
        try:
            # Another job's summary is not replaced by that of one that lost the run.
            confirm(self._store, run_id)
            self._store.write_json(f"runs/{run_id}/{SUMMARY}", to_plain(self.said))
        except UserError as error:
            log.warning("summary: not written: %s", error)

    def _without_secrets(self, text: str) -> str:
        hook = self._config.notify.webhook
        secrets = {"webhook": hook.get_secret_value()} if hook else {}
        text = " ".join(text.split())
        text = without_secrets(text, {**self._config.storage.options, "notify": secrets})
        return PASSWORD.sub("***@", text)[:MOST_CHARACTERS]


def read_summary(store: Store, run_id: str) -> dict[str, Any] | None:
    """Return a run's summary; None where there is none or it is damaged."""
    try:
        found = store.read_json(f"runs/{run_id}/{SUMMARY}")
    except BadObject:
        return None
    return found if isinstance(found, dict) and found.get("format") == FORMAT else None


def published_at(store: Store) -> str | None:
    """Return when what readers follow was published, as far as the summary of its run says it."""
    with contextlib.suppress(CrossrecError):
        current = read_current(store)
        summary = read_summary(store, current["run_id"]) if current else None
        if summary is not None:
            created: str | None = summary.get("publication", {}).get("created")
            return created
    return None


def digest_config(config: Config) -> str:
    """Return 16 hex digits that change with the settings, not with the run's name."""
    settings = {name: value for name, value in config.public().items() if name != "run_id"}
    text = json.dumps(settings, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def describe_run(said: dict[str, Any]) -> str:
    """Return the summary as one line for people, as chat systems show it.

    >>> said = {"run_id": "2026-11-26", "command": "nightly", "status": "failed", "exit_code": 1}
    >>> describe_run(said | {"seconds": 71.0, "error": "OSError: no", "failed_stage": "score"})
    'crossrec 2026-11-26: nightly failed in score after 71 s, exit 1: OSError: no'
    >>> metrics = {"ndcg@10": 0.2266, "best_baseline": "als", "best_baseline_ndcg@10": 0.1803}
    >>> said |= {"status": "done", "seconds": 465.2, "metrics": metrics, "rows": {"out": 12000}}
    >>> describe_run(said)
    'crossrec 2026-11-26: nightly done after 465 s, 12,000 lists, NDCG@10 0.2266 (als 0.1803)'
    """
    line = f"crossrec {said['run_id']}: {said['command']} {said['status']}"
    if said["status"] != "done" and said.get("failed_stage"):
        line += f" in {said['failed_stage']}"
    line += f" after {said['seconds']:,.0f} s"
    if said["status"] != "done":
        return f"{line}, exit {said['exit_code']}: {said['error']}"
    rows, metrics = said.get("rows", {}), said.get("metrics", {})
    if rows.get("out") is not None:
        line += f", {rows['out']:,} lists"
    if metrics.get("ndcg@10") is not None:
        line += f", NDCG@10 {metrics['ndcg@10']:.4f}"
        if metrics.get("best_baseline_ndcg@10") is not None:
            line += f" ({metrics['best_baseline']} {metrics['best_baseline_ndcg@10']:.4f})"
    if said.get("alert"):
        line += f"; to look at: {'; '.join(said['alert'])}"
    return line


def _overview(stages: dict[str, Any]) -> dict[str, Any]:
    """Return what is asked for most, from what the stages said when they were last done."""
    facts = {name: entry["facts"] for name, entry in stages.items() if "facts" in entry}
    found: dict[str, Any] = {}
    if prepared := facts.get("prepare"):
        names = ("rejected", "rejected_share", "users", "events", "items")
        found["rows"] = {"in": prepared.get("rows")} | {n: prepared.get(n) for n in names}
    if judged := facts.get("evaluate"):
        found["metrics"] = {"ndcg@10": judged.get("ndcg@10")} | judged.get("baseline", {})
    if published := facts.get("publish"):
        shown = ("created", "manifest", "files", "rows", "bytes", "users", "pairs")
        found["publication"] = {n: published.get(n) for n in shown}
        found.setdefault("rows", {})["out"] = published.get("rows")
    return found


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
