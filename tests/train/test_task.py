import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
import torch
from tokenizers.processors import Sequence

from crossrec.config import ModelConfig, TrainConfig
from crossrec.data.histories import DomainRange, Prepared, activity_path, catalogue_path
from crossrec.data.replay import Activity
from crossrec.errors import ConfigError
from crossrec.model.backbone import encode_texts, load_backbone, weights_digest
from crossrec.model.checkpoint import Model, save_model
from crossrec.model.objectives import Targets
from crossrec.model.recommender import HistoryBatch
from crossrec.model.source import BackboneSource
from crossrec.model.vision import encode_images, load_vision, vision_digest
from crossrec.model.weights import BackboneFolder
from crossrec.schema import ACTIVITY, CATALOGUE, domain_folder
from crossrec.storage import Store
from crossrec.train.continued import Start
from crossrec.train.epoch import idle_batch
from crossrec.train.learning import TEXTS_A_PART, LearningTexts
from crossrec.train.task import Task, TrainJob, build_task, count_steps
from tests.model.test_pooling import make_gpt2, saved
from tests.pictures import make_vit, picture, store_pictures

TEXTS = {"shop": ["tea", "", "green tea"], "video": ["space", "deep space"]}
DOMAINS = (DomainRange("shop", 0, 3, 5), DomainRange("video", 3, 5, 5))
Trainable = Literal["head", "top", "all"]
CPU = torch.device("cpu")

NOTHING = np.zeros(0, np.int32)
NO_ACTIVITY = Activity(NOTHING, NOTHING, NOTHING, 5)


def make_job(
    folder: Path, weights: str, trainable: Trainable = "head", known_before: int = 10
) -> TrainJob:
    """Five items; rows 0, 1 and 4 have 2, 1 and 3 events before day 10, row 2 has one on it."""
    store = Store(str(folder))
    prepared = Prepared("prepared/x", "x", DOMAINS, 1, 100, 10, 5, 0)
    settings = ModelConfig(
        backbone=weights, trainable=trainable, top_layers=1, text_tokens=16, width=16, heads=2
    )
    backbone = load_backbone(weights, 16)
    for domain, texts in TEXTS.items():
        items = [
            {"domain": domain, "item_id": f"item-{row}", "text": text}
            for row, text in enumerate(texts)
        ]
        table = pa.Table.from_pylist(items, schema=CATALOGUE)
        store.write_parquet(catalogue_path(prepared.folder, domain), table)
        target = folder / "vectors" / f"{domain_folder(domain)}.npy"
        target.parent.mkdir(exist_ok=True)
        np.save(target, encode_texts(backbone, texts))
    activity = pa.table([[0, 1, 2, 4], [9, 3, 10, 5], [2, 1, 1, 3]], schema=ACTIVITY)
    store.write_parquet(activity_path(prepared.folder, 0), activity)
    return TrainJob(
        store=store,
        prepared=prepared,
        vectors="vectors",
        source=BackboneSource(store, settings),
        model=settings,
        train=TrainConfig(epochs=3, epoch_steps=1, batch_size=32, backbone_learning_rate=1e-2),
        seed=17,
        known_before=known_before,
        valid=None,
        epochs=3,
    )


BATCH = HistoryBatch(
    torch.tensor([[-1, 0, 4]]),
    torch.tensor([[2, 0, 1]]),
    torch.tensor([[1, 1, 2]], dtype=torch.int32),
)
TARGETS = Targets(*(torch.tensor(part) for part in ([0, 0], [0, 1], [0, 4], [0, 1])))


def take_step(task: Task) -> None:
    task.loss.train()
    task.optimizer.zero_grad(set_to_none=True)
    task.loss(BATCH, TARGETS, torch.Generator()).backward()
    task.optimizer.step()


@pytest.mark.parametrize("trainable", ["top", "all"])
def test_step_changes_the_weights_of_a_backbone_that_learns(
    tmp_path: Path, tiny_backbone: str, trainable: Trainable
) -> None:
    task = build_task(make_job(tmp_path, tiny_backbone, trainable), CPU)
    assert task.texts is not None
    model = task.texts.backbone.model
    before = {name: part.detach().clone() for name, part in model.named_parameters()}
    vectors = task.item_state().vectors_IW
    take_step(task)
    changed = {name for name, part in model.named_parameters() if not part.equal(before[name])}
    layer = {name for name in before if name.startswith("encoder.layer.1.")}
    if trainable == "top":
        assert changed == layer
    else:
        assert changed > layer
        assert "embeddings.word_embeddings.weight" in changed
        assert not any(name.startswith("pooler.") for name in changed)
    assert not task.item_state().vectors_IW.equal(vectors)


def test_step_under_head_learns_the_recommender_alone(tmp_path: Path, tiny_backbone: str) -> None:
    job = make_job(tmp_path, tiny_backbone, "head")
    task = build_task(job, CPU)
    digest = weights_digest(job.source.load())
    adaptor = task.loss.recommender.adaptor.weight
    texts, before = task.vectors_IT.clone(), adaptor.detach().clone()
    take_step(task)
    assert task.texts is None
    assert task.vectors_IT.equal(texts)
    assert weights_digest(job.source.load()) == digest
    assert not adaptor.equal(before)
    assert {id(part) for part in task.parameters} == {id(part) for part in task.loss.parameters()}


def test_build_task_gives_ids_to_items_with_events_before_the_day(
    tmp_path: Path, tiny_backbone: str
) -> None:
    task = build_task(make_job(tmp_path, tiny_backbone), CPU)
    assert task.loss.items.ids_I.tolist() == [0, 1, -1, -1, 2]
    assert task.loss.items.counts_I.tolist() == [2, 1, 0, 0, 3]
    assert task.items.to_pylist() == [
        {"domain": "shop", "item_id": "item-0", "events": 2},
        {"domain": "shop", "item_id": "item-1", "events": 1},
        {"domain": "video", "item_id": "item-1", "events": 3},
    ]
    assert task.loss.recommender.id_embedding.num_embeddings == 3


def test_build_task_of_no_event_before_the_day_still_has_item_vectors(
    tmp_path: Path, tiny_backbone: str
) -> None:
    task = build_task(make_job(tmp_path, tiny_backbone, known_before=0), CPU)
    assert task.items.num_rows == 0
    assert task.item_state().vectors_IW.isfinite().all()


@pytest.mark.parametrize("trainable", ["head", "all"])
def test_item_state_at_step_0_is_the_projected_text(
    tmp_path: Path, tiny_backbone: str, trainable: Trainable
) -> None:
    state = build_task(make_job(tmp_path, tiny_backbone, trainable), CPU).item_state()
    has_text = torch.tensor([True, False, True, True, True])
    torch.testing.assert_close(state.vectors_IW[has_text], state.texts_IW[has_text])
    assert state.texts_IW[~has_text].abs().sum() == 0


def test_learning_texts_equal_encoded_texts(tiny_backbone: str) -> None:
    backbone = load_backbone(tiny_backbone, 16)
    texts = [*TEXTS["shop"], *TEXTS["video"]]
    rows = torch.tensor([4, 1, 0])
    found = LearningTexts(backbone, texts).eval()(rows)
    expected = torch.from_numpy(encode_texts(backbone, texts))[rows]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert found[1].abs().sum() == 0


def test_texts_that_learn_are_read_with_others_of_their_length(
    tiny_backbone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TEXTS_A_PART, "cpu", 2)
    texts = ["jam", " ".join(["jam"] * 9), "tea", " ".join(["tea"] * 8)]
    backbone = load_backbone(tiny_backbone, 16)
    learning = LearningTexts(backbone, texts).eval()
    found = learning(torch.tensor([1, 0, 3, 2]))
    tokens = backbone.tokenize([texts[row] for row in (1, 0, 3, 2)])
    torch.testing.assert_close(found, backbone(**tokens))
    lengths = tokens["attention_mask"].sum(1)
    assert learning.tokens_read == 2 * int(lengths[1]) + 2 * int(lengths[0])
    assert learning.tokens_read < tokens["input_ids"].numel()


def test_learning_texts_of_no_text_at_all_have_finite_gradients(tiny_backbone: str) -> None:
    learning = LearningTexts(load_backbone(tiny_backbone, 16), ["", ""])
    learning(torch.tensor([0, 1])).sum().backward()
    gradients = [part.grad for part in learning.parameters() if part.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_a_decoder_learns_beside_texts_that_are_empty(
    tmp_path: Path, tiny_backbone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokenizers of GPT-2 and Qwen make no token at all of an empty text."""
    monkeypatch.setitem(TEXTS_A_PART, "cpu", 2)
    backbone = load_backbone(saved(tmp_path / "b", tiny_backbone, make_gpt2()), 16)
    tokenizer: Any = backbone.tokenizer
    tokenizer.backend_tokenizer.post_processor = Sequence([])
    assert not backbone.tokenize([""])["attention_mask"].any()
    learning = LearningTexts(backbone, ["", "", "jam", ""])
    found = learning(torch.tensor([0, 1, 2, 3]))
    assert found.any(dim=1).tolist() == [False, False, True, False]
    found.sum().backward()
    gradients = [part.grad for part in learning.parameters() if part.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_steps_are_those_of_all_epochs(tmp_path: Path, tiny_backbone: str) -> None:
    task = build_task(make_job(tmp_path, tiny_backbone, "all"), CPU)
    # 3 epochs of 100 users in batches of 32.
    assert task.total_steps == 3 * 4


@pytest.mark.parametrize(("asked", "passes"), [(4, 1), (5, 2), (32, 8)])
def test_few_histories_are_read_several_times_an_epoch(
    tmp_path: Path, tiny_backbone: str, asked: int, passes: int
) -> None:
    job = make_job(tmp_path, tiny_backbone)
    job = replace(job, train=job.train.model_copy(update={"epoch_steps": asked}))
    assert count_steps(job, NO_ACTIVITY) == (passes, 3 * passes * 4)


def test_what_is_new_since_a_model_is_read_once_an_epoch(
    tmp_path: Path, tiny_backbone: str
) -> None:
    job = make_job(tmp_path, tiny_backbone)
    train = job.train.model_copy(update={"epoch_steps": 32, "replay": 0.5})
    job = replace(job, train=train, start=Start("models/x", 3))
    assert count_steps(job, NO_ACTIVITY) == (1, 3 * 2)


def test_optimizer_groups_have_their_own_rates_and_decay_matrices_alone(
    tmp_path: Path, tiny_backbone: str
) -> None:
    task = build_task(make_job(tmp_path, tiny_backbone, "all"), CPU)
    found = {
        (group["peak"], group["weight_decay"], part.ndim > 1)
        for group in task.optimizer.param_groups
        for part in group["params"]
    }
    head, backbone = 1e-3, 1e-2
    assert found == {
        (head, 0.01, True),
        (head, 0.0, False),
        (backbone, 0.01, True),
        (backbone, 0.0, False),
    }


@pytest.mark.parametrize("trainable", ["head", "all"])
def test_idle_batch_leaves_every_gradient_0(
    tmp_path: Path, tiny_backbone: str, trainable: Trainable
) -> None:
    task = build_task(make_job(tmp_path, tiny_backbone, trainable), CPU)
    found = task.loss(*idle_batch(2), torch.Generator())
    found.backward()
    gradients = [part.grad for part in task.parameters if part.grad is not None]
    assert found.item() == 0
    assert gradients
    assert not any(gradient.any() for gradient in gradients)


def test_task_with_a_start_has_its_weights(tmp_path: Path, tiny_backbone: str) -> None:
    job = make_job(tmp_path, tiny_backbone)
    earlier = build_task(job, CPU)
    # No step of training: one may leave every id's vector at 0, since ids are dropped at random.
    torch.nn.init.normal_(earlier.loss.recommender.id_embedding.weight)
    domains = tuple(domain.name for domain in DOMAINS)
    model = Model(job.model, earlier.loss.recommender, earlier.items, domains)
    save_model(job.store, "models/earlier", model, BackboneFolder(Path(tiny_backbone), "x"))
    task = build_task(replace(job, start=Start("models/earlier", 3)), CPU)
    fresh, expected = build_task(job, CPU), earlier.loss.recommender.state_dict()
    assert all(part.equal(expected[n]) for n, part in task.loss.recommender.state_dict().items())
    assert not fresh.loss.recommender.id_embedding.weight.equal(expected["id_embedding.weight"])
    assert task.anchor is not None
    assert (earlier.anchor, fresh.anchor) == (None, None)


def test_a_frozen_backbone_goes_on_as_the_start_has_it(tmp_path: Path, tiny_backbone: str) -> None:
    """The start's was adapted, so that it is no more what `model.backbone` names."""
    job = make_job(tmp_path, tiny_backbone)
    task, backbone = build_task(job, CPU), load_backbone(tiny_backbone, 16)
    with torch.no_grad():
        next(backbone.model.parameters()).add_(1.0)
    model = Model(job.model, task.loss.recommender, task.items, ("shop", "video"))
    adapted = save_model(job.store, "models/adapted", model, backbone)
    source = replace(job.source, model_folder="models/adapted")
    published = save_model(job.store, "models/next", model, source.untrained())
    assert published == adapted
    names = job.store.list("models/adapted/backbone")
    assert "model.safetensors" in names
    assert job.store.list("models/next/backbone") == names
    for name in names:
        before, after = (
            job.store.read_bytes(f"models/{folder}/backbone/{name}")
            for folder in ("adapted", "next")
        )
        assert before == after


PICTURES = {row: picture((90 * number, 9, 99)) for number, row in enumerate((0, 1, 3))}
"""By catalogue row; rows 0 and 4 share one."""
PICTURES[4] = PICTURES[0]


def with_images(job: TrainJob, folder: Path, vision: str | None = None) -> TrainJob:
    """The same items with PICTURES, read by a ViT, vectors of width 16, or by another model."""
    vision = vision or make_vit(folder / "vit")
    settings = job.model.model_copy(update={"image_backbone": vision})
    backbone = load_vision(vision)
    images = np.zeros((5, backbone.width), np.float32)
    images[list(PICTURES)] = encode_images(backbone, list(PICTURES.values()))
    for domain in DOMAINS:
        path = folder / "vectors" / f"{domain_folder(domain.name)}.npy"
        np.save(path, np.concatenate([np.load(path), images[domain.start : domain.stop]], 1))
    store_pictures(job.store, job.prepared, PICTURES)
    return replace(job, model=settings, source=BackboneSource(job.store, settings))


@pytest.mark.parametrize("trainable", ["head", "all"])
def test_images_stay_beside_texts_whatever_learns(
    tmp_path: Path, tiny_backbone: str, trainable: Trainable
) -> None:
    job = with_images(make_job(tmp_path, tiny_backbone, trainable), tmp_path)
    task = build_task(job, CPU)
    rows = torch.arange(5)
    before = task.loss.text_of(rows).detach().clone()
    torch.testing.assert_close(before, task.vectors_IT)
    assert before.shape == (5, 32 + 16)
    adaptor = task.loss.recommender.adaptor.weight.detach().clone()
    take_step(task)
    after = task.loss.text_of(rows).detach()
    assert after[:, 32:].equal(before[:, 32:])
    assert after[:, :32].equal(before[:, :32]) == (trainable == "head")
    # What is made of images is learned.
    assert not task.loss.recommender.adaptor.weight[:, 32:].equal(adaptor[:, 32:])
    # Row 1 has an image and no text.
    blind = task.item_state().vectors_IW[1].clone()
    task.vectors_IT[1] = 0
    if task.learning is not None:
        task.learning.images_IV[1] = 0
    assert not task.item_state().vectors_IW[1].equal(blind)


def test_a_model_folder_carries_the_model_of_images(tmp_path: Path, tiny_backbone: str) -> None:
    job = with_images(make_job(tmp_path, tiny_backbone), tmp_path)
    task = build_task(job, CPU)
    model = Model(job.model, task.loss.recommender, task.items, ("shop", "video"))
    said = save_model(job.store, "models/m", model, job.source.untrained(), job.source.vision())
    assert said["settings"]["image_backbone"] == job.model.image_backbone
    assert said["image_digest"] == job.source.image_digest()
    kept = BackboneSource(job.store, job.model, "models/m")
    shutil.rmtree(str(job.model.image_backbone))
    data = [picture((10, 200, 30))]
    assert encode_images(kept.load_vision(), data).any()
    assert kept.image_digest() == said["image_digest"]
    # Loaded, as one from the hub is, it is written out as it was.
    again = save_model(job.store, "models/n", model, kept.untrained(), kept.load_vision())
    other = BackboneSource(job.store, job.model, "models/n")
    np.testing.assert_array_equal(
        encode_images(other.load_vision(), data), encode_images(kept.load_vision(), data)
    )
    assert again["image_digest"] == vision_digest(other.load_vision())
    without = ModelConfig(backbone=tiny_backbone)
    with pytest.raises(ConfigError, match=r"as trained, found none; set model\.image_backbone="):
        BackboneSource(job.store, without, "models/m").pinned()
