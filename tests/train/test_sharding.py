"""Two workers in two processes, by each strategy, beside one worker with the same batches."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import spawn

from crossrec.data.histories import histories_path
from crossrec.model.checkpoint import load_model, load_model_backbone, tensors_below
from crossrec.storage import Store
from crossrec.train import adapt as adapting
from crossrec.train.adapt import AdaptJob, build_adapt
from crossrec.train.continued import Anchor
from crossrec.train.epoch import add_gradients, to_parts
from crossrec.train.export import Phase, export_phase
from crossrec.train.progress import Progress, read_checkpoint, take_state, write_checkpoint
from crossrec.train.sharding import gathered, join_workers, place_among_workers
from crossrec.train.task import TrainJob, build_task
from crossrec.train.tracking import Tracker
from tests.group import with_group
from tests.train.test_epoch import histories, settings
from tests.train.test_task import CPU, make_job, with_images

BATCHES = ([4, 3, 1, 2, 5, 3], [2, 5, 4, 3, 1, 2], [3, 2], [1, 4, 2, 2])
"""Lengths of the users' histories, by step; rank 0 alone has those of the third."""

ADAPTATIONS = ("mlm", "contrastive")

CUT = 2
"""Steps before the checkpoint."""

# SGD: it makes no more of a rounding error than it is.
PLAIN: dict[str, Any] = {
    "optimizer": "sgd", "backbone_learning_rate": 0.1, "learning_rate": 0.1, "layer_decay": 0.5,
    "weight_decay": 0.1, "clip_norm": 0.1,
}  # fmt: skip

CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "all": ("fsdp", {"trainable": "all"}, PLAIN),
    "adamw": ("fsdp", {"trainable": "all"}, {"backbone_learning_rate": 1e-3}),
    "parts": (
        "fsdp",
        {"trainable": "all"},
        {**PLAIN, "accumulate": 2, "gradient_checkpointing": True},
    ),
    "top": ("fsdp", {"trainable": "top", "top_layers": 1}, PLAIN),
    "lora": ("fsdp", {"adapter": "lora", "adapter_rank": 2}, PLAIN),
    "bottleneck": ("fsdp", {"adapter": "bottleneck", "adapter_rank": 2}, PLAIN),
    "bce": ("fsdp", {"trainable": "all"}, {**PLAIN, "objective": "bce"}),
    "ddp-parts": (
        "ddp",
        {"trainable": "all"},
        {**PLAIN, "accumulate": 2, "full_softmax_items": 0, "negatives": 1},
    ),
    "ddp-images": ("ddp", {"image_trainable": "all"}, {**PLAIN, "accumulate": 2}),
    "ddp-adalora": ("ddp", {"adapter": "adalora", "adapter_rank": 2}, {**PLAIN, "epochs": 1}),
}


ROUGH = ("fsdp", {"trainable": "all"}, {**PLAIN, "precision": "bf16"})
"""Layers are gathered in bf16: near what one worker has in fp32, and not the same."""


def batch_of(step: int, rank: int, world: int) -> pa.Table | None:
    """A worker's share of a step's histories; None where it has none."""
    table = histories(BATCHES[step])
    if world == 1:
        return table
    if step == 2:
        return None if rank else table
    half = table.num_rows // 2
    return table.slice(rank * half, half)


def train(job: TrainJob, folder: Path, name: str, saved: str | None = None) -> None:
    """Take all steps, or those after a checkpoint, on all workers; rank 0 writes what came of it.

    saved: name of the run that wrote the checkpoint.
    """
    torch.manual_seed(1)
    rank, world = place_among_workers()
    task = build_task(job, CPU)
    loss = join_workers(task.loss, CPU)
    task.anchor = Anchor(task.optimizer, 0.5)
    task.loss.eval()  # no dropout: parts would draw others
    found = read_checkpoint(Store(str(folder)), saved) if saved is not None else None
    if found is not None:
        found.restore(task)
    facts: dict[str, Any] = {"losses": [], "norms": []}
    for step in range(CUT if found is not None else 0, len(BATCHES)):
        asked = sum(part.weight for _, part in to_parts(job, histories(BATCHES[step])))
        parts = to_parts(job, batch_of(step, rank, world))
        generator = torch.Generator().manual_seed(step)
        total = torch.tensor(add_gradients(task, loss, parts, asked, generator))
        if not step:
            grads = {n: p.grad for n, p in task.loss.named_parameters() if p.grad is not None}
            _write(gathered(grads, not rank), folder / f"{name}.gradients", rank)
        if world > 1:
            distributed.all_reduce(total)
        facts["losses"].append(total.item() / asked)
        facts["norms"].append(task.step(step, 0))
        if step == CUT - 1:
            state = take_state(task, rank)
            if not rank:
                (folder / name / "checkpoint_1").mkdir(parents=True)
                write_checkpoint(folder / name / "checkpoint_1", state, [Progress("select")], None)
    task.loss.train()
    _write({"vectors": task.item_state().vectors_IW}, folder / f"{name}.vectors", rank)
    weights = take_state(task, rank).model
    _write(weights, folder / f"{name}.weights", rank)
    if not rank:
        phase = Phase("select", replace(job, store=Store(str(folder))), f"models/{name}", {})
        export_phase(phase, task, weights, Progress("select"))
    held = 0
    for part in task.texts.backbone.parameters() if task.texts is not None else ():
        moments = task.optimizer.state.get(part, {}).values()
        held += sum(_numel(own) for own in (part, *moments) if isinstance(own, Tensor))
    (folder / f"{name}.{rank}.json").write_text(json.dumps(facts | {"held": held}))


def _numel(part: Tensor) -> int:
    return part.to_local().numel() if isinstance(part, DTensor) else part.numel()


def _write(tensors: Mapping[str, Tensor], path: Path, rank: int) -> None:
    if not rank:
        save_file({name: part.contiguous() for name, part in tensors.items()}, path)


def work(rank: int, folder: Path, jobs: dict[str, TrainJob]) -> None:
    with_group(rank, str(folder), lambda: learn(rank, folder, jobs))


def learn(rank: int, folder: Path, jobs: dict[str, TrainJob]) -> None:
    for name, job in jobs.items():
        train(job, folder, f"two-{name}")
    train(jobs["adamw"], folder, "two-after-one", "one-adamw")
    for kind in ADAPTATIONS:
        for strategy in ("ddp", "fsdp"):
            adapt(settings(jobs["all"], strategy=strategy, adapt=kind), folder, kind, rank)


def adapt(job: TrainJob, folder: Path, kind: str, rank: int) -> None:
    """Adapt a backbone for two steps; rank 0 writes what came of it."""
    train = job.train.model_copy(update={"adapt_steps": 2, "adapt_learning_rate": 1e-3})
    name = f"{kind}-{train.strategy}"
    adapted = AdaptJob(job.store, job.prepared, job.source, train, 17, 10, f"backbones/{name}")
    task, progress = build_adapt(adapted, CPU), Progress("adapt")
    point = adapting._run_round(adapted, task, progress, rank, Tracker([]))
    weights = take_state(task, rank).model
    if not rank:
        adapting._export(adapted, task, weights, progress)
        (folder / f"{name}.json").write_text(json.dumps(point))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: str) -> Path:
    """What two workers, and one, made of each case."""
    folder = tmp_path_factory.mktemp("sharding")
    base = with_images(make_job(folder, tiny_backbone), folder)
    jobs = {
        name: settings(base, model, strategy=strategy, **train)
        for name, (strategy, model, train) in {**CASES, "bf16": ROUGH}.items()
    }
    base.store.write_parquet(histories_path(base.prepared.folder, 0), histories([3, 2]))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name in CASES:
        train(settings(jobs[name], accumulate=1), folder, f"one-{name}")
    spawn(work, (folder, jobs), nprocs=2)
    train(settings(jobs["adamw"], strategy="ddp"), folder, "one-after-two", "two-adamw")
    torch.set_num_threads(threads)
    return folder


def facts_of(folder: Path, name: str, rank: int = 0) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((folder / f"{name}.{rank}.json").read_text())
    return facts


def assert_near(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        # Attention does not change with it: its gradient is rounding alone, of which AdamW makes
        # whole steps.
        if not name.endswith("key.bias"):
            torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5, msg=name)


# Two processes that import all there is.
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("case", CASES)
def test_two_workers_learn_what_one_does_with_the_whole_batch(folder: Path, case: str) -> None:
    for kind in ("gradients", "weights", "vectors"):
        found, expected = (load_file(folder / f"{n}-{case}.{kind}") for n in ("two", "one"))
        assert_near(found, expected)
    two, one = (facts_of(folder, f"{name}-{case}") for name in ("two", "one"))
    for name in ("losses", "norms"):
        np.testing.assert_allclose(two[name], one[name], rtol=1e-4, atol=1e-6)


def test_each_worker_holds_half_of_what_it_shares(folder: Path) -> None:
    whole = facts_of(folder, "one-adamw")["held"]
    shares = [facts_of(folder, "two-adamw", rank)["held"] for rank in range(2)]
    assert 0.45 * whole < min(shares) <= max(shares) < 0.55 * whole
    # AdamW's step counts of each tensor are no shares.
    assert sum(shares) <= whole + 100
    one, two = (facts_of(folder, f"{name}-ddp-parts")["held"] for name in ("one", "two"))
    assert one == two


@pytest.mark.parametrize("run", ["two-after-one", "one-after-two"])
def test_a_checkpoint_serves_any_number_of_workers_and_strategy(folder: Path, run: str) -> None:
    """Taken by one worker and gone on from by two under fsdp, and the other way round."""
    undisturbed = "two-adamw"
    assert_near(load_file(folder / f"{run}.weights"), load_file(folder / f"{undisturbed}.weights"))
    np.testing.assert_allclose(
        facts_of(folder, run)["losses"], facts_of(folder, undisturbed)["losses"][CUT:], rtol=1e-4
    )


def test_a_checkpoint_of_shares_is_as_one_of_one_worker(folder: Path) -> None:
    names = [f"{name}-adamw/checkpoint_1" for name in ("two", "one")]
    found, expected = (load_file(folder / name / "model.safetensors") for name in names)
    assert_near(found, expected)
    assert {path.name for path in (folder / names[0]).iterdir()} == {
        "model.safetensors", "optimizer.pt", "progress.json", "checksums.json",
    }  # fmt: skip


@pytest.mark.parametrize("case", ["all", "lora", "bottleneck"])
def test_a_model_of_shares_is_exported_whole(folder: Path, case: str) -> None:
    store, name = Store(str(folder)), f"models/two-{case}"
    weights = load_file(folder / f"two-{case}.weights")
    model = load_model(store, name)
    for part, tensor in tensors_below("recommender.", weights).items():
        assert model.recommender.state_dict()[part].equal(tensor)
    backbone = load_model_backbone(store, name, model.settings)
    expected = load_model_backbone(store, f"models/one-{case}", model.settings)
    assert_near(dict(backbone.state_dict()), dict(expected.state_dict()))


def test_bf16_gathers_layers_in_it_and_learns_in_fp32(folder: Path) -> None:
    names = ("two-bf16.gradients", "one-all.gradients", "two-bf16.weights", "one-all.weights")
    found, exact, weights, expected = (load_file(folder / name) for name in names)
    assert {part.dtype for part in (*found.values(), *weights.values())} == {torch.float32}
    name = "text_of.texts.backbone.model.encoder.layer.0.output.dense.weight"
    assert not found[name].equal(exact[name])
    torch.testing.assert_close(found[name], exact[name], rtol=0.2, atol=0.02)
    torch.testing.assert_close(weights[name], expected[name], rtol=0.2, atol=0.02)


@pytest.mark.parametrize("kind", ADAPTATIONS)
def test_an_adapted_backbone_is_the_same_by_each_strategy(folder: Path, kind: str) -> None:
    points = [json.loads((folder / f"{kind}-{name}.json").read_text()) for name in ("ddp", "fsdp")]
    assert points[0]["loss"] == pytest.approx(points[1]["loss"], rel=1e-5)
    assert points[0]["gradient_norm"] == pytest.approx(points[1]["gradient_norm"], rel=1e-3)
    one, other = (
        load_file(folder / f"backbones/{kind}-{name}/model.safetensors") for name in ("ddp", "fsdp")
    )
    assert_near(other, one)
