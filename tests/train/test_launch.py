import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from safetensors.torch import load
from torch import Tensor

from crossrec.config import Config
from crossrec.data.demo import write_demo
from crossrec.data.prepare import prepare
from crossrec.errors import ConfigError
from crossrec.storage import Store
from crossrec.train.launch import finetune
from tests.nights import EPOCHS, Night, change, modified, small_config

ROOT = Path(__file__).parents[2]
PATIENCE_S = 240
"""A busy machine takes long to start its workers."""


@pytest.fixture(scope="module")
def by_two(night: Night) -> dict[str, Any]:
    """A fine-tuning by two workers that share the backbone, which learns."""
    train = {
        "num_workers": 2,
        "strategy": "fsdp",
        "epochs": 2,
        "batch_size": 32,
        "learning_rate": 0.003,
        "backbone_learning_rate": 1e-3,
        # Few items a step pass through the backbone.
        "full_softmax_items": 0,
        "negatives": 64,
    }
    config = change(night.config, run_id="two", model={"trainable": "all"}, train=train)
    prepare(config, night.store)
    return finetune(config, night.store)


def backbone_of(store: Store, model: str) -> dict[str, Tensor]:
    return load(store.read_bytes(f"{model}/backbone/model.safetensors"))


def changed_tensors(store: Store, model: str, backbone: str) -> set[str]:
    before = load(Path(backbone, "model.safetensors").read_bytes())
    after = backbone_of(store, model)
    assert after.keys() == before.keys()
    return {name for name in before if not after[name].equal(before[name])}


@pytest.mark.slow
def test_two_workers_learn(night: Night, by_two: dict[str, Any]) -> None:
    losses = [point["loss"] for point in by_two["training"]["curve"][1:]]
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]
    # An odd number, which two cannot share: a history of nobody makes it even.
    users = night.read_json("prepare.json")["users"]
    assert users % 2
    assert {point["histories"] for point in by_two["training"]["curve"][1:]} == {users}


@pytest.mark.slow
def test_a_model_that_workers_share_is_whole(night: Night, by_two: dict[str, Any]) -> None:
    whole = load((Path(night.config.model.backbone) / "model.safetensors").read_bytes())
    for name in ("selected", "model"):
        found = backbone_of(night.store, by_two[name])
        assert {n: part.shape for n, part in found.items()} == {
            n: part.shape for n, part in whole.items()
        }


@pytest.mark.slow
def test_trainable_all_reaches_the_backbone(night: Night, by_two: dict[str, Any]) -> None:
    """Not the chosen weights: where no epoch is better than epoch 0, those are untouched."""
    assert by_two["refit"]
    folder = "runs/two/train"
    others = ("selected", "tensorboard")
    (run,) = (name for name in night.store.list(folder) if name not in others)
    names = [name for name in night.store.list(f"{folder}/{run}") if not name.endswith(".json")]
    one, other = (
        load(night.store.read_bytes(f"{folder}/{run}/{name}/model.safetensors")) for name in names
    )
    changed = {name for name in one if not one[name].equal(other[name])}
    parts = {name.partition("backbone.model.")[2].split(".")[0] for name in changed}
    assert parts >= {"embeddings", "encoder"}


def test_trainable_head_leaves_the_backbone_alone(night: Night, tiny_backbone: str) -> None:
    assert changed_tensors(night.store, night.manifest["model"], tiny_backbone) == set()


def test_finetune_stops_at_its_last_epoch(night: Night) -> None:
    curve = night.read_json("finetune.json")["training"]["curve"]
    epochs = [point["epoch"] for point in curve]
    assert epochs == list(range(len(epochs)))
    assert len(epochs) <= 1 + EPOCHS


def test_finished_finetune_does_nothing(night: Night) -> None:
    before = [modified(night.store, folder) for folder in ("runs/night/train", "models")]
    assert finetune(night.config, night.store) == night.read_json("finetune.json")
    assert [modified(night.store, folder) for folder in ("runs/night/train", "models")] == before


def test_more_workers_than_the_cluster_holds_are_refused(night: Night) -> None:
    config = change(night.config, run_id="crowd", train={"num_workers": 4})
    prepare(config, night.store)
    with pytest.raises(ConfigError, match=r"train\.num_workers: expected room for 4 workers"):
        finetune(config, night.store)
    assert not night.store.exists("runs/crowd/finetuning.json")


def test_settings_that_change_in_mid_training_are_refused(
    ray_cluster: None, tiny_backbone: str, tmp_path: Path
) -> None:
    store = Store(str(tmp_path))
    config = small_config(store, tiny_backbone, write_demo(store, "input", 50, 17))
    prepare(config, store)
    # As a training leaves it that was killed.
    store.write_json("runs/night/finetuning.json", {"digest": "0" * 16})
    with pytest.raises(ConfigError, match=r"run_id night: .*other settings.*give a new run_id"):
        finetune(config, store)
    assert store.list("runs/night") == ["finetuning.json", "inputs.json", "prepare.json"]


@pytest.mark.slow
def test_finetune_killed_in_both_phases_ends_as_one_left_alone(
    night: Night, tmp_path: Path
) -> None:
    config = change(night.config, run_id="killed")
    prepare(config, night.store)
    kill_after(0, 1, config, night.store, tmp_path)
    selecting = newest_curves(config, night.store)
    assert len(selecting) == 1
    with pytest.raises(ConfigError, match=r"run_id killed: .*other settings"):
        finetune(change(config, seed=config.seed + 1), night.store)
    kill_after(1, 1, config, night.store, tmp_path)
    refitting = newest_curves(config, night.store)
    assert len(refitting) == 2
    finished = finetune(config, night.store)
    curves = [finished["training"]["curve"], finished["refit"]]
    # The seconds that an epoch took tell one pass from another.
    assert curves[0][:2] == selecting[0][:2]
    assert curves[0] == refitting[0]
    assert curves[1][:2] == refitting[1][:2]
    alone = night.read_json("finetune.json")
    for name in ("best_epoch", "best_ndcg"):
        assert finished["training"][name] == alone["training"][name]
    assert finished["fusion"] == alone["fusion"]
    for name in ("selected", "model"):
        for file in ("model.safetensors", "fusion.safetensors"):
            weights = [f"{summary[name]}/{file}" for summary in (finished, alone)]
            assert night.store.read_bytes(weights[0]) == night.store.read_bytes(weights[1])


def kill_after(phase: int, epoch: int, config: Config, store: Store, folder: Path) -> None:
    """Run jobs/finetune.py and kill it without warning once a phase stands beyond an epoch."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config.public()))
    address = ray.get_runtime_context().gcs_address
    with (folder / "log").open("wb") as log:
        job = subprocess.Popen(
            [sys.executable, "jobs/finetune.py", str(path)],
            cwd=ROOT,
            env={**os.environ, "RAY_ADDRESS": address},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        deadline = time.monotonic() + PATIENCE_S
        while len(dict(enumerate(newest_curves(config, store))).get(phase, [])) <= epoch:
            said = (folder / "log").read_text()
            assert job.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.05)
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()


def newest_curves(config: Config, store: Store) -> list[list[dict[str, Any]]]:
    """Return each phase's curve in the newest checkpoint that Ray Train has taken note of.

    It notes a checkpoint a moment after it is written, and goes on from what it has noted.
    """
    folder = Path(store.full_path(f"runs/{config.run_id}/train"))
    found = []
    for path in folder.glob("*/checkpoint_*/progress.json"):
        try:
            noted = (path.parents[1] / "checkpoint_manager_snapshot.json").read_text()
            phases = json.loads(path.read_text())["phases"]
        except (ValueError, OSError):  # half written, or just removed
            continue
        if path.parent.name in noted:
            found.append([phase["curve"] for phase in phases])
    return max(found, key=lambda curves: sum(map(len, curves)), default=[])
