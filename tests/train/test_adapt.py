import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import ray
import torch
import yaml
from safetensors.torch import load

from crossrec.config import Config, TrainConfig
from crossrec.data.histories import open_prepared
from crossrec.data.prepare import prepare
from crossrec.errors import ConfigError
from crossrec.model.source import BackboneSource
from crossrec.storage import Store
from crossrec.train import adapt as adapting
from crossrec.train import material
from crossrec.train.adapt import (
    AdaptJob,
    adapt,
    build_adapt,
    check_adapt,
)
from crossrec.train.launch import finetune
from crossrec.train.progress import Progress, read_checkpoint, take_state, write_checkpoint
from crossrec.train.span import time_cuts
from crossrec.train.tracking import Tracker
from tests.nights import Night, change
from tests.small import histories
from tests.train.test_task import CPU, make_job

Kind = Literal["mlm", "contrastive"]
ROOT = Path(__file__).parents[2]
PATIENCE_S = 240
SNAPSHOT = "adapt-*/checkpoint_manager_snapshot.json"
KINDS: tuple[Kind, ...] = ("mlm", "contrastive")


@pytest.fixture
def job(tmp_path: Path, tiny_backbone: str, monkeypatch: pytest.MonkeyPatch) -> AdaptJob:
    """Five texts, and one history in which two of them follow each other before day 10."""
    known = histories([(0, 3), (4, 9), (2, 10)])
    monkeypatch.setattr(material, "sample_histories", lambda *_: known)
    base = make_job(tmp_path, tiny_backbone)
    train = TrainConfig(adapt="contrastive", adapt_steps=30, adapt_learning_rate=1e-3)
    return AdaptJob(base.store, base.prepared, base.source, train, 17, 10, "cache/backbones/x")


def with_kind(job: AdaptJob, kind: Kind) -> AdaptJob:
    return replace(job, train=job.train.model_copy(update={"adapt": kind}))


def test_only_histories_before_the_validation_slice_are_paired(job: AdaptJob) -> None:
    found = build_adapt(job, CPU).material
    assert found.texts == ["deep space", "green tea", "space", "tea"]
    assert found.pairs.tolist() == [[3, 0]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_round_moves_the_backbone_and_lowers_the_loss(job: AdaptJob, kind: Kind) -> None:
    job = with_kind(job, kind)
    task = build_adapt(job, CPU)
    before = {name: part.clone() for name, part in task.backbone.state_dict().items()}
    first = adapting._run_round(job, task, Progress("adapt"), 0, Tracker([]))
    second = adapting._run_round(job, task, Progress("adapt"), 0, Tracker([]))
    assert second["loss"] < first["loss"]
    still = {name for name, part in task.backbone.state_dict().items() if part.equal(before[name])}
    # Not used: mean pooling goes without it.
    assert {name.split(".")[1] for name in still} == {"pooler"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_brings_back_a_round_with_all_its_dropout(
    job: AdaptJob, tmp_path: Path, kind: Kind
) -> None:
    job = with_kind(job, kind)
    task, progress = build_adapt(job, CPU), Progress("adapt")
    job = replace(job, train=job.train.model_copy(update={"adapt_steps": 3}))
    adapting._run_round(job, task, progress, 0, Tracker([]))
    folder = tmp_path / "store" / "x" / "checkpoint_1"
    folder.mkdir(parents=True)
    write_checkpoint(folder, take_state(task, 0), [progress], None)
    job = replace(job, train=job.train.model_copy(update={"adapt_steps": 6}))
    saved = read_checkpoint(Store(str(tmp_path / "store")), "x")
    assert saved is not None
    other, again = build_adapt(job, CPU), saved.phases[0]
    saved.restore(other)
    points = [
        adapting._run_round(job, *pair, 0, Tracker([]))
        for pair in ((task, progress), (other, again))
    ]
    assert points[0]["loss"] == points[1]["loss"]
    weights = other.loss.state_dict()
    assert all(part.equal(weights[name]) for name, part in task.loss.state_dict().items())


def adapting_config(night: Night, run_id: str, kind: str, adapt_steps: int) -> Config:
    train = {"adapt": kind, "adapt_steps": adapt_steps, "adapt_learning_rate": 1e-3, "epochs": 1}
    return change(night.config, run_id=run_id, train=train)


def weights(store: Store, folder: str) -> dict[str, torch.Tensor]:
    return load(store.read_bytes(f"{folder}/model.safetensors"))


@pytest.mark.slow
def test_fine_tuning_starts_from_the_adapted_backbone(night: Night, tiny_backbone: str) -> None:
    config = adapting_config(night, "adapted", "contrastive", 8)
    prepare(config, night.store)
    summary = finetune(config, night.store)
    assert [point["epoch"] for point in summary["adapt"]] == [1]
    (folder,) = (name for name in night.store.list("cache/backbones") if "." not in name)
    adapted = weights(night.store, f"cache/backbones/{folder}")
    before = load(Path(tiny_backbone, "model.safetensors").read_bytes())
    published = weights(night.store, f"{summary['model']}/backbone")
    assert not adapted["embeddings.word_embeddings.weight"].equal(
        before["embeddings.word_embeddings.weight"]
    )
    # Frozen under `trainable: head`: published as it was adapted.
    assert published.keys() == adapted.keys() == before.keys()
    assert all(published[name].equal(adapted[name]) for name in adapted)
    said = night.store.read_json(f"{summary['model']}/config.json")
    assert said["text_digest"] != BackboneSource(night.store, night.config.model).digest()
    assert said["settings"]["backbone"] == tiny_backbone


def kill_once_adapting(config: Config, folder: Path, scratch: Path) -> None:
    """Run jobs/finetune.py and kill it once Ray Train has taken note of a checkpoint."""
    path = scratch / "config.yaml"
    path.write_text(yaml.safe_dump(config.public()))
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    command = [sys.executable, "jobs/finetune.py", str(path)]
    with (scratch / "log").open("wb") as log:
        job = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        deadline = time.monotonic() + PATIENCE_S
        while not any("checkpoint_2" in path.read_text() for path in folder.glob(SNAPSHOT)):
            said = (scratch / "log").read_text()
            assert job.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.05)
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()


@pytest.mark.slow
def test_an_adaptation_killed_half_way_ends_as_one_left_alone(night: Night, tmp_path: Path) -> None:
    """The job dies after an early checkpoint; what it began is finished, and is the same."""
    store = night.store
    config = adapting_config(night, "killed-adapt", "mlm", adapt_steps=400)
    prepared = open_prepared(store, prepare(config, store)["prepared"])
    kill_once_adapting(config, Path(store.full_path("runs/killed-adapt/train")), tmp_path)
    _, _, valid = time_cuts(config, prepared)
    begun = read_checkpoint(store, checkpoints(store, "killed-adapt"))
    assert begun is not None
    assert not begun.phases[0].is_done
    settings, curve = adapt(config, store, prepared, valid, "runs/killed-adapt/train")
    # The seconds that a round took tell one pass from another.
    assert curve[: len(begun.phases[0].curve)] == begun.phases[0].curve
    killed = load(Path(settings.backbone, "model.safetensors").read_bytes())
    store.delete("cache/backbones")
    settings, alone = adapt(config, store, prepared, valid, "runs/alone-adapt/train")
    assert [point["loss"] for point in curve] == [point["loss"] for point in alone]
    expected = load(Path(settings.backbone, "model.safetensors").read_bytes())
    assert all(killed[name].equal(expected[name]) for name in expected)


def checkpoints(store: Store, run: str) -> str:
    (name,) = (name for name in store.list(f"runs/{run}/train") if name.startswith("adapt-"))
    return f"runs/{run}/train/{name}"


def test_a_backbone_without_language_is_refused_before_any_work(tmp_path: Path) -> None:
    from transformers import ResNetConfig

    ResNetConfig().save_pretrained(tmp_path / "weights")
    (tmp_path / "weights" / "model.safetensors").touch()
    store = Store(str(tmp_path / "store"))
    values = {"backbone": str(tmp_path / "weights")}
    settings = {"storage": {"root": store.root}, "model": values, "train": {"adapt": "mlm"}}
    with pytest.raises(ConfigError, match=r"train\.adapt mlm"):
        check_adapt(Config.model_validate(settings), store)
