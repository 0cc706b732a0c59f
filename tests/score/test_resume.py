"""Scoring that is killed half-way and run again: whole, exactly once, and the same bytes."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from crossrec.config import Config
from crossrec.data.prepare import prepare
from crossrec.score.pipeline import score
from crossrec.storage import Store
from tests.nights import DOMAINS, Night, change, modified
from tests.score.lost_node_run import ACTORS
from tests.test_jobs import run_job
from tests.webhook import webhook

ROOT = Path(__file__).parents[2]

BUCKETS = 160
"""Enough to be killed among them."""

PATIENCE_S = 240

pytestmark = pytest.mark.slow


def prepared_run(night: Night, run_id: str) -> Config:
    """Prepare a run that scores with the night's model."""
    model = night.manifest["model"].removeprefix("models/")
    config = change(night.config, run_id=run_id, data={"buckets": BUCKETS}, score={"model": model})
    prepare(config, night.store)
    return config


@pytest.fixture(scope="module")
def undisturbed(night: Night) -> dict[str, str]:
    config = prepared_run(night, "undisturbed")
    score(config, night.store)
    return lists_of(night.store, config)


def lists_of(store: Store, config: Config) -> dict[str, str]:
    """Return the sha256 of a run's lists by their path within it; the run must be whole."""
    run = f"runs/{config.run_id}"
    records = [store.read_json(f"{run}/done/{name}") for name in done(store, config)]
    recorded = {file["path"]: file["sha256"] for record in records for file in record["files"]}
    assert [record["bucket"] for record in records] == list(range(BUCKETS))
    # Nothing lies there that no record names, and all is as recorded.
    found = {path: sha256 for path, (_, sha256) in modified(store, f"{run}/scores").items()}
    assert found == {store.full_path(path): sha256 for path, sha256 in recorded.items()}
    assert len(found) == BUCKETS * len(DOMAINS)
    return {path.removeprefix(run): sha256 for path, sha256 in recorded.items()}


def done(store: Store, config: Config) -> list[str]:
    return store.list(f"runs/{config.run_id}/done")


def recorded_files(store: Store, config: Config) -> dict[str, tuple[int, str]]:
    """Return when each file of a finished bucket was written, and what it holds."""
    run = f"runs/{config.run_id}"
    names = {name.removesuffix(".json") for name in done(store, config)}
    files = modified(store, f"{run}/scores") | modified(store, f"{run}/done")
    return {path: fact for path, fact in files.items() if Path(path).name.split(".")[0] in names}


def wait_for(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_score_after_a_killed_driver_does_what_is_missing(
    night: Night, undisturbed: dict[str, str], joined: dict[str, str], tmp_path: Path
) -> None:
    config, store = prepared_run(night, "killed-driver"), night.store
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.public()))
    with (tmp_path / "log").open("wb") as log:
        job = subprocess.Popen(
            [sys.executable, "jobs/score.py", str(path)],
            cwd=ROOT,
            env={**os.environ, **joined},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        wait_for(lambda: len(done(store, config)) >= BUCKETS // 10 or job.poll() is not None)
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
    assert job.returncode == -signal.SIGKILL, (tmp_path / "log").read_text()
    # Ray ends the actors a moment after their driver.
    time.sleep(5)
    before = recorded_files(store, config)
    missing = BUCKETS - len(done(store, config))
    assert 0 < missing < BUCKETS
    killed = store.read_json("runs/killed-driver/summary.json")
    assert (killed["status"], killed["stages"]["score"]["status"]) == ("running", "running")
    with webhook() as server:
        told = {"CROSSREC_WEBHOOK": server.url}
        ended = run_job(str(path), job="score", variables={**joined, **told})
    assert ended.returncode == 0, ended.stderr
    said = store.read_json("runs/killed-driver/summary.json")
    assert [json.loads(request.body) for request in server.requests] == [said]
    assert (said["status"], said["attempts"]) == ("done", {"score": 2})
    assert said["stages"]["score"]["facts"]["rescored_buckets"] == missing
    assert said["began"] == killed["began"]
    assert json.loads(ended.stdout.splitlines()[-1])["rescored_buckets"] == missing
    after = recorded_files(store, config)
    assert {path: after[path] for path in before} == before
    assert lists_of(store, config) == undisturbed


def scoring_actors() -> list[int]:
    """Return the processes below this one in which a ScoreBucket lives."""
    parents, titles = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int(
                (folder / "stat").read_text().rpartition(")")[2].split()[1]
            )
            titles[int(folder.name)] = (folder / "cmdline").read_text()
        except (OSError, UnicodeDecodeError):
            continue

    def is_ours(pid: int) -> bool:
        while pid in parents and pid != os.getpid():
            pid = parents[pid]
        return pid == os.getpid()

    return [
        pid
        for pid, title in titles.items()
        if "ray::" in title and "ScoreBucket" in title and is_ours(pid)
    ]


def test_score_outlives_a_killed_actor(night: Night, undisturbed: dict[str, str]) -> None:
    config, store = prepared_run(night, "killed-actor"), night.store
    killed: list[int] = []
    before: dict[str, tuple[int, str]] = {}

    def kill_actors() -> None:
        wait_for(lambda: len(done(store, config)) >= BUCKETS // 10)
        for pid in scoring_actors():
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
        before.update(recorded_files(store, config))

    killer = threading.Thread(target=kill_actors)
    killer.start()
    summary = score(config, store)
    killer.join()
    assert killed
    assert 0 < len(before) < BUCKETS * (len(DOMAINS) + 1), "killed too late to see anything"
    assert summary["rescored_buckets"] == BUCKETS
    after = recorded_files(store, config)
    assert {path: after[path] for path in before} == before
    assert lists_of(store, config) == undisturbed


def test_score_outlives_a_killed_node(
    night: Night, undisturbed: dict[str, str], short_folder: Path
) -> None:
    config, store = prepared_run(night, "killed-node"), night.store
    path, log = short_folder / "config.yaml", short_folder / "log"
    path.write_text(yaml.safe_dump(change(config, score={"num_actors": ACTORS}).public()))
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with log.open("wb") as said:
        status = subprocess.run(
            [sys.executable, "-m", "tests.score.lost_node_run", str(short_folder), str(path)],
            cwd=ROOT,
            env={**environment, "PYTHONPATH": str(ROOT)},
            stdout=said,
            stderr=said,
            timeout=2 * PATIENCE_S,
        ).returncode
    assert status == 0, log.read_text()[-3000:]
    summary = json.loads((short_folder / "summary.json").read_text())
    assert summary["killed"] == -signal.SIGKILL
    assert summary["rescored_buckets"] == BUCKETS
    assert lists_of(store, config) == undisturbed
