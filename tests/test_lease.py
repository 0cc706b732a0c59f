import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crossrec import lease
from crossrec.config import Config
from crossrec.current import read_current
from crossrec.errors import UserError
from crossrec.lease import Lease, confirm, hold
from crossrec.publish import publish
from crossrec.storage import Store
from tests.runs import config_of, write_run
from tests.test_jobs import run_job, said_of_mistake

ROOT = Path(__file__).parents[1]
SHORT = {"BEAT_S": 0.1, "DEAD_AFTER_S": 3.0, "LOOK_S": 0.05, "SETTLE_S": 0.5}
"""A busy machine must not be taken for a dead one."""

HOLDER = """
import select, sys
from crossrec import lease
from crossrec.errors import UserError
from crossrec.storage import Store

for setting in sys.argv[2:]:
    name, _, value = setting.partition("=")
    setattr(lease, name, float(value))
print("ready", flush=True)
sys.stdin.readline()
try:
    with lease.hold(Store(sys.argv[1]), "night", lambda: None) as held:
        print("held", flush=True)
        while held.lost is None and not select.select([sys.stdin], [], [], 0.05)[0]:
            pass
        if held.lost is not None:
            raise KeyboardInterrupt
    print("released", flush=True)
except UserError as error:
    print(error, flush=True)
"""
"""A job that takes the run when it is given a line, and holds it until it is given another."""


@pytest.fixture
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SHORT.items():
        monkeypatch.setattr(lease, name, value)


@pytest.fixture
def _elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Holders are on another machine: nobody can see whether their process lives."""
    monkeypatch.setattr(lease, "_describe_process", lambda pid: "")


@contextlib.contextmanager
def start_holder(store: Store) -> Iterator[subprocess.Popen[str]]:
    settings = [f"{name}={value}" for name, value in SHORT.items()]
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, store.root, *settings],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert hear(process) == "ready"
            yield process
        finally:
            process.kill()


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go on\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the run of tmp_path."""
    with start_holder(Store(str(tmp_path))) as process:
        tell(process)
        assert hear(process) == "held"
        yield process


def again(store: Store) -> Store:
    """Return the store as another process has it."""
    return Store(store.root, store.options)


def taken(store: Store, number: int) -> dict[str, Any]:
    found: dict[str, Any] = store.read_json(f"runs/night/lock/{number}.json")
    return found


def nothing() -> None:
    pass


@pytest.mark.usefixtures("_short")
def test_lease_beats_and_is_released(store: Store) -> None:
    with hold(store, "night", nothing):
        time.sleep(5 * SHORT["BEAT_S"])
        during = taken(again(store), 1)
    assert during["beat"] >= 2
    assert not during["released"]
    assert taken(store, 1)["released"]
    assert set(during) == {
        *("token", "host", "pid", "process", "since", "beat", "beat_at", "released")
    }


@pytest.mark.usefixtures("_short")
def test_released_run_is_taken_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError), hold(store, "night", nothing):
        raise ZeroDivisionError
    monkeypatch.setattr(lease, "DEAD_AFTER_S", 1e6)
    with hold(again(store), "night", nothing):
        assert store.list("runs/night/lock") == ["1.json", "2.json"]


@pytest.mark.usefixtures("_short", "_elsewhere")
def test_live_holder_stops_a_second_job(store: Store) -> None:
    expected = r"runs/night: expected a run that no other job .*held by process \d+ on .* since 2"
    with hold(store, "night", nothing) as first:
        with pytest.raises(UserError, match=expected), hold(again(store), "night", nothing):
            pass
        confirm(store, "night")
        assert first.lost is None
    assert store.list("runs/night/lock") == ["1.json"]


@pytest.mark.usefixtures("_short")
def test_runs_are_held_apart(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with hold(store, "night", nothing), hold(store, "other", nothing):
        pass


@pytest.mark.usefixtures("_short", "_elsewhere")
def test_lease_that_does_not_move_is_taken_over(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 1e6)
    dead = Lease(store, "night", nothing)
    dead.take()
    began = time.monotonic()
    with hold(again(store), "night", nothing):
        assert time.monotonic() - began >= SHORT["DEAD_AFTER_S"]
        dead.renew()
    assert isinstance(dead.lost, UserError)
    assert taken(store, 1)["beat"] == 0


def test_settings_take_a_dead_job_over_within_a_minute() -> None:
    assert lease.DEAD_AFTER_S + 2 * lease.LOOK_S + lease.SETTLE_S < 45
    assert lease.DEAD_AFTER_S >= 5 * lease.BEAT_S


@pytest.mark.usefixtures("_short")
def test_killed_holder_of_this_machine_is_taken_over_at_once(
    holder: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "DEAD_AFTER_S", 1e6)
    holder.kill()
    holder.wait()
    with hold(Store(str(tmp_path)), "night", nothing):
        assert taken(Store(str(tmp_path)), 2)["pid"] != holder.pid


@pytest.mark.slow
@pytest.mark.usefixtures("_elsewhere")
def test_killed_holder_of_another_machine_is_taken_over_within_a_minute(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    holder.kill()
    holder.wait()
    began = time.monotonic()
    with hold(Store(str(tmp_path)), "night", nothing):
        assert time.monotonic() - began < 60


@pytest.mark.usefixtures("_short", "_elsewhere")
def test_paused_holder_finds_that_it_lost_the_run(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    holder.send_signal(signal.SIGSTOP)
    with hold(Store(str(tmp_path)), "night", nothing) as second:
        holder.send_signal(signal.SIGCONT)
        said = hear(holder)
        second.renew()
        assert second.lost is None
    assert "runs/night: expected a run that no other job is at work on" in said


@pytest.mark.usefixtures("_short", "_elsewhere")
def test_lost_run_interrupts_its_job(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    is_lost = threading.Event()

    def wait_until_lost() -> None:
        with hold(store, "night", is_lost.set):
            token = {**taken(store, 1), "token": "another"}
            store.write_json("runs/night/lock/2.json", token)
            assert is_lost.wait(60)
            raise KeyboardInterrupt

    with pytest.raises(UserError, match="held by process"):
        wait_until_lost()
    assert not taken(store, 2)["released"]


@pytest.mark.usefixtures("_short")
def test_job_that_lost_its_run_publishes_nothing(store: Store) -> None:
    write_run(store, "old")
    publish(config_of(store, "old"), store)
    before = read_current(store)
    write_run(store, "night")
    with hold(store, "night", nothing):
        store.write_json("runs/night/lock/2.json", {**taken(store, 1), "token": "another"})
        with pytest.raises(UserError, match="held by process"):
            publish(config_of(store, "night"), store)
    assert read_current(store) == before
    store.delete("runs/night/lock/2.json")
    with hold(store, "night", nothing):
        publish(config_of(store, "night"), store)
    current = read_current(store)
    assert current is not None
    assert current["run_id"] == "night"


@pytest.mark.parametrize("is_dead", [False, True], ids=["free", "dead"])
def test_of_racing_processes_one_holds_the_run(store: Store, is_dead: bool) -> None:
    if is_dead:
        record = {"process": "", "pid": 1, "host": "gone", "since": "2026", "token": "gone"}
        store.write_json("runs/night/lock/1.json", {**record, "beat": 3, "released": False})
    with contextlib.ExitStack() as stack:
        racing = [stack.enter_context(start_holder(store)) for _ in range(4)]
        for process in racing:
            tell(process)
        said = [hear(process) for process in racing]
        (winner,) = (process for process, line in zip(racing, said, strict=True) if line == "held")
        tell(winner)
        assert hear(winner) == "released"
    assert sum("held by process" in line for line in said) == 3


@pytest.mark.usefixtures("_short", "_elsewhere")
def test_one_holds_the_run_where_the_store_cannot_create_alone(
    s3_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Swift, in the moment in which all have looked and see no lease."""
    everyone = threading.Barrier(3, timeout=60)

    def create(self: Store, path: str, data: bytes) -> bool:
        if path.endswith("/1.json"):
            everyone.wait()
        self.write_bytes(path, data)
        return True

    monkeypatch.setattr(Store, "create_bytes", create)
    ended: list[bool] = []

    def work() -> None:
        try:
            with hold(Store(s3_root), "night", nothing):
                time.sleep(3)
        except UserError:
            ended.append(False)
        else:
            ended.append(True)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ended) == [False, False, True]


def job_config(tmp_path: Path) -> str:
    path = tmp_path / "config.yaml"
    root = json.dumps(str(tmp_path / "store"))
    path.write_text(f"run_id: night\ndata: {{demo_users: 50}}\nstorage: {{root: {root}}}\n")
    return str(path)


@pytest.mark.parametrize("job", ["prepare", "score", "nightly"])
def test_job_ends_where_another_is_at_work(tmp_path: Path, job: str) -> None:
    store = Store(str(tmp_path / "store"))
    with hold(store, "night", nothing):
        ended = run_job(job_config(tmp_path), job=job)
        assert "held by process" in said_of_mistake(ended)
        assert store.list("") == ["runs"]


def wait_for_ever(config: Config, store: Store) -> dict[str, Any]:
    """Stand in for a stage."""
    import ray

    def sleep() -> None:
        time.sleep(1000)

    store.write_json("begun.json", {})
    ray.get(ray.remote(num_cpus=0)(sleep).remote())
    return {}


@pytest.mark.slow
def test_job_that_is_stopped_leaves_the_run(tmp_path: Path, joined: dict[str, str]) -> None:
    with working_job(tmp_path, joined) as (process, store):
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "interrupted; the same command continues" in said
        assert taken(store, 1)["released"]


@pytest.mark.slow
def test_job_whose_run_was_taken_ends(tmp_path: Path, joined: dict[str, str]) -> None:
    with working_job(tmp_path, joined) as (process, store):
        store.write_json("runs/night/lock/2.json", {**taken(store, 1), "token": "another"})
        _, said = process.communicate(timeout=60)
        assert process.returncode == 2, said
        assert "expected a run that no other job is at work on" in said.splitlines()[-1]
        assert "Traceback" not in said


@contextlib.contextmanager
def working_job(
    tmp_path: Path, variables: dict[str, str]
) -> Iterator[tuple[subprocess.Popen[str], Store]]:
    """A command of jobs/ that has begun its stage and does not end by itself."""
    program = "from crossrec.job import run_job; run_job('', 'tests.test_lease:wait_for_ever')"
    command = [sys.executable, "-c", program, job_config(tmp_path)]
    store = Store(str(tmp_path / "store"))
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **variables},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            for _ in itertools.takewhile(lambda _: process.poll() is None, range(1200)):
                if store.exists("begun.json"):
                    break
                time.sleep(0.1)
            yield process, store
        finally:
            process.kill()
