import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from crossrec.storage import Store
from crossrec.train.progress import (
    PROGRESS,
    Progress,
    read_checkpoint,
    take_state,
    write_checkpoint,
)
from crossrec.train.task import Task, build_task
from tests.train.test_task import BATCH, CPU, TARGETS, make_job, take_step

RUN = "runs/night/train/digest"
EARLIER, NEWEST = "checkpoint_2026-11-25_01-00-00", "checkpoint_2026-11-25_02-00-00"


@pytest.fixture
def task(tmp_path: Path, tiny_backbone: str) -> Task:
    return build_task(make_job(tmp_path / "data", tiny_backbone), CPU)


@pytest.fixture
def store(tmp_path: Path, task: Task) -> Store:
    """Two checkpoints, a step apart, and what Ray Train writes beside them."""
    store = Store(str(tmp_path / "store"))
    for epoch, name in enumerate((EARLIER, NEWEST), 1):
        take_step(task)
        folder = Path(store.full_path(f"{RUN}/{name}"))
        folder.mkdir(parents=True)
        write_checkpoint(folder, take_state(task, 0), [Progress("select", epoch=epoch)], b"best")
    store.write_json(f"{RUN}/checkpoint_manager_snapshot.json", {})
    return store


def damage(store: Store, name: str, file: str, data: bytes | None) -> None:
    path = Path(store.full_path(f"{RUN}/{name}/{file}"))
    path.unlink() if data is None else path.write_bytes(data)


def test_the_newest_checkpoint_restores_weights_and_optimizer(store: Store, task: Task) -> None:
    saved = read_checkpoint(store, RUN)
    assert saved is not None
    assert (saved.phases[-1].epoch, saved.best) == (2, b"best")
    weights = {name: part.clone() for name, part in task.loss.state_dict().items()}
    moments = [state["exp_avg"].clone() for state in task.optimizer.state.values()]
    take_step(task)
    saved.restore(task)
    assert all(part.equal(weights[name]) for name, part in task.loss.state_dict().items())
    found = [state["exp_avg"] for state in task.optimizer.state.values()]
    assert all(torch.equal(one, other) for one, other in zip(found, moments, strict=True))


@pytest.mark.parametrize(
    ("file", "data"),
    [
        ("model.safetensors", b"cut off"),
        ("optimizer.pt", None),
        ("checksums.json", None),
        ("checksums.json", b"{"),
        (PROGRESS, b"{}"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    store: Store, file: str, data: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    damage(store, NEWEST, file, data)
    with caplog.at_level(logging.WARNING, "crossrec"):
        saved = read_checkpoint(store, RUN)
    assert saved is not None
    assert saved.phases[-1].epoch == 1
    assert f"{NEWEST} is damaged" in caplog.text


@pytest.mark.parametrize("adapter", ["lora", "adalora", "bottleneck"])
@pytest.mark.parametrize("cut", [4, 10])
def test_an_adapter_goes_on_from_a_checkpoint_as_if_undisturbed(
    tmp_path: Path, tiny_backbone: str, adapter: str, cut: int
) -> None:
    """AdaLoRA prunes in between, from what it remembers of earlier steps."""
    job = make_job(tmp_path / "data", tiny_backbone)
    job = replace(
        job,
        model=job.model.model_copy(update={"adapter": adapter, "adapter_rank": 2}),
        train=job.train.model_copy(update={"epochs": 3, "batch_size": 25}),
    )
    found = []
    for stop in (None, cut):
        torch.manual_seed(1)
        store, task = Store(str(tmp_path / f"{stop}")), build_task(job, CPU)
        for step in range(12):
            if step == stop:
                folder = Path(store.full_path(f"{RUN}/{NEWEST}"))
                folder.mkdir(parents=True)
                write_checkpoint(folder, take_state(task, 0), [Progress("select")], None)
                saved = read_checkpoint(store, RUN)
                assert saved is not None
                task = build_task(job, CPU)
                saved.restore(task)
            torch.manual_seed(step)
            task.loss.train()
            (task.loss(BATCH, TARGETS, torch.Generator()) + task.penalty()).backward()
            task.step(step, 0)
        found.append(task.loss.state_dict())
    assert all(part.equal(found[1][name]) for name, part in found[0].items())


def test_without_a_whole_checkpoint_there_is_none(store: Store) -> None:
    for name in (EARLIER, NEWEST):
        damage(store, name, "model.safetensors", b"")
    assert read_checkpoint(store, RUN) is None
    assert read_checkpoint(store, "runs/other") is None
