"""From a table with pictures to one matrix of texts and images."""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crossrec.config import Config
from crossrec.data.histories import Prepared, open_prepared
from crossrec.data.prepare import prepare
from crossrec.encode import encode_catalogue
from crossrec.errors import ConfigError
from crossrec.model.backbone import encode_texts, load_backbone
from crossrec.model.source import BackboneSource
from crossrec.model.vision import encode_images, load_vision
from crossrec.storage import Store
from crossrec.vectorcache import Work, read_vectors
from tests.data.test_prepare import DAY_1, write_events
from tests.pictures import make_resnet, picture

pytestmark = [
    pytest.mark.usefixtures("ray_cluster"),
]

RED, GREEN, BLUE = picture((200, 0, 0)), picture((0, 200, 0)), picture((0, 0, 200), format="JPEG")
TEXT_WIDTH, IMAGE_WIDTH = 32, 24


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_resnet(tmp_path_factory.mktemp("resnet"))


def run_prepare(
    folder: Path, images: Mapping[str, bytes | None], **model: Any
) -> tuple[Config, Store, Prepared]:
    """Prepare items of one domain, by their ids; the title of item x is "title x"."""
    (folder / "items").mkdir(parents=True, exist_ok=True)
    table = {
        "item_id": list(images),
        "domain": ["shop"] * len(images),
        "title": [f"title {name}" for name in images],
        "image": pa.array(list(images.values()), pa.binary()),
    }
    pq.write_table(pa.table(table), folder / "items/0.parquet")
    write_events(folder / "events/0.parquet", ("ada", "a", "shop", DAY_1))
    config = Config.model_validate(
        {
            "run_id": uuid.uuid4().hex,
            "data": {name: str(folder / name) for name in ("events", "items")},
            "storage": {"root": str(folder / "store")},
            "model": {"text_tokens": 16, **model},
        }
    )
    store = Store(config.storage.root)
    return config, store, open_prepared(store, prepare(config, store)["prepared"])


@pytest.mark.slow
def test_an_item_is_its_text_and_its_image_side_by_side(
    tmp_path: Path, tiny_backbone: str, resnet: str
) -> None:
    images = {"a": RED, "b": None, "c": b"broken", "d": BLUE, "e": RED}
    settings = {"backbone": tiny_backbone, "image_backbone": resnet}
    config, store, prepared = run_prepare(tmp_path, images, **settings)
    folder = encode_catalogue(store, prepared, BackboneSource(store, config.model))
    found = read_vectors(store, folder, "shop")
    texts = encode_texts(load_backbone(tiny_backbone, 16), [f"title {name}" for name in images])
    pictures = encode_images(load_vision(resnet), [RED, b"", b"", BLUE, RED])
    assert found.shape == (5, TEXT_WIDTH + IMAGE_WIDTH)
    np.testing.assert_allclose(found[:, :TEXT_WIDTH], texts, atol=1e-5)
    np.testing.assert_allclose(found[:, TEXT_WIDTH:], pictures, atol=1e-5)
    # Of items that have both, the cosine is the mean of the cosines.
    joint = found / np.linalg.norm(found, axis=1, keepdims=True)
    mean = (texts[0] @ texts[3] + pictures[0] @ pictures[3]) / 2
    assert joint[0] @ joint[3] == pytest.approx(mean, abs=1e-5)


@pytest.fixture
def encoded_images(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each part had, as they are encoded; all actors' work in this process."""
    found: list[int] = []

    def here(work: Work) -> None:
        encoder = work.encoder(*work.arguments)
        counts = [count for part in work.parts for count in encoder(part)["encoded"].to_pylist()]
        if work.what == "images":
            found.extend(counts)

    monkeypatch.setattr("crossrec.encode_images.encode_parts", here)
    monkeypatch.setattr("crossrec.encode.encode_parts", here)
    return found


def test_each_image_is_encoded_once(
    tmp_path: Path, tiny_backbone: str, resnet: str, encoded_images: list[int]
) -> None:
    settings = {"backbone": tiny_backbone, "image_backbone": resnet}
    matrices = []
    for images in ({"a": RED, "b": GREEN, "c": RED}, {"a": RED, "b": BLUE, "c": RED, "d": GREEN}):
        config, store, prepared = run_prepare(tmp_path, images, **settings)
        folder = encode_catalogue(store, prepared, BackboneSource(store, config.model))
        matrices.append(read_vectors(store, folder, "shop")[:, TEXT_WIDTH:])
        encode_catalogue(store, prepared, BackboneSource(store, config.model))
    assert encoded_images == [2, 1]
    first, second = matrices
    assert np.array_equal(first[0], first[2])
    assert np.array_equal(first[1], second[3])
    assert not np.array_equal(first[1], second[1])


@pytest.mark.usefixtures("encoded_images")
def test_images_alone_are_enough(tmp_path: Path, tiny_backbone: str, resnet: str) -> None:
    settings = {"backbone": tiny_backbone, "image_backbone": resnet}
    config, store, _ = run_prepare(tmp_path, {"a": RED, "b": None}, **settings)
    data = config.data.model_copy(update={"text_columns": ()})
    config = config.model_copy(update={"run_id": "alone", "data": data})
    prepared = open_prepared(store, prepare(config, store)["prepared"])
    folder = encode_catalogue(store, prepared, BackboneSource(store, config.model))
    found = read_vectors(store, folder, "shop")
    assert not found[:, :TEXT_WIDTH].any()
    assert found[0, TEXT_WIDTH:].any()
    assert not found[1].any()


def test_an_input_prepared_without_images_is_told_of(
    tmp_path: Path, tiny_backbone: str, resnet: str
) -> None:
    _, store, prepared = run_prepare(tmp_path, {"a": RED}, backbone=tiny_backbone)
    config, *_ = run_prepare(tmp_path, {"a": RED}, backbone=tiny_backbone, image_backbone=resnet)
    with pytest.raises(ConfigError, match=f"image_backbone={resnet}: .*prepared without them"):
        encode_catalogue(store, prepared, BackboneSource(store, config.model))


def test_an_image_backbone_without_weights_is_told_before_any_work(
    tmp_path: Path, tiny_backbone: str, resnet: str
) -> None:
    config, store, _ = run_prepare(
        tmp_path, {"a": RED}, backbone=tiny_backbone, image_backbone=str(tmp_path)
    )
    with pytest.raises(ConfigError, match=r"model.image_backbone .*found no config.json"):
        BackboneSource(store, config.model).check()
    fine = config.model.model_copy(update={"image_backbone": resnet})
    BackboneSource(store, fine).check()
