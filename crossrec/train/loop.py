"""What every Ray Train worker runs: phases of epochs, validation, a checkpoint each epoch.

A run is a list of phases; each starts with a fresh model and optimizer and ends with a model
folder. The loop can be replayed: all it needs is its phases and the newest checkpoint, so that a
killed worker, driver or node costs at most the epoch in progress and the one before it.

    TorchTrainer(
        train_loop,
        # Where its checkpoints lie, and the folder of its figures.
        train_loop_config={"phases": ..., "folder": ..., "tracked": ...},
        # By their names in phases.
        datasets={"histories": ...},
    ).fit()
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import ray.data
import ray.train
import ray.train.torch
import torch
from torch import distributed, nn

from crossrec.errors import ConfigError, explain
from crossrec.model.checkpoint import tensors_from_bytes, tensors_to_bytes
from crossrec.model.inference import ItemState
from crossrec.train.epoch import learners, minibatches, share_of, train_epoch
from crossrec.train.export import Phase, export_phase
from crossrec.train.progress import (
    Progress,
    Saved,
    read_checkpoint,
    report_epoch,
    take_state,
)
from crossrec.train.repeat import repeatable
from crossrec.train.sharding import join_workers
from crossrec.train.task import Task, TrainJob, build_task
from crossrec.train.tracking import Tracked, Tracker, open_tracker
from crossrec.train.validate import RMSE, Valid, judge_epoch, load_newest, load_valid
from crossrec.train.windows import draw_epoch

SHUFFLE_BATCHES = 8
"""Batches that are read at once and shuffled among each other; users lie in the order of a hash, so
nearby ones have nothing in common."""


@dataclass(frozen=True)
class Worker:
    """This worker: its place among all of them, its share of the histories, where it tells."""

    rank: int
    world: int
    shard: ray.data.DataIterator
    folder: str


@repeatable()
def train_loop(config: dict[str, Any]) -> None:
    """Train the phases that the newest checkpoint has not behind it; rank 0 validates, exports."""
    phases: Sequence[Phase] = config["phases"]
    context = ray.train.get_context()
    place = context.get_world_rank(), context.get_world_size()
    saved = read_checkpoint(phases[0].job.store, config["folder"])
    # A phase's model is in the store before the first checkpoint of the next.
    earlier = saved.phases[:-1] if saved is not None else []
    for phase in phases[len(earlier) :]:
        shard = ray.train.get_dataset_shard(phase.histories)
        worker = Worker(*place, shard, config["tracked"])
        earlier.append(_train_phase(phase, earlier, saved, worker))
        saved = None


def _train_phase(
    phase: Phase, earlier: Sequence[Progress], saved: Saved | None, worker: Worker
) -> Progress:
    """Train a phase, from its start or from a checkpoint of it, and write its model."""
    job = phase.job
    if not job.is_validated and earlier:
        job = replace(job, epochs=earlier[-1].best_epoch)
    torch.manual_seed(job.seed)
    task = build_task(job, ray.train.torch.get_device())
    loss = join_workers(task.loss, task.device)
    progress, best = Progress(phase.name), None
    if saved is not None:
        progress, best = saved.phases[-1], saved.best
        saved.restore(task)
    facts = phase.notes | {"seed": job.seed, "model": vars(job.model), "train": vars(job.train)}
    tracked = Tracked(job.store, worker.folder, phase.name, job.train.tracking, facts)
    tracker = open_tracker(tracked, progress.step, worker.rank)
    judge = None
    if job.is_validated and not worker.rank and not progress.is_done:
        judge = Judge.load(job)
    while not progress.is_done:
        # Of epoch 0, before training.
        point: dict[str, Any] = {"loss": None, "trained": task.trained}
        if progress.curve:
            point = _run_epoch(job, task, loss, progress, worker, tracker)
        is_best = _judge(job, task, judge, progress, point)
        tracker.epoch(progress.step, progress.curve[-1])
        _meet(progress, worker)
        began = time.perf_counter()
        best = _report(task, [*earlier, progress], best, is_best)
        progress.curve[-1]["checkpoint_seconds"] = round(time.perf_counter() - began, 2)
    tracker.close()
    weights = take_state(task, worker.rank).model
    if not worker.rank:
        weights = tensors_from_bytes(best) if best is not None else weights
        validated = [found for found in (*earlier, progress) if found.best_ndcg >= 0]
        export_phase(phase, task, weights, (validated or [progress])[-1])
    return progress


def _run_epoch(
    job: TrainJob,
    task: Task,
    loss: nn.Module,
    progress: Progress,
    worker: Worker,
    tracker: Tracker,
) -> dict[str, Any]:
    """Train on every history `task.passes` times; return the epoch's point of the curve."""
    began = time.perf_counter()
    torch.manual_seed(job.seed * 100_003 + progress.epoch * worker.world + worker.rank)
    size = share_of(job.train.batch_size, worker.rank, worker.world)
    tables = worker.shard.iter_batches(batch_size=size * SHUFFLE_BATCHES, batch_format="pyarrow")
    rng = np.random.default_rng(torch.initial_seed())
    read = learners(tables, job, rng)
    drawn = draw_epoch(read, task.passes, job.model.max_history, job.known_before, rng)
    batches = minibatches(drawn, size, rng)
    point = train_epoch(job, task, loss, batches, progress, tracker)
    progress.epoch += 1
    return point | {"seconds": round(time.perf_counter() - began, 2)}


def _report(
    task: Task, phases: Sequence[Progress], best: bytes | None, is_best: bool
) -> bytes | None:
    """Report an epoch with its checkpoint; return the best weights so far, on rank 0."""
    # Not kept: whole, it may be large beside what a worker holds.
    rank = ray.train.get_context().get_world_rank()
    state = take_state(task, rank)
    best = tensors_to_bytes(state.model) if is_best else best
    report_epoch(state, phases, best, rank)
    return best


def _meet(progress: Progress, worker: Worker) -> None:
    """Go on with rank 0's progress on all workers: only it has seen the validation slice."""
    if worker.world > 1:
        shared = [asdict(progress)]
        distributed.broadcast_object_list(shared, src=0)
        progress.__dict__.update(shared[0])


@dataclass(frozen=True)
class Judge:
    """Slices of time that an epoch is judged on: what is chosen by, and what may be forgotten."""

    valid: list[Valid]
    earlier: list[Valid]

    @classmethod
    def load(cls, job: TrainJob) -> "Judge":
        """Read both from the store."""
        slices = (job.valid, job.earlier)
        most = job.train.max_valid_pairs
        valid, earlier = (
            load_valid(job.store, job.prepared, *days, most) if days else [] for days in slices
        )
        if job.newest_of is not None:
            valid = load_newest(job.store, job.newest_of, job.known_before, most)
        if job.is_of_ratings and not any(len(moment.rated[0]) for moment in valid):
            expected = "ratings in what epochs are judged by, for mse"
            mend = "make train.valid_days longer, or choose another objective"
            raise ConfigError(explain("train.objective", expected, "none", mend))
        return cls(valid, earlier)


def _judge(
    job: TrainJob, task: Task, judge: Judge | None, progress: Progress, point: dict[str, Any]
) -> bool:
    """Add an epoch to the curve and decide whether it is the last; return whether it is the best.

    A rank without a judge adds it and helps to encode: `_meet` brings what rank 0 found.
    """
    progress.curve.append({"epoch": progress.epoch, **point})
    if not job.is_validated:
        progress.best_epoch = progress.epoch
        progress.is_done |= progress.epoch >= job.epochs
        return False
    began = time.perf_counter()
    items = task.item_state()
    is_best = judge is not None and _judge_slices(job, task, items, judge, progress)
    progress.curve[-1]["valid_seconds"] = round(time.perf_counter() - began, 2)
    is_waiting = progress.epoch - progress.best_epoch >= job.train.patience
    progress.is_done |= is_waiting or progress.epoch >= job.epochs
    return is_best


def _judge_slices(
    job: TrainJob, task: Task, items: ItemState, judge: Judge, progress: Progress
) -> bool:
    """Add the slices' measures to the newest point; return whether it is the best so far."""
    recommender = task.loss.recommender
    found = judge_epoch(recommender, items, judge.valid, task.activity, job.prepared)
    point = progress.curve[-1]
    point |= {name: round(value, 5) for name, value in found.items()}
    if judge.earlier:
        earlier = judge_epoch(recommender, items, judge.earlier, task.activity, job.prepared)
        point["earlier_ndcg@10"] = round(earlier["ndcg@10"], 5)
    value = -found[RMSE] if job.is_of_ratings else found[job.train.stop_on]
    if progress.best_value is not None and value <= progress.best_value:
        return False
    progress.best_value, progress.best_epoch = value, progress.epoch
    progress.best_ndcg = found["ndcg@10"]
    return True
