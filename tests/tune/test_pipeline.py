import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import yaml
from ray.tune.schedulers import TrialScheduler

from crossrec.config import Config
from crossrec.configfile import load_config
from crossrec.data.demo import make_demo
from crossrec.data.histories import open_prepared
from crossrec.data.prepare import prepare
from crossrec.errors import ConfigError
from crossrec.storage import Store
from crossrec.train.launch import training_digest
from crossrec.tune.pipeline import make_scheduler, plan_trial, read_records, tune
from crossrec.tune.records import FINISHED, STOPPED, Record, read_record, write_record
from crossrec.tune.space import draw_trials
from tests.nights import DEMO, change, small_config

ROOT = Path(__file__).parents[2]
PATIENCE_S = 600
"""A busy machine takes long to start its workers."""

NDCG = "ndcg@10"
SECRET = "hunter2hunter2"
TRIALS = tuple(f"trial-{number:04d}" for number in (1, 2, 3, 4))


def make_record(trial: str, values: Sequence[float], digest: str = "", **more: Any) -> Record:
    epochs = [{"epoch": epoch, NDCG: value} for epoch, value in enumerate(values)]
    return Record(trial, digest, more.get("parameters", {}), FINISHED, epochs)


def search_config(root: str = "/nowhere", trials: int = 4, **more: Any) -> Config:
    space = {"train.learning_rate": {"loguniform": [1e-4, 1e-2]}}
    settings = {"space": space, "trials": trials, "reduction": 2} | more
    return Config.model_validate(
        {"run_id": "search", "storage": {"root": root}, "tune": settings, "train": {"epochs": 8}}
    )


def decide(over: Sequence[Record], epoch: int, value: float, **more: Any) -> str:
    """Return what ASHA decides on a trial that has come so far, after others."""
    config = search_config(**more)
    scheduler = make_scheduler(config, draw_trials(config), over, NDCG)
    controller: Any = None
    trial: Any = SimpleNamespace(trial_id="new")
    scheduler.on_trial_add(controller, trial)
    decision = ""
    for reached in range(epoch + 1):
        result = {"epoch": reached, "value": value}
        decision = scheduler.on_trial_result(controller, trial, result)
        if decision == TrialScheduler.STOP:
            assert reached == epoch
    return decision


def test_trial_is_stopped_by_what_earlier_ones_have_shown() -> None:
    over = [make_record("a", [0.1, 0.2, 0.3])]
    assert decide(over, 1, 0.1) == TrialScheduler.STOP
    assert decide(over, 1, 0.25) == TrialScheduler.CONTINUE
    assert decide(over, 2, 0.25) == TrialScheduler.STOP
    assert decide([], 2, 0.0) == TrialScheduler.CONTINUE


def test_nobody_is_stopped_before_the_grace_epochs() -> None:
    over = [make_record("a", [0.5] * 6)]
    assert decide(over, 2, 0.1, grace_epochs=3) == TrialScheduler.CONTINUE
    assert decide(over, 3, 0.1, grace_epochs=3) == TrialScheduler.STOP


def test_trial_counts_by_its_best_epoch_so_far() -> None:
    over = [make_record("a", [0.1, 0.3, 0.2])]
    assert decide(over, 2, 0.25, grace_epochs=2) == TrialScheduler.STOP


def test_records_of_another_search_are_refused(tmp_path: Path) -> None:
    store, prepared = Store(str(tmp_path)), SimpleNamespace(digest="0123")
    config = search_config(store.root)
    trials = draw_trials(config)
    digest = training_digest(trials[0].config, prepared)  # type: ignore[arg-type]
    write_record(store, "runs/search/tune/trial-0001", make_record("trial-0001", [0.1], digest))
    found = read_records(store, "runs/search/tune", trials, prepared)  # type: ignore[arg-type]
    assert [record.trial for record in found] == ["trial-0001"]
    others = draw_trials(config.model_copy(update={"seed": 3}))
    with pytest.raises(ConfigError, match="search: trial-0001: expected a trial of this search"):
        read_records(store, "runs/search/tune", others, prepared)  # type: ignore[arg-type]


def test_search_that_the_cluster_cannot_hold_is_refused(ray_cluster: None, tmp_path: Path) -> None:
    config = search_config(str(tmp_path / "store"), trials=8, max_concurrent=4)
    where = r"train\.num_workers x tune\.max_concurrent: expected room for 4 workers"
    with pytest.raises(ConfigError, match=where):
        tune(config, Store(config.storage.root))
    assert not (tmp_path / "store").exists()


def make_search(folder: Path, backbone: str) -> tuple[Config, Store]:
    """Return a search on small data: trials 1 and 2 of one epoch, 3 and 4 of eight."""
    store = Store(str(folder / "store"))
    demo = make_demo(300, 17, DEMO)
    for name, table in (("events", demo.events), ("items", demo.items)):
        store.write_parquet(f"input/{name}.parquet", table)
    data = {name: store.uri(f"input/{name}.parquet") for name in ("events", "items")}
    space = {"train.epochs": [1, 8], "train.learning_rate": [0.0, 0.001]}
    settings = {"space": space, "trials": 4, "reduction": 2}
    storage = {"root": store.root, "options": {"secret": SECRET}}
    config = small_config(store, backbone, data, run_id="search", storage=storage, tune=settings)
    for seed in range(1000):
        config = config.model_copy(update={"seed": seed})
        if [trial.config.train.epochs for trial in draw_trials(config)] == [1, 1, 8, 8]:
            return config, store
    raise AssertionError("no such draw")


def start_search(config: Config, folder: Path) -> subprocess.Popen[bytes]:
    """Start jobs/tune.py on this session's Ray, in a process group of its own."""
    path = folder / "config.yaml"
    options = dict(config.storage.options)
    public = config.public()
    path.write_text(yaml.safe_dump(public | {"storage": public["storage"] | {"options": options}}))
    (folder / "tmp").mkdir(exist_ok=True)
    address = ray.get_runtime_context().gcs_address
    with (folder / "out").open("wb") as out, (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "jobs/tune.py", str(path)],
            cwd=ROOT,
            env={**os.environ, "RAY_ADDRESS": address, "TMPDIR": str(folder / "tmp")},
            stdout=out,
            stderr=log,
            start_new_session=True,
        )


def wait_for_epoch(job: subprocess.Popen[bytes], store: Store, trial: str, said: Path) -> None:
    """Wait until a trial's record has an epoch."""
    deadline = time.monotonic() + PATIENCE_S
    while read_record(store, f"runs/search/tune/{trial}") is None:
        assert job.poll() is None, said.read_text()
        assert time.monotonic() < deadline, said.read_text()
        time.sleep(0.02)


def states(store: Store) -> Mapping[str, Any]:
    found = {trial: read_record(store, f"runs/search/tune/{trial}") for trial in TRIALS}
    return {trial: record.state if record else None for trial, record in found.items()}


def kept(folder: Path) -> tuple[bytes, int]:
    path = folder / "trial.json"
    return path.read_bytes(), path.stat().st_mtime_ns


@pytest.mark.slow
def test_search_that_is_killed_goes_on_and_stops_the_worse(
    ray_cluster: None, tiny_backbone: str, tmp_path: Path
) -> None:
    """Trial 1 is over before, and so good that ASHA lets no other one beyond its first epoch."""
    config, store = make_search(tmp_path, tiny_backbone)
    trials = draw_trials(config)
    prepared = open_prepared(store, prepare(trials[0].config, store)["prepared"])
    for phase in plan_trial(trials[2], store, prepared, 1).plan.phases:
        # The hold-out begins where the validation slice ends.
        holdout = prepared.as_of_us // 86_400_000_000 + 1 - config.evaluate.holdout_days
        assert phase.name == "select"
        assert phase.job.valid is not None
        assert phase.job.known_before < phase.job.valid[1] == holdout
    digest = training_digest(trials[0].config, prepared)
    parameters = trials[0].parameters
    good = make_record(TRIALS[0], [0.8, 0.9], digest, parameters=parameters)
    folder = Path(store.full_path("runs/search/tune"))
    write_record(store, f"runs/search/tune/{TRIALS[0]}", good)

    job = start_search(config, tmp_path)
    wait_for_epoch(job, store, TRIALS[2], tmp_path / "log")
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    assert states(store) == dict(zip(TRIALS, [FINISHED, FINISHED, "running", None], strict=True))
    before = [kept(folder / trial) for trial in TRIALS[:2]]
    first = read_record(store, f"runs/search/tune/{TRIALS[2]}")

    job = start_search(config, tmp_path)
    said = tmp_path / "log"
    assert job.wait(PATIENCE_S) == 0, said.read_text()
    assert states(store) == dict(zip(TRIALS, [FINISHED, FINISHED, STOPPED, STOPPED], strict=True))
    assert [kept(folder / trial) for trial in TRIALS[:2]] == before
    third = read_record(store, f"runs/search/tune/{TRIALS[2]}")
    assert first is not None
    assert third is not None
    # The seconds that an epoch took tell one pass from another: the checkpoint was gone on from,
    # which cannot know how long it took to write.
    first.epochs[0].pop("checkpoint_seconds", None)
    assert first.epochs[0].items() <= third.epochs[0].items()
    # ASHA judges after epoch 1, of 8.
    assert [point["epoch"] for point in third.epochs] == [0, 1]
    assert f"{TRIALS[2]} stopped after epoch 1" in said.read_text()
    assert f"{TRIALS[1]} begins" not in said.read_text()

    # What the stopped trainings held is free again.
    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU") != 4.0 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert ray.available_resources()["CPU"] == 4.0
    # Weights of trials that do not go on are not kept.
    assert not [path for path in folder.rglob("*") if path.suffix in (".safetensors", ".pt")]

    summary = json.loads((tmp_path / "out").read_text().splitlines()[-1])
    counts = {name: summary[name] for name in ("trials", "finished", "stopped", "failed")}
    assert counts == {"trials": 4, "finished": 2, "stopped": 2, "failed": 0}
    assert summary["best"]["trial"] == TRIALS[0]
    told = store.read_json("runs/search/tune/tune.json")
    assert {trial["trial"]: trial["state"] for trial in told["trials"]} == states(store)
    assert told["trials"][0]["trial"] == TRIALS[0]
    assert all(trial["seconds"] > 0 for trial in told["trials"] if trial["trial"] != TRIALS[0])

    best = load_config(str(folder / "best.yaml"), ["run_id=search"])
    assert best == change(trials[0].config, storage={"options": {}})
    for path in (*Path(store.root).rglob("*"), *(tmp_path / "tmp").rglob("*")):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes(), path
