"""One job at a time writes a run: a lease with a heartbeat, which a rerun takes over from the dead.

In: a store and a run_id. Out: runs/<run_id>/lock/<n>.json, a file a job that held the run; the
newest counts.

    with hold(store, "2014-06-08", on_lost=stop):     # UserError where another job is at work
        ...                                           # every 5 s the file's `beat` rises
        confirm(store, "2014-06-08")                  # before what cannot be undone

Who takes the run creates the next number's file, which one alone can do, and writes to no other:
a holder that slept through a takeover overwrites nothing, and finds the higher number at its next
beat. Clocks of two machines are never compared; a job that finds a lease watches whether it moves.
"""

import contextlib
import datetime as dt
import itertools
import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from crossrec.errors import StorageError, UserError, explain
from crossrec.runlog import log
from crossrec.storage import Store
from crossrec.storage_errors import MissingObject

BEAT_S = 5.0
"""Between two beats of a holder."""

DEAD_AFTER_S = 30.0
"""A lease that has not moved for so long is a dead job's: six beats, or a request that hung and
those after it."""

LOOK_S = 1.0
"""Between two looks at another job's lease."""

SETTLE_S = 1.0
"""After which a new lease is read back: where the store cannot create without replacing, two jobs
may both have written, and the later one's token is there. What comes later still, a beat finds."""


class Lease:
    """A run that this process holds: renews it in the background, and knows when it is lost."""

    def __init__(self, store: Store, run_id: str, on_lost: Callable[[], None]) -> None:
        self.lost: UserError | None = None
        self._store, self._run_id, self._on_lost = store, run_id, on_lost
        self._number = 0
        self._record = {
            "token": secrets.token_hex(16),
            "host": platform.node(),
            "pid": os.getpid(),
            "process": _describe_process(os.getpid()),
            "since": _now(),
        }
        self._beats = itertools.count(1)
        self._over = threading.Event()
        self._telling = threading.Lock()

    def take(self) -> None:
        """Take the run, from a dead job if need be, and begin to renew it.

        Raises:
            UserError: another job is at work on it.
        """
        number, found = _find_newest(self._store, self._run_id)
        while True:
            if found is not None and not found["released"]:
                _wait_for_death(self._store, self._run_id, number, found)
            path = _path(self._run_id, number + 1)
            # Not by the reply: where one is lost and the request repeated, the winner sees False.
            self._store.create_bytes(path, _encode(self._record, 0))
            if not self._store.is_local:
                time.sleep(SETTLE_S)
            if self._is_mine(number + 1):
                break
            number, found = _find_newest(self._store, self._run_id, number)
        self._number = number + 1
        threading.Thread(target=self._renew_until_over, name="lease", daemon=True).start()

    def renew(self) -> None:
        """Write the next beat; set `lost` where another job has taken the run."""
        found = _read(self._store, self._run_id, self._number + 1)
        if found is None:
            found = _read(self._store, self._run_id, self._number)
        if found is None or found["token"] != self._record["token"]:
            self.lost = _held_by(self._store, self._run_id, found)
        elif not self._over.is_set():
            self._write(next(self._beats))

    def release(self) -> None:
        """Stop renewing, and tell the next job that it need not wait."""
        self._over.set()
        if self.lost is None:
            # What ended the job is worth more to its user than that the next one has to wait.
            with contextlib.suppress(StorageError):
                self._write(next(self._beats), released=True)

    def _renew_until_over(self) -> None:
        while not self._over.wait(BEAT_S):
            # A thread a beat: a request that hangs must not keep the later ones waiting.
            threading.Thread(target=self._beat, name="lease beat", daemon=True).start()

    def _beat(self) -> None:
        try:
            self.renew()
        except StorageError as error:
            log.warning("lease: not renewed: %s", error)
        with self._telling:
            if self.lost is not None and not self._over.is_set():
                self._over.set()
                self._on_lost()

    def _is_mine(self, number: int) -> bool:
        found = _read(self._store, self._run_id, number)
        return found is not None and found["token"] == self._record["token"]

    def _write(self, beat: int, released: bool = False) -> None:
        path = _path(self._run_id, self._number)
        self._store.write_bytes(path, _encode(self._record, beat, released))


_held: dict[tuple[str, str], Lease] = {}
"""The leases of this process, by root and run_id."""


@contextlib.contextmanager
def hold(store: Store, run_id: str, on_lost: Callable[[], None]) -> Iterator[Lease]:
    """Hold a run for the block.

    Args:
        store: where the run lies.
        run_id: of the run.
        on_lost: called, in another thread, once another job has taken the run: it stops the block.

    Raises:
        UserError: another job is at work on the run, at the start or, whatever else ended the
            block, since then.
    """
    lease = Lease(store, run_id, on_lost)
    lease.take()
    _held[store.root, run_id] = lease
    try:
        yield lease
    except BaseException as error:
        if lease.lost is not None:
            raise lease.lost from error
        raise
    finally:
        del _held[store.root, run_id]
        lease.release()


def confirm(store: Store, run_id: str) -> None:
    """Look at the store whether this process still holds the run; nothing where it never did.

    Raises:
        UserError: another job has taken it.
    """
    lease = _held.get((store.root, run_id))
    if lease is not None:
        lease.renew()
        if lease.lost is not None:
            raise lease.lost


def seconds_since_beat(store: Store, run_id: str) -> float | None:
    """Return how long ago, by the clocks of two machines, a job held the run; None: none does."""
    _, found = _find_newest(store, run_id)
    if found is None or found["released"]:
        return None
    beat = dt.datetime.fromisoformat(found["beat_at"])
    return (dt.datetime.now(dt.UTC) - beat).total_seconds()


def _wait_for_death(store: Store, run_id: str, number: int, found: dict[str, Any]) -> None:
    """Return once a lease has not moved for DEAD_AFTER_S or is released.

    Raises:
        UserError: it moved: its job is alive.
    """
    if _is_gone(found["process"]):
        log.info("lease: run %s was %s, which is dead", run_id, _said(found))
        return
    log.info("lease: run %s is %s; watched for %.0f s", run_id, _said(found), DEAD_AFTER_S)
    began = time.monotonic()
    waited = 0.0
    while waited < DEAD_AFTER_S:
        time.sleep(LOOK_S)
        waited = time.monotonic() - began
        _, now = _find_newest(store, run_id, number)
        if now is None or now["released"]:
            return
        if now != found:
            raise _held_by(store, run_id, now)
    log.info("lease: it has not moved; run %s is taken over", run_id)


def _find_newest(store: Store, run_id: str, at_least: int = 0) -> tuple[int, dict[str, Any] | None]:
    """Return the highest number of a run's leases, 0 where there is none, and what it says."""
    names = (name.removesuffix(".json") for name in store.list(f"runs/{run_id}/lock"))
    number = max([at_least, *(int(name) for name in names if name.isdigit())])
    found = _read(store, run_id, number) if number else None
    # Some stores list late what they give at once by its name.
    while (newer := _read(store, run_id, number + 1)) is not None:
        number, found = number + 1, newer
    return number, found


def _read(store: Store, run_id: str, number: int) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = store.read_json(_path(run_id, number))
    except MissingObject:
        return None
    return found


def _path(run_id: str, number: int) -> str:
    return f"runs/{run_id}/lock/{number}.json"


def _encode(record: dict[str, Any], beat: int, released: bool = False) -> bytes:
    says = {**record, "beat": beat, "beat_at": _now(), "released": released}
    return json.dumps(says, indent=2, sort_keys=True).encode()


def _held_by(store: Store, run_id: str, found: dict[str, Any] | None) -> UserError:
    expected = "a run that no other job is at work on"
    holder = "its lock removed" if found is None else f"it {_said(found)}"
    mend = "wait for that job or stop it, or give another run_id"
    return UserError(explain(store.uri(f"runs/{run_id}"), expected, holder, mend))


def _said(found: dict[str, Any]) -> str:
    return f"held by process {found['pid']} on {found['host']} since {found['since']}"


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def _describe_process(pid: int) -> str:
    """Return what no other process of any machine is, at any time; "" where that is not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # Numbers of processes are those of a namespace; /proc may hide those of other users.
        space = os.readlink("/proc/self/ns/pid")
        state, *facts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    # The 22nd field is when it was started, the third its state; Z is dead and not yet buried.
    return "" if state in "ZX" else f"{boot} {space} {os.getuid()} {pid} {facts[18]}"


def _is_gone(process: str) -> bool:
    """Whether a process was this machine's and is no more; False where that cannot be known."""
    own = _describe_process(os.getpid()).split()
    other = process.split()
    return bool(own) and own[:3] == other[:3] and _describe_process(int(other[3])) != process
