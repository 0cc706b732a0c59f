"""An epoch on one worker: histories to batches, batches to steps.

tables = learners(shard.iter_batches(...), job, rng)
point = train_epoch(job, task, loss, minibatches(tables, 128, rng), progress, tracker)
"""

import contextlib
import itertools
import math
import resource
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, distributed, nn

from crossrec.data.replay import before, flatten, pad
from crossrec.data.stream import NOBODY
from crossrec.errors import CrossrecError, explain
from crossrec.model.inference import to_batch
from crossrec.model.objectives import Targets, gather_rows
from crossrec.model.recommender import HistoryBatch
from crossrec.schema import RATING, USER_ID, WEIGHT
from crossrec.train.continued import FIRST_DAY, SINCE, select_learners
from crossrec.train.progress import Progress
from crossrec.train.sharding import average_whole, is_bf16, own_gradients, world_size
from crossrec.train.task import Task, TrainJob
from crossrec.train.tracking import Tracker
from crossrec.train.windows import BY_EVENT, training_targets


def learners(
    tables: Iterable[pa.Table], job: TrainJob, rng: np.random.Generator
) -> Iterator[pa.Table]:
    """Yield the histories that learn: all, or under a start those `select_learners` takes.

    The latter with the day SINCE from which on their events are targets.
    """
    if job.start is None:
        yield from tables
        return
    for table in tables:
        histories = before(flatten(table), job.known_before)
        ends = histories.offsets[1:] - 1
        newest = np.full(len(ends), FIRST_DAY, np.int64)
        has_events = histories.lengths > 0
        newest[has_events] = histories.days[ends[has_events]]
        keep, since = select_learners(newest, job.start.known_before, job.train.replay, rng)
        yield table.append_column(SINCE, pa.array(since)).filter(pa.array(keep))


def share_of(batch_size: int, rank: int, world: int) -> int:
    """Return how many histories of a step a worker reads; all of them read `batch_size`.

    >>> [share_of(128, rank, 3) for rank in range(3)]
    [42, 43, 43]
    """
    return batch_size * (rank + 1) // world - batch_size * rank // world


def minibatches(
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


def idle_batch(domains: int) -> tuple[HistoryBatch, Targets]:
    """Return a batch without targets: its loss is 0, and it keeps workers in step."""
    nothing = torch.zeros(0, dtype=torch.int64)
    batch = HistoryBatch(
        torch.tensor([[-1, 0]]), torch.tensor([[domains, 0]]), torch.zeros(1, 2, dtype=torch.int32)
    )
    return batch, Targets(nothing, nothing, nothing, nothing, ratings_N=nothing.float())


def train_epoch(
    job: TrainJob,
    task: Task,
    loss: nn.Module,
    batches: Iterable[pa.Table],
    progress: Progress,
    tracker: Tracker,
) -> dict[str, float]:
    """Take a step a batch; return the epoch's means over the workers.

    All workers take as many steps as the one with the most batches: Ray Data deals out equal
    shares, but whoever has none left would keep the others waiting for ever.

    Returns:
        loss: of a target. learning_rate: of the head in the last step. gradient_norm: mean over
        steps, before clipping. workers: how many took part. histories: read by all of them, also
        per second; tokens_per_s, items_read: by a backbone that learns. memory_mb,
        gpu_memory_mb: most that this worker has ever held.
        waiting: share of the time in which this worker waited for its batch.

    Raises:
        CrossrecError: the training diverged; nothing of the epoch is kept.
    """
    task.loss.train()
    # The same on all workers and at a replay of the epoch: all draw the same negatives.
    generator = torch.Generator().manual_seed(job.seed * 100_003 + progress.epoch)
    totals = torch.zeros(5, dtype=torch.float64)
    norms, waited, began = [], 0.0, time.perf_counter()
    waiting = iter(batches)
    while True:
        asked_at = time.perf_counter()
        table = next(waiting, None)
        parts = to_parts(job, table)
        waited += time.perf_counter() - asked_at
        count = sum(targets.weight for _, targets in parts)
        asked, busy = sum_over_workers(
            torch.tensor([count, float(table is not None)], dtype=torch.float64)
        ).tolist()
        if not busy:
            break
        tokens, items = task.tokens_read, task.items_read
        summed = add_gradients(task, loss, parts, asked or 1.0, generator)
        norms.append(task.step(progress.step, progress.epoch))
        progress.step += 1
        _check_finite(norms[-1], progress)
        read = 0 if table is None else pc.sum(pc.not_equal(table[USER_ID], NOBODY)).as_py()
        tokens, items = task.tokens_read - tokens, task.items_read - items
        totals += torch.tensor([summed, count, read, tokens, items])
        tracker.step(
            progress.step,
            {
                "loss": summed / (count or 1.0),
                "learning_rate": _rate(task),
                "gradient_norm": norms[-1],
            },
        )
        if job.train.max_steps is not None and progress.step >= job.train.max_steps:
            progress.is_done = True
            break
    seconds = max(time.perf_counter() - began, 1e-9)
    return _point(sum_over_workers(totals), seconds) | {
        "learning_rate": _rate(task),
        "gradient_norm": round(float(np.mean(norms)), 4) if norms else 0.0,
        "waiting": round(waited / seconds, 4),
        "workers": world_size(),
        **memory(task.device),
    }


def _check_finite(norm: float, progress: Progress) -> None:
    if not math.isfinite(norm):
        where = f"training, epoch {progress.epoch + 1}, step {progress.step}"
        mend = "it diverged: lower train.learning_rate or train.clip_norm"
        raise CrossrecError(explain(where, "finite gradients", f"a norm of {norm}", mend))


def _rate(task: Task) -> float:
    return float(f"{task.optimizer.param_groups[0]['lr']:.3g}")


def _point(totals: Tensor, seconds: float) -> dict[str, float]:
    """Return the loss and the throughput of all workers."""
    total, count, histories, tokens, items = totals.tolist()
    point = {
        "loss": round(total / (count or 1.0), 5),
        "histories": int(histories),
        "histories_per_s": round(histories / seconds, 1),
    }
    point |= {"tokens_per_s": round(tokens / seconds)} if tokens else {}
    return point | ({"items_read": int(items)} if items else {})


def memory(device: torch.device) -> dict[str, float]:
    """Return the most that this process has held, in MB of main memory and of a GPU's."""
    # Linux counts in KiB.
    found = {"memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)}
    if device.type == "cuda":
        found["gpu_memory_mb"] = round(torch.cuda.max_memory_allocated(device) / 2**20)
    return dict(found)


def add_gradients(
    task: Task,
    loss: nn.Module,
    parts: Sequence[tuple[HistoryBatch, Targets]],
    asked: float,
    generator: torch.Generator,
) -> float:
    """Add up the gradients of a step's parts; return this worker's summed loss.

    asked: weight of the targets of all workers and parts, over which the loss is a mean.
    """
    # As of one batch: all parts see the targets of all workers and parts, and the same negatives.
    chosen_M = gather_rows(torch.cat([part.rows_N for _, part in parts]).to(task.device))
    before_draws = generator.get_state()
    total = 0.0
    for number, (batch, targets) in enumerate(parts, 1):
        # Workers exchange gradients once, with the last part.
        is_last = number == len(parts)
        with contextlib.nullcontext() if is_last else own_gradients(loss):
            generator.set_state(before_draws)
            here = batch.to(task.device), targets.to(task.device)
            with autocast(task.device, task.train.precision):
                summed: Tensor = loss(*here, generator, chosen_M)
            # Workers' gradients are averaged; so that is the mean over the global batch's targets.
            mean = summed * world_size() / asked
            (mean + task.penalty() if is_last else mean).backward()
        total += summed.item()
    average_whole(loss)
    return total


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Return the context of a forward pass in `train.precision`."""
    is_enabled = is_bf16(device, precision)
    return torch.autocast(device.type, torch.bfloat16, enabled=is_enabled)


def to_parts(job: TrainJob, table: pa.Table | None) -> list[tuple[HistoryBatch, Targets]]:
    """Turn a batch of histories into tensors, `accumulate` parts of nearly equal size."""
    if table is None:
        return [idle_batch(len(job.bounds))] * job.train.accumulate
    cuts = np.linspace(0, table.num_rows, job.train.accumulate + 1).astype(int).tolist()
    return [_to_tensors(job, table.slice(a, b - a)) for a, b in itertools.pairwise(cuts)]


def _to_tensors(job: TrainJob, table: pa.Table) -> tuple[HistoryBatch, Targets]:
    """Turn histories into tensors; a batch with nothing to predict becomes an idle one."""
    if not table.num_rows:
        return idle_batch(len(job.bounds))
    histories = before(flatten(table), job.known_before)
    padded = pad(histories, job.model.max_history)
    by_event = table[BY_EVENT].to_numpy() if BY_EVENT in table.column_names else None
    users, sources, columns = training_targets(padded, histories, by_event)
    if SINCE in table.column_names:
        is_asked = padded.days[users, columns] >= table[SINCE].to_numpy()[users]
        users, sources, columns = users[is_asked], sources[is_asked], columns[is_asked]
    if job.is_of_ratings:
        is_given = ~np.isnan(padded.values[RATING][users, columns])
        users, sources, columns = users[is_given], sources[is_given], columns[is_given]
    if not len(users):
        return idle_batch(len(job.bounds))
    elapsed = np.where(sources > 0, padded.days[users, columns] - padded.days[users, sources], 0)
    where = (users, sources, padded.rows[users, columns], elapsed)
    users_N, sources_N, rows_N, elapsed_N = (
        torch.from_numpy(array.astype(np.int64)) for array in where
    )
    weights_N, ratings_N = (
        torch.from_numpy(padded.values[name][users, columns]) if name in padded.values else None
        for name in (WEIGHT, RATING)
    )
    targets = Targets(users_N, sources_N, rows_N, elapsed_N, weights_N, ratings_N)
    return to_batch(padded, job.bounds), targets


def sum_over_workers(values: Tensor) -> Tensor:
    """Return the sum over the workers."""
    if world_size() > 1:
        # NCCL knows GPUs alone: this worker's is the current one.
        values = values.to("cuda" if distributed.get_backend() == "nccl" else "cpu")
        distributed.all_reduce(values)
    return values.cpu()
