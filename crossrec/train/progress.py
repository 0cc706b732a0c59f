"""Where a training run stands: one Progress a phase, in every checkpoint and for who watches.

A checkpoint is a folder of the newest phase's weights and optimizer, and of all phases' progress:

    model.safetensors  optimizer.pt      as they are after the epoch
    best.safetensors                     the best epoch's weights, where the phase validates
    progress.json                        {"phases": [...]}; the newest phase comes last
    checksums.json                       the sha256 of each
"""

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import ray.train
import torch
from torch import nn

from crossrec.model.adapters import adapter_state, restore_adapter
from crossrec.model.backbone import TextBackbone
from crossrec.model.checkpoint import (
    state_from_bytes,
    state_to_bytes,
    tensors_from_bytes,
    tensors_to_bytes,
)
from crossrec.runlog import log
from crossrec.storage import Store
from crossrec.storage_errors import MissingObject

PROGRESS = "progress.json"
CHECKSUMS = "checksums.json"


class Trained(Protocol):
    """What a checkpoint holds the state of."""

    @property
    def loss(self) -> nn.Module:
        """All that learns."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """What moves it."""

    @property
    def device(self) -> torch.device:
        """Where both are."""

    @property
    def learning_backbone(self) -> TextBackbone | None:
        """The backbone, where it learns."""


@dataclass
class Progress:
    """Where a phase stands.

    best_value: the measure that chooses, on the validation slice at `best_epoch`, higher is better;
    best_ndcg: its NDCG@10. curve: one point an epoch, epoch 0 before training.
    """

    phase: str
    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    best_value: float | None = None
    best_ndcg: float = -1.0
    curve: list[dict[str, float]] = field(default_factory=list)
    is_done: bool = False


@dataclass(frozen=True)
class Saved:
    """A checkpoint in memory: `phases` is never empty, the weights are those of its last."""

    phases: list[Progress]
    model: bytes
    optimizer: bytes
    best: bytes | None

    def restore(self, task: Trained) -> None:
        """Put weights and optimizer state back into a task of the same phase."""
        task.loss.load_state_dict(tensors_from_bytes(self.model))
        state = state_from_bytes(self.optimizer, task.device)
        task.optimizer.load_state_dict(state["optimizer"])
        if task.learning_backbone is not None:
            restore_adapter(task.learning_backbone, state["adapter"])


def parse_progress(data: bytes) -> list[Progress]:
    """Return the phases that a checkpoint's progress.json tells of."""
    return [Progress(**phase) for phase in json.loads(data)["phases"]]


def read_checkpoint(store: Store, folder: str) -> Saved | None:
    """Return the newest whole checkpoint of a run, None where there is none.

    One that is damaged is passed over for the one before it, with a warning.

    Args:
        store: of the run.
        folder: where Ray Train writes its checkpoints.
    """
    names = [name for name in store.list(folder) if is_checkpoint(name)]
    for name in sorted(names, reverse=True):
        saved = _read_whole(store, f"{folder}/{name}")
        if saved is not None:
            return saved
        path = store.uri(f"{folder}/{name}")
        log.warning("finetune: checkpoint %s is damaged, so it is passed over", path)
    return None


def is_checkpoint(name: str) -> bool:
    """Return whether a name in the run's folder is that of a checkpoint.

    >>> is_checkpoint("checkpoint_2026-11-25_06-41-12.5"), is_checkpoint("checkpoint_manager.json")
    (True, False)
    """
    return name.startswith("checkpoint_") and not name.endswith(".json")


def _read_whole(store: Store, folder: str) -> Saved | None:
    """Return a checkpoint in memory, None where a file is not as it was written."""
    try:
        said = json.loads(store.read_bytes(f"{folder}/{CHECKSUMS}"))
        files = {name: store.read_bytes(f"{folder}/{name}") for name in said}
    except (ValueError, MissingObject):
        return None
    if any(hashlib.sha256(data).hexdigest() != said[name] for name, data in files.items()):
        return None
    return Saved(
        parse_progress(files[PROGRESS]),
        files["model.safetensors"],
        files["optimizer.pt"],
        files.get("best.safetensors"),
    )


def report_epoch(task: Trained, phases: Sequence[Progress], best: bytes | None, rank: int) -> None:
    """Report the newest phase's epoch to Ray Train, rank 0 with a checkpoint; a barrier."""
    progress = phases[-1]
    metrics: dict[str, Any] = {
        "phase": progress.phase,
        "best_epoch": progress.best_epoch,
        "is_done": progress.is_done,
        "point": progress.curve[-1],
    }
    if rank:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as scratch:
        write_checkpoint(Path(scratch), task, phases, best)
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(scratch))


def write_checkpoint(
    folder: Path, task: Trained, phases: Sequence[Progress], best: bytes | None
) -> None:
    """Write a checkpoint into an empty local folder."""
    (folder / "model.safetensors").write_bytes(tensors_to_bytes(task.loss.state_dict()))
    backbone = task.learning_backbone
    adapter = adapter_state(backbone) if backbone is not None else {}
    state = {"optimizer": task.optimizer.state_dict(), "adapter": adapter}
    (folder / "optimizer.pt").write_bytes(state_to_bytes(state))
    if best is not None:
        (folder / "best.safetensors").write_bytes(best)
    said = {"phases": [asdict(phase) for phase in phases]}
    (folder / PROGRESS).write_text(json.dumps(said, indent=2))
    sums = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }
    (folder / CHECKSUMS).write_text(json.dumps(sums, indent=2))


def describe(progress: Progress, index: int) -> str:
    """Return a point of the curve as a line for people.

    >>> describe(Progress("refit", curve=[{"epoch": 0}, {"epoch": 1, "loss": 5.25}]), 1)
    'refit epoch 1, loss 5.25'
    """
    facts = [f"{key} {value}" for key, value in progress.curve[index].items() if value is not None]
    return f"{progress.phase} {', '.join(facts)}"
