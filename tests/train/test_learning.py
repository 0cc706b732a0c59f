"""A model of images that learns, beside texts that stay as they are or learn too."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from crossrec.data.histories import Prepared
from crossrec.data.imagefile import fetch_images
from crossrec.errors import ConfigError
from crossrec.model.backbone import weights_digest
from crossrec.model.source import BackboneSource
from crossrec.model.vision import encode_images, load_vision, vision_digest
from crossrec.storage import Store
from crossrec.train.continued import Start
from crossrec.train.export import Phase, export_phase
from crossrec.train.learning import LearningImages
from crossrec.train.progress import Progress, read_checkpoint, take_state, write_checkpoint
from crossrec.train.task import Task, TrainJob, build_task
from tests.pictures import make_resnet, make_vit, picture, read_alone, save_model, store_pictures
from tests.train.test_epoch import gradients, settings
from tests.train.test_task import CPU, DOMAINS, PICTURES, make_job, take_step, with_images

ROWS = torch.arange(5)
TEXT_WIDTH = 32


def deep_vit(folder: Path) -> str:
    return make_vit(folder, num_hidden_layers=2)


def make_learning(
    folder: Path,
    weights: str,
    make: Callable[[Path], str] = deep_vit,
    **model: Any,
) -> TrainJob:
    """The items of `make_job` with PICTURES, of which a model of images learns."""
    job = with_images(make_job(folder, weights), folder, make(folder / "vision"))
    return settings(job, {"image_trainable": "all", "top_layers": 1, **model})


def vision_of(task: Task) -> nn.Module:
    assert task.images is not None
    return task.images.backbone.model


def copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: part.clone() for name, part in module.state_dict().items()}


@pytest.mark.parametrize(
    ("make", "top"), [(deep_vit, "layers.1."), (make_resnet, "encoder.stages.1.")]
)
@pytest.mark.parametrize("image_trainable", ["head", "top", "all"])
@pytest.mark.parametrize("trainable", ["head", "top"])
def test_a_step_moves_what_is_to_learn_and_nothing_else(
    tmp_path: Path,
    tiny_backbone: str,
    make: Callable[[Path], str],
    top: str,
    image_trainable: str,
    trainable: str,
) -> None:
    learn = {"image_trainable": image_trainable, "trainable": trainable}
    job = make_learning(tmp_path, tiny_backbone, make, **learn)
    task = build_task(job, CPU)
    assert (task.images is None, task.texts is None) == (
        image_trainable == "head",
        trainable == "head",
    )
    vectors = task.loss.text_of(ROWS).detach().clone()
    torch.testing.assert_close(vectors, task.vectors_IT)
    weights = copied(vision_of(task)) if task.images is not None else {}
    take_step(task)
    after_step = copied(vision_of(task)) if task.images is not None else {}
    moved = {name for name, part in weights.items() if not part.equal(after_step[name])}
    statistics = {name for name in weights if "running_" in name or "num_batches" in name}
    assert bool(statistics) == (make is make_resnet and image_trainable != "head")
    learns = set(weights) - statistics
    if image_trainable == "top":
        learns = {name for name in learns if name.startswith(top)}
    # Attention does not change with the bias of its keys.
    assert learns >= moved >= {name for name in learns if not name.endswith("bias")}
    after = task.loss.text_of(ROWS).detach()
    assert after[:, :TEXT_WIDTH].equal(vectors[:, :TEXT_WIDTH]) == (trainable == "head")
    assert after[:, TEXT_WIDTH:].equal(vectors[:, TEXT_WIDTH:]) == (image_trainable == "head")
    # Items without an image, and without a text, stay without.
    assert not after[2, TEXT_WIDTH:].any()
    assert not after[1, :TEXT_WIDTH].any()


@pytest.mark.parametrize("make", [make_vit, make_resnet])
def test_the_whole_catalogue_is_as_the_weights_are_now(
    tmp_path: Path, tiny_backbone: str, make: Callable[[Path], str]
) -> None:
    task = build_task(make_learning(tmp_path, tiny_backbone, make), CPU)
    before = task.item_state().vectors_IW
    take_step(task)
    assert task.learning is not None
    task.loss.train()
    whole = task.learning.whole()
    # An image has one vector, in training too, and whatever is in its batch.
    torch.testing.assert_close(whole, task.loss.text_of(ROWS).detach(), rtol=0, atol=1e-5)
    alone = torch.cat([task.loss.text_of(ROWS[row : row + 1]).detach() for row in range(5)])
    torch.testing.assert_close(whole, alone, rtol=0, atol=1e-5)
    assert task.learning.images is not None
    found = encode_images(
        task.learning.images.backbone, [PICTURES.get(row, b"") for row in ROWS.tolist()]
    )
    np.testing.assert_allclose(whole[:, TEXT_WIDTH:].numpy(), found, atol=1e-5)
    assert not task.item_state().vectors_IW.equal(before)


def make_images(folder: Path, pictures: dict[int, bytes], **options: Any) -> LearningImages:
    store, prepared = Store(str(folder)), Prepared("prepared/x", "x", DOMAINS, 1, 100, 10, 5, 0)
    store_pictures(store, prepared, pictures)
    backbone = load_vision(make_vit(folder / "vit"))
    return LearningImages(backbone, fetch_images(store, prepared), **options)


def gradient(images: LearningImages, rows: list[int], weight: Tensor) -> dict[str, Tensor]:
    """Return what a weighted sum of the rows' vectors makes of every parameter."""
    images.zero_grad()
    (images(torch.tensor(rows)) * weight[: len(rows)]).sum().backward()
    found = {n: p.grad.clone() for n, p in images.named_parameters() if p.grad is not None}
    assert any(part.any() for part in found.values())
    return found


def test_an_image_that_items_share_is_encoded_once_with_the_gradients_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_images(tmp_path, PICTURES)
    weight = torch.randn(5, images.backbone.width)
    sizes: list[int] = []
    forward = type(images.backbone).forward

    def counted(self: Any, pixels: Tensor) -> Tensor:
        sizes.append(len(pixels))
        return forward(self, pixels)

    monkeypatch.setattr(type(images.backbone), "forward", counted)
    together = gradient(images, [0, 3, 4], weight)
    assert sizes == [2]  # rows 0 and 4 have the same picture
    first, second, third = (gradient(images, [row], weight[n:]) for n, row in enumerate((0, 3, 4)))
    for name, found in together.items():
        expected = first[name] + second[name] + third[name]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_few_images_at_a_time_give_the_same_gradients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crossrec.train.learning.IMAGES_A_BATCH", 2)
    plain = make_images(tmp_path, PICTURES)
    sparing = LearningImages(plain.backbone, plain.images, saves_memory=True)
    weight = torch.randn(5, plain.backbone.width)
    rows = [0, 1, 3, 4]
    expected = gradient(plain, rows, weight)
    calls: list[int] = []
    # Before, because the second pass ends where nothing more of it is needed.
    plain.backbone.register_forward_pre_hook(lambda _, given: calls.append(len(given[0])))
    for name, found in gradient(sparing, rows, weight).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-6)
    # Three images, in the forward pass and again in the backward pass.
    assert sorted(calls) == [1, 1, 2, 2]


def test_a_damaged_image_is_none_and_leaves_gradients_finite(tmp_path: Path) -> None:
    images = make_images(tmp_path, {0: b"broken", 3: picture((9, 99, 0))})
    found = images(ROWS)
    assert [bool(row.any()) for row in found] == [False, False, False, True, False]
    found.sum().backward()
    for rows in ([0], [1], [0, 1, 2]):
        images(torch.tensor(rows)).sum().backward()
    given = [part.grad for part in images.parameters() if part.grad is not None]
    assert given
    assert all(part.isfinite().all() for part in given)
    assert images.whole((0, 1))[3].any()


def test_without_any_image_there_is_nothing_to_learn_from(tmp_path: Path) -> None:
    images = make_images(tmp_path, {})
    assert not images(ROWS).any()
    assert not images.whole((0, 1)).any()


def test_workers_shares_of_the_catalogue_add_up_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crossrec.train.learning.IMAGES_A_BATCH", 1)
    images = make_images(tmp_path, PICTURES)
    shares = [images.whole((rank, 2)) for rank in range(2)]
    assert all(share.any() for share in shares)
    torch.testing.assert_close(shares[0] + shares[1], images.whole((0, 1)), rtol=0, atol=1e-6)


def test_layers_further_down_learn_slower_and_later(tmp_path: Path, tiny_backbone: str) -> None:
    job = settings(make_learning(tmp_path, tiny_backbone), None, layer_decay=0.5)
    task = build_task(job, CPU)
    depth = {
        id(part): (group["depth"], group["peak"])
        for group in task.optimizer.param_groups
        for part in group["params"]
    }
    named = {name: depth[id(part)] for name, part in vision_of(task).named_parameters()}
    rate = job.train.backbone_learning_rate
    assert named["pooler.dense.weight"] == (0, rate)
    assert named["layers.1.layernorm_before.weight"] == (0, rate)
    assert named["layers.0.layernorm_before.weight"] == (1, rate / 2)
    assert named["embeddings.cls_token"] == (2, rate / 4)


def test_gradients_of_parts_are_those_of_the_whole_batch(
    tmp_path: Path, tiny_backbone: str
) -> None:
    job = make_learning(tmp_path, tiny_backbone, make_resnet)
    whole, parts = gradients(job), gradients(settings(job, None, accumulate=4))
    assert whole.keys() == parts.keys()
    assert any(name.startswith("text_of.images.") for name in whole)
    for name, found in whole.items():
        torch.testing.assert_close(parts[name], found, rtol=1e-3, atol=1e-5)


def test_a_checkpoint_holds_the_model_of_images(tmp_path: Path, tiny_backbone: str) -> None:
    job = make_learning(tmp_path, tiny_backbone, make_resnet)
    task = build_task(job, CPU)
    take_step(task)
    folder = tmp_path / "run/checkpoint_1"
    folder.mkdir(parents=True)
    write_checkpoint(folder, take_state(task, 0), [Progress("select")], None)
    saved = read_checkpoint(job.store, "run")
    assert saved is not None
    other = build_task(job, CPU)
    assert vision_digest_of(other) != vision_digest_of(task)
    saved.restore(other)
    assert vision_digest_of(other) == vision_digest_of(task)
    for same in (task, other):
        torch.manual_seed(3)  # of dropout
        take_step(same)
    # The optimizer goes on too.
    torch.testing.assert_close(copied(vision_of(other)), copied(vision_of(task)))


def vision_digest_of(task: Task) -> str:
    assert task.images is not None
    return vision_digest(task.images.backbone)


def poolerless_vit(folder: Path) -> str:
    """As the export of a classifier: nothing in the file is a pooler's."""
    from transformers import ViTConfig, ViTForImageClassification

    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = ViTConfig(**sizes, intermediate_size=32, image_size=32, patch_size=8)
    return save_model(folder, ViTForImageClassification(config))


@pytest.mark.parametrize("make", [make_vit, make_resnet, poolerless_vit])
def test_the_exported_model_gives_the_vectors_that_training_ended_with(
    tmp_path: Path, tiny_backbone: str, make: Callable[[Path], str]
) -> None:
    job = make_learning(tmp_path, tiny_backbone, make)
    task = build_task(job, CPU)
    start = vision_digest_of(task)
    take_step(task)
    weights = take_state(task, 0).model
    export_phase(Phase("refit", job, "models/m", {}), task, weights, Progress("refit"))
    assert task.images is not None
    expected = task.images.whole((0, 1))
    said = job.store.read_json("models/m/config.json")
    assert said["image_digest"] == vision_digest_of(task) != start
    # By plain transformers, and as scoring and the next night read it.
    folder = job.store.full_path("models/m/image_backbone")
    kept = BackboneSource(job.store, job.model, "models/m")
    assert kept.load_vision().pooling == task.images.backbone.pooling
    found = encode_images(kept.load_vision(), list(PICTURES.values()))
    for row, data, vector in zip(PICTURES, PICTURES.values(), found, strict=True):
        np.testing.assert_allclose(vector, expected[row].numpy(), atol=1e-5)
        alone = read_alone(folder, data, kept.load_vision().pooling)
        np.testing.assert_allclose(alone, expected[row].numpy(), atol=1e-5)
    # The text backbone, which did not learn, is what it was.
    assert weights_digest(kept.load()) == weights_digest(job.source.load())
    going_on = replace(job, source=kept, start=Start("models/m", 3))
    assert vision_digest_of(build_task(going_on, CPU)) == said["image_digest"]


def test_more_layers_than_the_model_of_images_has_are_refused(
    tmp_path: Path, tiny_backbone: str
) -> None:
    job = make_learning(tmp_path, tiny_backbone, make_resnet, image_trainable="top", top_layers=3)
    with pytest.raises(ConfigError, match=r"model\.top_layers: .* found 2 layers in ResNetModel"):
        BackboneSource(job.store, job.model).check()
    fine = job.model.model_copy(update={"top_layers": 2})
    BackboneSource(job.store, fine).check()
