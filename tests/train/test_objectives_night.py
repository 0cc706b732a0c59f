"""Whole nights under objectives that give scores a unit of their own."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from crossrec.data.demo import make_demo
from crossrec.nightly import nightly
from crossrec.storage import Store
from tests.nights import DEMO, Night, small_config

pytestmark = pytest.mark.slow

MEAN, DEVIATION = 3.0, 0.7
"""Of the ratings of all items; users differ by as much again."""


def night_of(objective: str, root: str, backbone: str) -> Night:
    """Publish a small demo night in which users rate by their level and the item's."""
    store, demo = Store(root), make_demo(400, 17, DEMO)
    draw = np.random.default_rng(17)
    levels = [
        DEVIATION * draw.normal(size=len(values.dictionary))[values.indices.to_numpy()]
        for values in (
            pc.dictionary_encode(key).combine_chunks()
            for key in (
                demo.events["user_id"],
                pc.binary_join_element_wise(demo.events["domain"], demo.events["item_id"], "/"),
            )
        )
    ]
    events = demo.events.append_column("rating", pa.array(MEAN + sum(levels)))
    store.write_parquet("input/events.parquet", events)
    store.write_parquet("input/items.parquet", demo.items)
    data = {name: store.uri(f"input/{name}.parquet") for name in ("events", "items")}
    train = {"objective": objective, "epochs": 4, "learning_rate": 3e-3, "negatives": 64}
    config = small_config(store, backbone, data, train=train, run_id=objective)
    return Night(config, store, nightly(config, store), events, demo.items)


def test_a_night_of_ratings_publishes_predicted_ratings(
    ray_cluster: None, tmp_path_factory: pytest.TempPathFactory, tiny_backbone: str
) -> None:
    night = night_of("mse", str(tmp_path_factory.mktemp("mse")), tiny_backbone)
    training = night.read_json("finetune.json")["training"]
    errors = [point["rmse"] for point in training["curve"]]
    assert night.manifest["scores"]["unit"] == "that of rating"
    # At first every rating is the mean.
    assert errors[0] == pytest.approx(DEVIATION * 2**0.5, rel=0.2)
    assert training["best_epoch"] > 0
    assert min(errors) == errors[training["best_epoch"]] < 0.9 * errors[0]
    for domain in DEMO.domains:
        lists = night.lists(domain)["scores"].to_pylist()
        assert all(found == sorted(found, reverse=True) for found in lists)
        first = np.array([found[0] for found in lists])
        assert MEAN < first.mean() < MEAN + 6 * DEVIATION


def test_a_night_of_gbce_publishes_probabilities(
    ray_cluster: None, tmp_path_factory: pytest.TempPathFactory, tiny_backbone: str
) -> None:
    night = night_of("gbce", str(tmp_path_factory.mktemp("gbce")), tiny_backbone)
    links = night.read_json("finetune.json")["fusion"]["links"]
    assert set(links) == set(DEMO.domains)
    assert night.manifest["scores"]["unit"] == "probability"
    assert night.manifest["scores"]["horizon_days"] == night.config.evaluate.holdout_days
    assert all(link["slope"] > 0 for link in links.values())
    for domain in DEMO.domains:
        lists = night.lists(domain)["scores"].to_pylist()
        assert all(found == sorted(found, reverse=True) for found in lists)
        scores = np.concatenate(lists)
        assert 0 < scores.min() <= scores.max() < 1
        # A fortnight's events of a user are few; so are those that a list of 20 can hope for.
        assert 1e-4 < scores.mean() < 0.5
