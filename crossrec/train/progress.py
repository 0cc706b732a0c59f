"""Where a training run stands: one Progress a phase, in every checkpoint and for who watches.

A checkpoint is a folder of the newest phase's weights and optimizer, and of all phases' progress:

    model.safetensors  optimizer.pt      as they are after the epoch
    best.safetensors                     the best epoch's weights, where the phase validates
    progress.json                        {"phases": [...]}; the newest phase comes last
    checksums.json                       the sha256 of each

It is the same whatever `train.strategy` and the number of workers, and any of them go on from it.
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
from torch import Tensor, nn

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
from crossrec.train.sharding import gathered, is_sharded, shared_moments, shared_out

PROGRESS = "progress.json"
CHECKSUMS = "checksums.json"


class Trained(Protocol):
    """What a checkpoint holds the state of, and all that learns on this worker."""

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
        """The backbone of texts, where it learns."""


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
class State:
    """Weights, and what the optimizer and an adapter remember: whole, whoever holds which share."""

    model: dict[str, Tensor]
    optimizer: dict[str, Any]


def take_state(task: Trained, rank: int) -> State:
    """Return the state of a task; all workers take part, and rank 0 alone gets it whole."""
    backbone = task.learning_backbone
    adapter = adapter_state(backbone) if backbone is not None else {}
    state = {"optimizer": task.optimizer.state_dict(), "adapter": adapter}
    return State(gathered(dict(task.loss.state_dict()), not rank), gathered(state, not rank))


@dataclass(frozen=True)
class Saved:
    """A checkpoint in memory: `phases` is never empty, the weights are those of its last."""

    phases: list[Progress]
    model: bytes
    optimizer: bytes
    best: bytes | None

    def restore(self, task: Trained) -> None:
        """Put weights and optimizer state back into a task of the same phase."""
        own = task.loss.state_dict()
        weights = tensors_from_bytes(self.model)
        task.loss.load_state_dict({name: shared_out(weights[name], own[name]) for name in own})
        # Whole, it may be more than the device holds.
        state = state_from_bytes(self.optimizer, "cpu" if is_sharded(task.loss) else task.device)
        parameters = [part for group in task.optimizer.param_groups for part in group["params"]]
        task.optimizer.load_state_dict(shared_moments(state["optimizer"], parameters))
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


def report_epoch(state: State, phases: Sequence[Progress], best: bytes | None, rank: int) -> None:
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
        write_checkpoint(Path(scratch), state, phases, best)
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(scratch))


def write_checkpoint(
    folder: Path, state: State, phases: Sequence[Progress], best: bytes | None
) -> None:
    """Write a checkpoint into an empty local folder."""
    (folder / "model.safetensors").write_bytes(tensors_to_bytes(state.model))
    (folder / "optimizer.pt").write_bytes(state_to_bytes(state.optimizer))
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
