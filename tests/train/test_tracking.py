import importlib.util
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

from crossrec.errors import ConfigError
from crossrec.storage import Store
from crossrec.train.tracking import PROJECT, Tracked, check_tracking, open_tracker

FACTS = {"run_id": "night", "seed": 17, "model": {"width": 64}}


def tracked(store: Store, kind: str = "none") -> Tracked:
    return Tracked(store, "runs/night/train", "select", kind, FACTS)


def write(which: Tracked) -> None:
    """Twenty steps in two epochs; the loss of a step is its number."""
    tracker = open_tracker(which, step=0)
    for step in range(1, 21):
        tracker.step(step, {"loss": float(step)})
        if step % 10 == 0:
            tracker.epoch(step, {"epoch": step // 10, "loss": 20.0 - step, "ndcg@10": None})
    tracker.close()


def read(store: Store, scratch: Path) -> EventAccumulator:
    scratch.mkdir()
    for name in store.list("runs/night/train/tensorboard/select"):
        data = store.read_bytes(f"runs/night/train/tensorboard/select/{name}")
        (scratch / name).write_bytes(data)
    found = EventAccumulator(str(scratch))
    found.Reload()
    return found


def values(found: EventAccumulator, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in found.Scalars(name)]


def test_event_files_are_in_the_store_after_each_epoch(store: Store, tmp_path: Path) -> None:
    tracker = open_tracker(tracked(store), step=0)
    tracker.step(10, {"loss": 5.0})
    tracker.epoch(12, {"epoch": 1, "loss": 4.5, "ndcg@10": None})
    found = read(store, tmp_path / "early")
    assert values(found, "step/loss") == [(10, 5.0)]
    assert values(found, "epoch/loss") == [(12, 4.5)]
    assert "epoch/ndcg@10" not in found.Tags()["scalars"]
    tracker.epoch(24, {"epoch": 2, "loss": 4.0})
    assert values(read(store, tmp_path / "late"), "epoch/loss") == [(12, 4.5), (24, 4.0)]
    tracker.close()


def test_every_tenth_step_is_kept(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    write(tracked(store))
    assert values(read(store, tmp_path / "read"), "step/loss") == [(10, 10.0), (20, 20.0)]


def test_only_the_first_worker_writes(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    tracker = open_tracker(tracked(store, "wandb"), step=0, rank=1)
    tracker.epoch(10, {"loss": 1.0})
    tracker.close()
    assert store.list("runs") == []


def test_mlflow_keeps_one_run_a_phase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow: Any = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    store = Store(str(tmp_path / "store"))
    write(tracked(store, "mlflow"))
    tracker = open_tracker(tracked(store, "mlflow"), step=20)
    tracker.epoch(30, {"loss": 0.0, "ndcg@10": 0.25})
    tracker.close()
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name(PROJECT)
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params == {"run_id": "night", "seed": "17", "model.width": "64"}
    assert run.data.metrics["epoch/ndcg_at_10"] == 0.25
    history = client.get_metric_history(run.info.run_id, "epoch/loss")
    assert [(point.step, point.value) for point in history] == [(10, 10.0), (20, 0.0), (30, 0.0)]


def test_wandb_writes_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    write(tracked(Store(str(tmp_path / "store")), "wandb"))
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    data = file.read_bytes()
    wanted = {b"step/loss", b"epoch/loss", b"night select", b"width"}
    assert {word for word in wanted if word in data} == wanted


def test_a_tracker_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"train\.tracking.*pip install crossrec\[tracking\]"):
        check_tracking("wandb")
    check_tracking("none")
