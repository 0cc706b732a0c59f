"""What every Ray Train worker runs: epochs, validation, a checkpoint each epoch.

The loop can be replayed: all it needs is its job and the newest checkpoint, so that a killed
worker, driver or node costs at most the epoch in progress and the one before it.

    TorchTrainer(train_loop, train_loop_config={"job": job}, datasets={"histories": ...}).fit()
"""

import json
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.train
import ray.train.torch
import torch
from torch import Tensor, distributed, nn

from crossrec.data.replay import before, flatten, pad, training_targets
from crossrec.model.checkpoint import (
    optimizer_from_bytes,
    optimizer_to_bytes,
    tensors_from_bytes,
    tensors_to_bytes,
)
from crossrec.model.inference import to_batch
from crossrec.model.objectives import Targets
from crossrec.model.recommender import HistoryBatch
from crossrec.train.task import Task, TrainJob, build_task, idle_batch
from crossrec.train.validate import Valid, judge_epoch, load_valid

GRADIENT_NORM = 1.0
"""Gradients are clipped to this norm."""

SHUFFLE_BATCHES = 8
"""Batches that are read at once and shuffled among each other; users lie in the order of a hash, so
nearby ones have nothing in common."""


@dataclass
class Progress:
    """Where a training run stands; JSON beside the weights of every checkpoint.

    best_ndcg: NDCG@10 on the validation slice at `best_epoch`, whose weights lie in
    best.safetensors. blends: the weights chosen there; step0: those chosen before training. curve:
    one point an epoch.
    """

    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    best_ndcg: float = -1.0
    blends: dict[str, dict[str, float]] = field(default_factory=dict)
    step0: dict[str, dict[str, float]] = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)
    is_done: bool = False


def train_loop(config: dict[str, Any]) -> None:
    """Train one model; rank 0 validates and keeps the best weights."""
    job: TrainJob = config["job"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.manual_seed(job.seed)
    task = build_task(job, ray.train.torch.get_device())
    loss = ray.train.torch.prepare_model(
        task.loss, parallel_strategy_kwargs={"find_unused_parameters": True}
    )
    progress, best = _restore(task)
    valid = None
    if job.valid is not None and rank == 0:
        valid = load_valid(job.store, job.prepared, *job.valid, job.train.max_valid_pairs)
    shard = ray.train.get_dataset_shard("histories")
    if not progress.curve:
        best = _judge(job, task, valid, progress, {"loss": None}) or best
        _report(task, progress, best, rank, world)
    while not progress.is_done:
        began = time.perf_counter()
        torch.manual_seed(job.seed * 100_003 + progress.epoch * world + rank)
        shards = shard.iter_batches(
            batch_size=job.train.batch_size * SHUFFLE_BATCHES // world, batch_format="pyarrow"
        )
        batches = _minibatches(
            shards,
            max(1, job.train.batch_size // world),
            np.random.default_rng(torch.initial_seed()),
        )
        mean_loss = _train_epoch(job, task, loss, batches, progress)
        progress.epoch += 1
        point = {"loss": round(mean_loss, 5), "seconds": round(time.perf_counter() - began, 2)}
        best = _judge(job, task, valid, progress, point) or best
        _report(task, progress, best, rank, world)


def _minibatches(
    tables: Iterable[pa.Table], size: int, rng: np.random.Generator
) -> Iterator[pa.Table]:
    """Yield batches of histories of similar length, in random order: little of a batch is padding.

    Every worker gets the same number of rows from Ray Data and so yields the same number of
    batches.
    """
    for table in tables:
        lengths = pc.list_value_length(table["rows"]).to_numpy()
        # Noise keeps the company of a history changing from epoch to epoch.
        order = np.argsort(np.log1p(lengths) + rng.normal(0, 0.2, len(lengths)))
        starts = np.arange(0, len(order), size)
        for start in rng.permutation(starts):
            yield table.take(pa.array(order[start : start + size]))


def _train_epoch(
    job: TrainJob, task: Task, loss: nn.Module, batches: Iterable[pa.Table], progress: Progress
) -> float:
    """Take a step a batch; return the mean loss of the workers' targets."""
    task.loss.train()
    # From the epoch's seed, so that a replay of the epoch draws the same negatives.
    generator = torch.Generator().manual_seed(torch.initial_seed() % 2**63)
    totals = torch.zeros(2, dtype=torch.float64)
    for table in batches:
        batch, targets = _to_tensors(job, table)
        summed: Tensor = loss(batch.to(task.device), targets.to(task.device), generator)
        count = len(targets.rows_N)
        # DDP averages over workers; this makes that the mean over the targets of the global batch.
        (summed * _world() / max(_sum(torch.tensor(count)).item(), 1)).backward()
        nn.utils.clip_grad_norm_(task.parameters, GRADIENT_NORM)
        task.set_learning_rate(progress.step)
        task.optimizer.step()
        task.optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        totals += torch.tensor([summed.item(), count])
        if job.train.max_steps is not None and progress.step >= job.train.max_steps:
            progress.is_done = True
            break
    total, count = _sum(totals).tolist()
    return float(total / max(count, 1))


def _to_tensors(job: TrainJob, table: pa.Table) -> tuple[HistoryBatch, Targets]:
    """Turn histories into tensors; a batch with nothing to predict becomes an idle one."""
    histories = before(flatten(table), job.known_before)
    padded = pad(histories, job.model.max_history)
    users, sources, columns = training_targets(padded, histories)
    if not len(users):
        return idle_batch(len(job.bounds))
    elapsed = np.where(sources > 0, padded.days[users, columns] - padded.days[users, sources], 0)
    arrays = (users, sources, padded.rows[users, columns], elapsed)
    return to_batch(padded, job.bounds), Targets(
        *(torch.from_numpy(array.astype(np.int64)) for array in arrays)
    )


def _judge(
    job: TrainJob, task: Task, valid: list[Valid] | None, progress: Progress, point: dict[str, Any]
) -> bytes | None:
    """Judge an epoch where this rank has the validation slice; return the weights if best."""
    point = {"epoch": progress.epoch, **point}
    is_best = job.valid is None
    if valid is not None:
        began = time.perf_counter()
        is_trained = progress.epoch > 0
        recommender, items = task.loss.recommender, task.item_state()
        blends, ndcg = judge_epoch(
            recommender, items, valid, task.activity, job.prepared, is_trained
        )
        point |= {"ndcg@10": round(ndcg, 5), "valid_seconds": round(time.perf_counter() - began, 2)}
        chosen = {name: asdict(blend) for name, blend in blends.items()}
        if not is_trained:
            progress.step0 = chosen
        is_best = ndcg > progress.best_ndcg
        if is_best:
            progress.best_ndcg, progress.blends = ndcg, chosen
    if is_best:
        progress.best_epoch = progress.epoch
    progress.curve.append(point)
    is_waiting = (
        job.valid is not None and progress.epoch - progress.best_epoch >= job.train.patience
    )
    progress.is_done = progress.is_done or is_waiting or progress.epoch >= job.epochs
    return tensors_to_bytes(task.loss.state_dict()) if is_best else None


def _report(task: Task, progress: Progress, best: bytes | None, rank: int, world: int) -> None:
    """Store a checkpoint from rank 0; all ranks meet here and go on with rank 0's progress."""
    if world > 1:
        shared = [asdict(progress)]
        distributed.broadcast_object_list(shared, src=0)
        progress.__dict__.update(shared[0])
    if not rank:
        print(_describe(progress), flush=True)
    metrics = {"epoch": progress.epoch, "best_epoch": progress.best_epoch, **progress.curve[-1]}
    if rank:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "model.safetensors").write_bytes(tensors_to_bytes(task.loss.state_dict()))
        (folder / "best.safetensors").write_bytes(best or b"")
        (folder / "optimizer.pt").write_bytes(optimizer_to_bytes(task.optimizer))
        (folder / "progress.json").write_text(json.dumps(asdict(progress), indent=2))
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _describe(progress: Progress) -> str:
    """Return the newest point of the curve as a line for people."""
    facts = ", ".join(
        f"{key} {value}" for key, value in progress.curve[-1].items() if value is not None
    )
    return f"finetune: {facts} (best epoch so far {progress.best_epoch})"


def _restore(task: Task) -> tuple[Progress, bytes | None]:
    """Continue from the newest checkpoint, if there is one."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return Progress(), None
    with checkpoint.as_directory() as name:
        folder = Path(name)
        task.loss.load_state_dict(tensors_from_bytes((folder / "model.safetensors").read_bytes()))
        optimizer_from_bytes(task.optimizer, (folder / "optimizer.pt").read_bytes())
        return Progress(**json.loads((folder / "progress.json").read_text())), (
            folder / "best.safetensors"
        ).read_bytes()


def _world() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def _sum(values: Tensor) -> Tensor:
    """Return the sum over the workers."""
    if _world() > 1:
        values = values.to(ray.train.torch.get_device())
        distributed.all_reduce(values)
    return values.cpu()
