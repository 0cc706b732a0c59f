from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from crossrec.schema import HISTORIES, US_PER_DAY
from crossrec.train import loop
from crossrec.train.loop import _minibatches, _train_epoch
from crossrec.train.progress import Progress
from crossrec.train.task import build_task
from tests.train.test_task import CPU, make_job


def histories(lengths: list[int]) -> pa.Table:
    """Users u0, u1, ... with so many events, of rows 0, 1, 4 in turn, one a day."""
    rows = [[(0, 1, 4)[day % 3] for day in range(length)] for length in lengths]
    times = [[day * US_PER_DAY for day in range(length)] for length in lengths]
    users = [f"u{user}" for user in range(len(lengths))]
    return pa.table([users, rows, times], schema=HISTORIES)


def test_minibatches_hold_every_user_once() -> None:
    tables = [histories([3, 1, 9, 2, 5, 4, 8]), histories([1])]
    batches = list(_minibatches(tables, 3, np.random.default_rng(17)))
    assert sorted(batch.num_rows for batch in batches) == [1, 1, 3, 3]
    users = [user for batch in batches for user in batch["user_id"].to_pylist()]
    assert sorted(users) == sorted([*(f"u{user}" for user in range(7)), "u0"])


def test_epoch_of_a_worker_lasts_as_long_as_that_of_the_others(
    tmp_path: Path, tiny_backbone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One batch here, three at another worker: two steps are taken with an idle batch."""
    of_other = [[5, 1], [4, 1], [3, 1]]

    def sum_with_other(values: Tensor) -> Tensor:
        return values + torch.tensor(of_other.pop(0) if of_other else [0, 0])

    monkeypatch.setattr(loop, "_sum", sum_with_other)
    job = make_job(tmp_path, tiny_backbone)
    task = build_task(job, CPU)
    progress = Progress("select")
    mean = _train_epoch(job, task, task.loss, [histories([4, 3])], progress)
    assert progress.step == 3
    assert 0 < mean < 10


def test_epoch_without_any_history_takes_no_step(tmp_path: Path, tiny_backbone: str) -> None:
    job = make_job(tmp_path, tiny_backbone)
    task = build_task(job, CPU)
    progress = Progress("select")
    assert _train_epoch(job, task, task.loss, [], progress) == 0
    assert progress.step == 0
