from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from crossrec.errors import CrossrecError
from crossrec.schema import HISTORIES, US_PER_DAY
from crossrec.train import epoch
from crossrec.train.continued import Start
from crossrec.train.epoch import (
    add_gradients,
    autocast,
    learners,
    minibatches,
    share_of,
    to_parts,
    train_epoch,
)
from crossrec.train.progress import Progress
from crossrec.train.task import TrainJob, build_task
from crossrec.train.tracking import Tracker, Values
from tests.train.test_task import CPU, make_job

QUIET = Tracker([])


def histories(lengths: list[int]) -> pa.Table:
    """Users u0, u1, ... with so many events, of rows 0, 1, 4 in turn, one a day."""
    rows = [[(0, 1, 4)[day % 3] for day in range(length)] for length in lengths]
    times = [[day * US_PER_DAY for day in range(length)] for length in lengths]
    users = [f"u{user}" for user in range(len(lengths))]
    return pa.table([users, rows, times], schema=HISTORIES)


def test_minibatches_hold_every_user_once() -> None:
    tables = [histories([3, 1, 9, 2, 5, 4, 8]), histories([1])]
    batches = list(minibatches(tables, 3, np.random.default_rng(17)))
    assert sorted(batch.num_rows for batch in batches) == [1, 1, 3, 3]
    users = [user for batch in batches for user in batch["user_id"].to_pylist()]
    assert sorted(users) == sorted([*(f"u{user}" for user in range(7)), "u0"])


@pytest.mark.parametrize("world", [1, 2, 3, 5, 7])
def test_shares_of_any_number_of_workers_are_the_batch(world: int) -> None:
    shares = [share_of(7, rank, world) for rank in range(world)]
    assert sum(shares) == 7
    assert max(shares) - min(shares) <= 1


def test_epoch_of_a_worker_lasts_as_long_as_that_of_the_others(
    tmp_path: Path, tiny_backbone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One batch here, three at another worker: two steps are taken with an idle batch."""
    of_other = [[5, 1], [4, 1], [3, 1]]

    def sum_with_other(values: Tensor) -> Tensor:
        return values + torch.tensor(of_other.pop(0) if of_other else [0] * len(values))

    monkeypatch.setattr(epoch, "sum_over_workers", sum_with_other)
    job = make_job(tmp_path, tiny_backbone)
    task = build_task(job, CPU)
    progress = Progress("select")
    point = train_epoch(job, task, task.loss, [histories([4, 3])], progress, QUIET)
    assert progress.step == 3
    assert 0 < point["loss"] < 10


def test_epoch_without_any_history_takes_no_step(tmp_path: Path, tiny_backbone: str) -> None:
    job = make_job(tmp_path, tiny_backbone)
    task = build_task(job, CPU)
    progress = Progress("select")
    assert train_epoch(job, task, task.loss, [], progress, QUIET)["loss"] == 0
    assert progress.step == 0


def settings(job: TrainJob, model: dict[str, Any] | None = None, **train: Any) -> TrainJob:
    """The job with some settings changed."""
    return replace(
        job,
        model=job.model.model_copy(update=model or {}),
        train=job.train.model_copy(update=train),
    )


def gradients(job: TrainJob) -> dict[str, Tensor]:
    """Return the gradients of a step on six users, in as many parts as the job says."""
    torch.manual_seed(1)
    task = build_task(job, CPU)
    task.loss.eval()  # no dropout: parts would draw others
    parts = to_parts(job, histories([4, 3, 1, 2, 5, 3]))
    asked = sum(len(targets.rows_N) for _, targets in parts)
    add_gradients(task, task.loss, parts, asked, torch.Generator())
    return {name: p.grad for name, p in task.loss.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "train", [{}, {"full_softmax_items": 0, "negatives": 1}, {"objective": "contrastive"}]
)
def test_accumulated_gradients_are_those_of_the_whole_batch(
    tmp_path: Path, tiny_backbone: str, train: dict[str, Any]
) -> None:
    job = settings(make_job(tmp_path, tiny_backbone), **train)
    whole, parts = gradients(job), gradients(settings(job, accumulate=4))
    assert len(to_parts(settings(job, accumulate=4), histories([4, 3, 1, 2, 5, 3]))) == 4
    assert whole.keys() == parts.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-4, atol=1e-6)


def test_bf16_changes_products_and_keeps_weights_and_loss(
    tmp_path: Path, tiny_backbone: str
) -> None:
    job = make_job(tmp_path, tiny_backbone)
    exact, rough = gradients(job), gradients(settings(job, precision="bf16"))
    assert {part.dtype for part in rough.values()} == {torch.float32}
    name = "recommender.adaptor.weight"
    assert not rough[name].equal(exact[name])
    torch.testing.assert_close(rough[name], exact[name], rtol=0.2, atol=0.02)


@pytest.mark.parametrize(("precision", "expected"), [("auto", False), ("bf16", True)])
def test_precision_on_a_cpu_is_fp32_unless_asked(precision: str, expected: bool) -> None:
    with autocast(CPU, precision):
        assert torch.is_autocast_enabled("cpu") == expected


def test_step_is_no_longer_than_the_norm_allows(tmp_path: Path, tiny_backbone: str) -> None:
    job = settings(
        make_job(tmp_path, tiny_backbone),
        optimizer="sgd", momentum=0.0, learning_rate=1.0, weight_decay=0.0, clip_norm=1e-3,
    )  # fmt: skip
    task = build_task(job, CPU)
    before = [part.detach().clone() for part in task.parameters]
    train_epoch(job, task, task.loss, [histories([4, 3])], Progress("select"), QUIET)
    moved = torch.stack([(a - b).norm() for a, b in zip(task.parameters, before, strict=True)])
    assert 0 < moved.norm() <= 1.01e-3


def test_a_training_that_diverges_ends_with_what_to_do(tmp_path: Path, tiny_backbone: str) -> None:
    job = settings(make_job(tmp_path, tiny_backbone), learning_rate=1e30, clip_norm=1e30)
    task, progress = build_task(job, CPU), Progress("select")
    told = r"epoch 1, step \d: expected finite gradients, found a norm of (nan|inf); it diverged"
    with pytest.raises(CrossrecError, match=told):
        train_epoch(job, task, task.loss, [histories([4, 3])] * 4, progress, QUIET)


def test_layers_below_learn_once_they_are_thawed(tmp_path: Path, tiny_backbone: str) -> None:
    job = settings(make_job(tmp_path, tiny_backbone, "all"), unfreeze_epochs=1)
    task, progress = build_task(job, CPU), Progress("select")
    assert task.texts is not None
    layers: Any = task.texts.backbone.model.encoder.layer  # type: ignore[union-attr]
    weights = [layer.output.dense.weight for layer in layers]
    for number, expected in enumerate(([False, True], [True, True])):
        before = [part.detach().clone() for part in weights]
        progress.epoch = number
        train_epoch(job, task, task.loss, [histories([4, 3])], progress, QUIET)
        moved = [not part.equal(was) for part, was in zip(weights, before, strict=True)]
        assert moved == expected


def count_calls(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the layers that a step on the job calls, in order."""
    from transformers.models.bert.modeling_bert import BertAttention

    calls: list[str] = []
    forward = BertAttention.forward

    def counted(self: Any, *arguments: Any, **keys: Any) -> Any:
        calls.append("attention")
        return forward(self, *arguments, **keys)

    monkeypatch.setattr(BertAttention, "forward", counted)
    torch.manual_seed(1)
    task = build_task(job, CPU)
    task.loss.train()
    add_gradients(task, task.loss, to_parts(job, histories([4, 3])), 7, torch.Generator())
    return calls


def test_checkpointed_activations_are_computed_again(
    tmp_path: Path, tiny_backbone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path, tiny_backbone, "all")
    once = count_calls(job, monkeypatch)
    monkeypatch.undo()
    twice = count_calls(settings(job, gradient_checkpointing=True), monkeypatch)
    assert len(twice) == 2 * len(once) > 0


def test_compile_is_of_what_runs_at_every_step(tmp_path: Path, tiny_backbone: str) -> None:
    task = build_task(settings(make_job(tmp_path, tiny_backbone, "all"), compile=True), CPU)
    assert task.texts is not None
    for module in (task.loss.recommender.encoder, task.texts.backbone.model):
        assert module._compiled_call_impl is not None


@pytest.mark.parametrize("key", ["compile", "gradient_checkpointing"])
def test_what_saves_time_or_memory_leaves_the_gradients(
    tmp_path: Path, tiny_backbone: str, key: str
) -> None:
    job = make_job(tmp_path, tiny_backbone, "all" if key == "gradient_checkpointing" else "head")
    changed: dict[str, Any] = {key: True}
    plain, other = gradients(job), gradients(settings(job, None, **changed))
    for name, gradient in plain.items():
        torch.testing.assert_close(other[name], gradient, rtol=1e-3, atol=1e-5)


def test_learners_of_a_continued_training_have_new_events(
    tmp_path: Path, tiny_backbone: str
) -> None:
    job = replace(
        settings(make_job(tmp_path, tiny_backbone), replay=0.0), start=Start("models/x", 3)
    )
    tables = [histories([2, 5, 4]), histories([3])]
    found = list(learners(tables, job, np.random.default_rng(1)))
    assert [table["user_id"].to_pylist() for table in found] == [["u1", "u2"], []]
    ((_, targets),) = to_parts(job, found[0])
    # u1 has events on days 0 to 4, u2 on days 0 to 3; those from day 3 on are new.
    assert len(targets.rows_N) == 3


def test_without_a_start_everyone_learns(tmp_path: Path, tiny_backbone: str) -> None:
    job = make_job(tmp_path, tiny_backbone)
    tables = [histories([2, 5, 4])]
    assert list(learners(tables, job, np.random.default_rng(1))) == tables


def test_an_epoch_tells_of_its_steps_and_how_fast_it_went(
    tmp_path: Path, tiny_backbone: str
) -> None:
    job = settings(make_job(tmp_path, tiny_backbone, "all"))
    heard = Heard()
    task = build_task(job, CPU)
    point = train_epoch(
        job, task, task.loss, [histories([4, 3])] * 10, Progress("select"), Tracker([heard])
    )
    (step,) = heard.points
    assert step == 10
    assert heard.points[step].keys() == {"step/loss", "step/learning_rate", "step/gradient_norm"}
    assert point["histories"] == 20
    assert point["histories_per_s"] > 0
    # At least four tokens a text: what it begins and ends with, and two letters.
    assert point["tokens_per_s"] > 4 * 10 * point["histories_per_s"] / point["histories"]
    assert point["memory_mb"] > 50


def test_a_frozen_backbone_reads_no_tokens(tmp_path: Path, tiny_backbone: str) -> None:
    job = make_job(tmp_path, tiny_backbone)
    task = build_task(job, CPU)
    point = train_epoch(job, task, task.loss, [histories([4, 3])], Progress("select"), QUIET)
    assert "tokens_per_s" not in point


class Heard:
    """Keeps what a tracker passes on."""

    def __init__(self) -> None:
        self.points: dict[int, Values] = {}

    def write(self, step: int, values: Values) -> None:
        self.points[step] = values

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass
