"""Nights of items with pictures: the second goes on from the first, with a new item; in a third the
model of images learns."""

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from safetensors.torch import load_file

from crossrec.data.demo import make_demo
from crossrec.data.histories import open_prepared, read_catalogue
from crossrec.data.prepare import prepare
from crossrec.encode import encode_catalogue
from crossrec.model.source import BackboneSource
from crossrec.nightly import nightly
from crossrec.score.pipeline import score
from crossrec.storage import Store
from crossrec.train.launch import finetune
from crossrec.vectorcache import read_vectors
from tests.nights import DEMO, Night, change, small_config
from tests.pictures import PIXELS, make_vit, picture, read_alone

pytestmark = pytest.mark.slow

TEXT_WIDTH, IMAGE_WIDTH = 32, 16


@pytest.fixture(scope="module")
def night(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory, tiny_backbone: str) -> Night:
    """All titles are alike; what tells items apart is the colour of their picture."""
    folder = tmp_path_factory.mktemp("images")
    store, demo = Store(str(folder / "store")), make_demo(150, 17, DEMO)
    colours = np.random.default_rng(17).integers(0, 256, (demo.items.num_rows, 3)).tolist()
    images: list[bytes | None] = [picture((red, green, blue)) for red, green, blue in colours]
    images[3], images[4] = None, b"broken"
    items = pa.table(
        {
            **{name: demo.items[name] for name in ("item_id", "domain")},
            "title": ["thing"] * len(images),
            "image": pa.array(images, pa.binary()),
        }
    )
    store.write_parquet("input/events.parquet", demo.events)
    store.write_parquet("input/items.parquet", items)
    newest = pc.max(demo.events["timestamp"]).as_py()
    data = {name: store.uri(f"input/{name}.parquet") for name in ("events", "items")}
    config = small_config(
        store,
        tiny_backbone,
        data | {"as_of": (newest - dt.timedelta(days=7)).isoformat()},
        model={"image_backbone": make_vit(folder / "vit")},
        train={"epochs": 2},
    )
    return Night(config, store, nightly(config, store), demo.events, items)


def test_the_published_model_names_and_carries_the_model_of_images(night: Night) -> None:
    model = night.manifest["model"]
    said = night.store.read_json(f"{model}/config.json")
    assert said["settings"]["image_backbone"] == night.config.model.image_backbone
    assert said["text_width"] == TEXT_WIDTH + IMAGE_WIDTH
    weights = Path(str(night.config.model.image_backbone), "model.safetensors").read_bytes()
    assert night.store.read_bytes(f"{model}/image_backbone/model.safetensors") == weights
    images = night.read_json("prepare.json")["images"]
    assert images == {
        "kept": night.items.num_rows - 2,
        "undecodable": 1,
        "too large": 0,
        "missing": 1,
    }


def test_pictures_tell_apart_what_texts_do_not(night: Night) -> None:
    """Without a picture's vector all items without events would have one score."""
    prepared = open_prepared(night.store, night.read_json("prepare.json")["prepared"])
    source = BackboneSource(night.store, night.config.model, night.manifest["model"])
    folder = encode_catalogue(night.store, prepared, source)
    found = read_vectors(night.store, folder, DEMO.domains[0])
    assert len(np.unique(found[:, :TEXT_WIDTH].round(5), axis=0)) == 1
    assert len(np.unique(found[:, TEXT_WIDTH:].round(5), axis=0)) > 100


def test_a_new_item_is_encoded_by_the_model_that_goes_on(night: Night) -> None:
    store, domain = night.store, DEMO.domains[0]
    new = {"item_id": ["zz new"], "domain": [domain], "title": ["thing"]}
    row = pa.table(new | {"image": [picture((1, 250, 130))]}).cast(night.items.schema)
    store.write_parquet("input/more.parquet", pa.concat_tables([night.items, row]))
    data = {"items": store.uri("input/more.parquet"), "as_of": None}
    train = {"continue_from": "published", "epochs": 1}
    config = change(night.config, run_id="second", data=data, train=train)
    prepared = open_prepared(store, prepare(config, store)["prepared"])
    second = finetune(config, store)
    assert second["continues"] == night.manifest["model"]
    before, after = (
        store.read_json(f"{model}/config.json")["image_digest"]
        for model in (night.manifest["model"], second["model"])
    )
    assert before == after
    source = BackboneSource(store, config.model, second["model"])
    vectors = read_vectors(store, encode_catalogue(store, prepared, source), domain)
    assert vectors[-1, TEXT_WIDTH:].any()


def test_scoring_and_the_next_night_use_the_model_of_images_that_learned(night: Night) -> None:
    store, domain = night.store, DEMO.domains[0]
    model = {"image_trainable": "all"}
    config = change(night.config, run_id="learning", model=model, train={"epochs": 1})
    prepare(config, store)
    finetuned = finetune(config, store)
    assert finetuned["training"]["best_epoch"] == 1
    score(config, store)
    learned = finetuned["model"]
    folder = store.full_path(f"{learned}/image_backbone")
    start = load_file(f"{config.model.image_backbone}/model.safetensors")
    weights = load_file(f"{folder}/model.safetensors")
    assert weights.keys() == start.keys()
    assert not any(weights[name].equal(start[name]) for name in start if name.endswith("weight"))
    # Lists were made with the vectors of these weights.
    prepared = open_prepared(store, store.read_json("runs/learning/prepare.json")["prepared"])
    source = BackboneSource(store, config.model, learned)
    name = f"{source.digest()[:16]}-{source.image_digest()[:16]}"
    vectors = read_vectors(store, f"{prepared.folder}/vectors/{name}", domain)
    ids = read_catalogue(store, prepared, domain)["item_id"].to_pylist()
    is_here = pc.equal(night.items["domain"], domain)
    pictures = {row["item_id"]: row["image"] for row in night.items.filter(is_here).to_pylist()}
    for place in (5, len(ids) - 1):
        expected = read_alone(folder, pictures[ids[place]], "pooler")
        np.testing.assert_allclose(vectors[place, TEXT_WIDTH:], expected, atol=1e-5)
    lines = store.read_bytes(f"{learned}/README.md").decode().split("```python\n")[1]
    loaded: dict[str, Any] = {}
    exec(lines.split("```")[0], loaded)
    assert type(loaded["image_model"]).__name__ == "ViTModel"
    assert loaded["image_processor"].size == {"height": PIXELS, "width": PIXELS}
    # The text backbone stood still.
    assert source.digest() == BackboneSource(store, config.model).digest()
    # The next night goes on from them, in the top layer alone.
    train = {"continue_from": Path(learned).name, "epochs": 1}
    top = {"image_trainable": "top", "top_layers": 1}
    # Later, as a model goes on from what it has not seen.
    config = change(config, run_id="on", data={"as_of": None}, model=top, train=train)
    prepare(config, store)
    second = finetune(config, store)
    assert second["continues"] == learned
    found = load_file(store.full_path(f"{second['model']}/image_backbone/model.safetensors"))
    moved = {name for name in found if not found[name].equal(weights[name])}
    assert moved
    assert all(name.startswith("encoder.layer.0.") for name in moved)
