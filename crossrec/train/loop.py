"""What every Ray Train worker runs: phases of epochs, validation, a checkpoint each epoch.

A run is a list of phases; each starts with a fresh model and optimizer and ends with a model
folder. The loop can be replayed: all it needs is its phases and the newest checkpoint, so that a
killed worker, driver or node costs at most the epoch in progress and the one before it.

    TorchTrainer(train_loop, train_loop_config={"phases": ...}, datasets={"histories": ...}).fit()
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
import ray.train
import ray.train.torch
import torch
from torch import Tensor, distributed, nn

from crossrec.data.replay import before, flatten, pad, training_targets
from crossrec.model.checkpoint import tensors_to_bytes
from crossrec.model.inference import to_batch
from crossrec.model.objectives import Targets
from crossrec.model.recommender import HistoryBatch
from crossrec.train.export import Phase, export_phase
from crossrec.train.progress import Progress, Saved, read_checkpoint, report_epoch
from crossrec.train.task import Task, TrainJob, build_task, idle_batch
from crossrec.train.validate import Valid, judge_epoch, load_valid

GRADIENT_NORM = 1.0
"""Gradients are clipped to this norm."""

SHUFFLE_BATCHES = 8
"""Batches that are read at once and shuffled among each other; users lie in the order of a hash, so
nearby ones have nothing in common."""


@dataclass(frozen=True)
class Worker:
    """This worker: its place among all of them, and its share of the histories."""

    rank: int
    world: int
    shard: ray.data.DataIterator


def train_loop(config: dict[str, Any]) -> None:
    """Train the phases that the newest checkpoint has not behind it; rank 0 validates, exports."""
    phases: Sequence[Phase] = config["phases"]
    context = ray.train.get_context()
    shard = ray.train.get_dataset_shard("histories")
    worker = Worker(context.get_world_rank(), context.get_world_size(), shard)
    saved = read_checkpoint()
    # A phase's model is in the store before the first checkpoint of the next.
    earlier = saved.phases[:-1] if saved is not None else []
    for phase in phases[len(earlier) :]:
        earlier.append(_train_phase(phase, earlier, saved, worker))
        saved = None


def _train_phase(
    phase: Phase, earlier: Sequence[Progress], saved: Saved | None, worker: Worker
) -> Progress:
    """Train a phase, from its start or from a checkpoint of it, and write its model."""
    job = phase.job
    if job.valid is None and earlier:
        job = replace(job, epochs=earlier[-1].best_epoch)
    torch.manual_seed(job.seed)
    task = build_task(job, ray.train.torch.get_device())
    loss = ray.train.torch.prepare_model(
        task.loss, parallel_strategy_kwargs={"find_unused_parameters": True}
    )
    progress, best = Progress(phase.name), None
    if saved is not None:
        progress, best = saved.phases[-1], saved.best
        saved.restore(task)
    valid = None
    if job.valid is not None and not worker.rank and not progress.is_done:
        valid = load_valid(job.store, job.prepared, *job.valid, job.train.max_valid_pairs)
    if not progress.curve:
        best = _judge(job, task, valid, progress, {"loss": None}) or best
        _meet(progress, worker)
        report_epoch(task, [*earlier, progress], best, worker.rank)
    while not progress.is_done:
        point = _run_epoch(job, task, loss, progress, worker)
        best = _judge(job, task, valid, progress, point) or best
        _meet(progress, worker)
        report_epoch(task, [*earlier, progress], best, worker.rank)
    if not worker.rank:
        validated = [found for found in (*earlier, progress) if found.best_ndcg >= 0]
        export_phase(phase, task, best, (validated or [progress])[-1])
    return progress


def _run_epoch(
    job: TrainJob, task: Task, loss: nn.Module, progress: Progress, worker: Worker
) -> dict[str, Any]:
    """Train on every history once; return the epoch's point of the curve."""
    began = time.perf_counter()
    torch.manual_seed(job.seed * 100_003 + progress.epoch * worker.world + worker.rank)
    tables = worker.shard.iter_batches(
        batch_size=job.train.batch_size * SHUFFLE_BATCHES // worker.world, batch_format="pyarrow"
    )
    size = max(1, job.train.batch_size // worker.world)
    batches = _minibatches(tables, size, np.random.default_rng(torch.initial_seed()))
    mean_loss = _train_epoch(job, task, loss, batches, progress)
    progress.epoch += 1
    return {"loss": round(mean_loss, 5), "seconds": round(time.perf_counter() - began, 2)}


def _meet(progress: Progress, worker: Worker) -> None:
    """Go on with rank 0's progress on all workers: only it has seen the validation slice."""
    if worker.world > 1:
        shared = [asdict(progress)]
        distributed.broadcast_object_list(shared, src=0)
        progress.__dict__.update(shared[0])


def _minibatches(
    tables: Iterable[pa.Table], size: int, rng: np.random.Generator
) -> Iterator[pa.Table]:
    """Yield batches of histories of similar length, in random order: little of it is padding."""
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
    """Take a step a batch; return the mean loss of the workers' targets.

    All workers take as many steps as the one with the most batches: Ray Data deals out equal
    shares, but whoever has none left would keep the others waiting for ever.
    """
    task.loss.train()
    # From the epoch's seed, so that a replay of the epoch draws the same negatives.
    generator = torch.Generator().manual_seed(torch.initial_seed() % 2**63)
    totals = torch.zeros(2, dtype=torch.float64)
    waiting = iter(batches)
    while True:
        table = next(waiting, None)
        batch, targets = idle_batch(len(job.bounds)) if table is None else _to_tensors(job, table)
        count = len(targets.rows_N)
        asked, busy = _sum(torch.tensor([count, table is not None])).tolist()
        if not busy:
            break
        summed: Tensor = loss(batch.to(task.device), targets.to(task.device), generator)
        # DDP averages over workers; this makes that the mean over the targets of the global batch.
        (summed * _world() / max(asked, 1)).backward()
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
    """Add an epoch to the curve and decide whether it is the last; return the weights if best.

    A rank without the validation slice only adds it: `_meet` brings what rank 0 found.
    """
    progress.curve.append({"epoch": progress.epoch, **point})
    if job.valid is None:
        progress.best_epoch = progress.epoch
        progress.is_done |= progress.epoch >= job.epochs
        return None
    best = None
    if valid is not None:
        best = _judge_slice(job, task, valid, progress)
    is_waiting = progress.epoch - progress.best_epoch >= job.train.patience
    progress.is_done |= is_waiting or progress.epoch >= job.epochs
    return best


def _judge_slice(job: TrainJob, task: Task, valid: list[Valid], progress: Progress) -> bytes | None:
    """Add the slice's NDCG@10 to the newest point; return the weights if it is the best so far."""
    began = time.perf_counter()
    recommender, items = task.loss.recommender, task.item_state()
    ndcg = judge_epoch(recommender, items, valid, task.activity, job.prepared)
    progress.curve[-1] |= {
        "ndcg@10": round(ndcg, 5),
        "valid_seconds": round(time.perf_counter() - began, 2),
    }
    if ndcg <= progress.best_ndcg:
        return None
    progress.best_ndcg, progress.best_epoch = ndcg, progress.epoch
    return tensors_to_bytes(task.loss.state_dict())


def _world() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def _sum(values: Tensor) -> Tensor:
    """Return the sum over the workers."""
    if _world() > 1:
        values = values.to(ray.train.torch.get_device())
        distributed.all_reduce(values)
    return values.cpu()
