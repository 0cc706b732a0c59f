"""A night by `ray job submit` on a head and two workers, which are killed one after the other."""

import json
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import crossrec
from crossrec.storage import Store
from tests.cluster.machines import Machine, machines
from tests.nights import modified

ROOT = Path(__file__).parents[2]

CPUS = 3
"""Of each machine: room for one of training's workers (two CPUs of nine in all), and later for one
scoring actor (two of six). No machine has room for two."""

USERS, BUCKETS, EPOCHS = 300, 256, 6
KILLED_AFTER_EPOCHS, KILLED_AFTER_BUCKETS = 2, 16

IN_FLIGHT = 8
"""Buckets at most that an actor has at once: what Ray Data hands it ahead."""

PATIENCE_S = 400

SETTINGS = (
    f"data.demo_users={USERS}",
    f"data.buckets={BUCKETS}",
    "model.width=32",
    "model.heads=2",
    "model.layers=1",
    "model.max_history=20",
    f"train.epochs={EPOCHS}",
    f"train.patience={EPOCHS}",
    "train.batch_size=16",
    "train.moments=4",
    "train.num_workers=2",
    "train.min_workers=1",
    "score.num_actors=2",
    "score.top_k=20",
)


@dataclass(frozen=True)
class Job:
    """A submitted job that runs, and what it has said."""

    process: subprocess.Popen[bytes]
    log: Path

    def wait_for(self, is_so: Callable[[], Any]) -> Any:
        """Return what is_so says once that is something; the job must not end before."""
        deadline = time.monotonic() + PATIENCE_S
        while not (said := is_so()):
            assert self.process.poll() is None, self.log.read_text()[-5000:]
            assert time.monotonic() < deadline, self.log.read_text()[-5000:]
            time.sleep(0.01)
        return said


@dataclass(frozen=True)
class Night:
    """A night that lost a node in fine-tuning and another in scoring, and what was there before.

    curve: epochs that were reported when the first node died. done: completion records when the
    second was dead.
    """

    store: Store
    said: str
    curve: list[dict[str, Any]]
    done: dict[str, tuple[int, str]]

    def read_json(self, name: str) -> Any:
        return self.store.read_json(f"runs/night/{name}")


@pytest.fixture(scope="module")
def night(tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Night]:
    store = Store(str(tmp_path_factory.mktemp("three-nodes") / "recs"))
    with machines(3) as (head, *workers):
        head.start_ray(CPUS)
        for worker in workers:
            worker.start_ray(CPUS, head)
        settings = (*SETTINGS, f"model.backbone={tiny_backbone}", f"storage.root={store.root}")
        job = submit(head, settings)
        curve = job.wait_for(lambda: reported(store))
        first = next(worker for worker in workers if runs(worker, "RayTrainWorker"))
        first.kill()
        (second,) = (worker for worker in workers if worker is not first)
        job.wait_for(lambda: len(store.list("runs/night/done")) >= KILLED_AFTER_BUCKETS)
        # In the middle of a bucket, also where it was slower to begin than the head.
        job.wait_for(lambda: runs(second, "ScoreBucket)).submit"))
        second.kill()
        done = records(store)
        status = job.process.wait(PATIENCE_S)
        said = job.log.read_text()
        assert status == 0, said[-5000:]
        yield Night(store, said, curve, done)


def submit(head: Machine, settings: tuple[str, ...]) -> Job:
    log = head.folder / "job.log"
    command = ["ray", "job", "submit", "--address", head.dashboard, "--submission-id", "night"]
    excluded = {"excludes": [".venv", ".git", ".crossrec", "tests"]}
    command += ["--working-dir", str(ROOT), "--runtime-env-json", json.dumps(excluded), "--"]
    command += ["python", "jobs/nightly.py", "jobs/configs/demo.yaml", "run_id=night", *settings]
    return Job(head.popen(command, log), log)


def runs(machine: Machine, title: str) -> bool:
    return any("ray::" in found and title in found for found in machine.processes().values())


def reported(store: Store) -> list[dict[str, Any]]:
    """Return the curve of the newest checkpoint once it has enough epochs, else nothing."""
    for path in sorted(
        Path(store.full_path("runs/night/train")).glob("*/checkpoint_*/progress.json")
    ):
        try:
            (phase, *_) = json.loads(path.read_text())["phases"]
        except (OSError, ValueError):  # half written, or just removed
            continue
        if len(phase["curve"]) > KILLED_AFTER_EPOCHS:
            return list(phase["curve"])
    return []


def records(store: Store) -> dict[str, tuple[int, str]]:
    """Return the completion records, without those that are being written."""
    found = modified(store, "runs/night/done")
    return {path: said for path, said in found.items() if path.endswith(".json")}


@pytest.mark.slow
def test_job_says_that_it_succeeded(night: Night) -> None:
    assert "Job 'night' succeeded" in night.said
    assert night.read_json("summary.json")["status"] == "done"


@pytest.mark.slow
def test_published_lists_are_whole(night: Night) -> None:
    (demo,) = Path(night.store.full_path("demo")).glob("*/events")
    users = set(pq.read_table(demo)["user_id"].to_pylist())
    domains = night.read_json("plan.json")["domains"]
    found = Counter(
        (row["user_id"], row["domain"])
        for batch in crossrec.read_scores(night.store.root)
        for row in batch.select(["user_id", "domain"]).to_pylist()
    )
    assert found == Counter((user, domain) for user in users for domain in domains)
    assert len(users) == USERS


@pytest.mark.slow
def test_lost_node_costs_fine_tuning_the_epoch_in_progress_and_the_last_one(night: Night) -> None:
    curve = night.read_json("finetune.json")["training"]["curve"]
    assert [point["epoch"] for point in curve] == list(range(EPOCHS + 1))
    assert KILLED_AFTER_EPOCHS < len(night.curve) <= EPOCHS
    # With the seconds that each took: they were not run again.
    assert curve[: len(night.curve) - 1] == night.curve[:-1]
    assert curve[1]["workers"] == 2


@pytest.mark.slow
def test_lost_node_costs_scoring_the_buckets_in_flight(night: Night) -> None:
    after = records(night.store)
    assert len(after) == BUCKETS
    assert KILLED_AFTER_BUCKETS <= len(night.done) < BUCKETS
    assert {path: after[path] for path in night.done} == night.done
    lost = re.findall(r"score: (\d+) buckets went with the process", night.said)
    assert 0 < sum(map(int, lost)) <= IN_FLIGHT, lost
