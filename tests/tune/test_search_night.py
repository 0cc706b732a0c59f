"""A whole search for settings of ratings, by two workers, one trial of which diverges."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from crossrec.data.demo import make_demo
from crossrec.storage import Store
from crossrec.tune.pipeline import tune
from crossrec.tune.records import FAILED, FINISHED
from tests.nights import DEMO, small_config

pytestmark = pytest.mark.slow

RATE = 3e-3


def test_a_trial_that_fails_leaves_the_others(
    ray_cluster: None, tiny_backbone: str, tmp_path: Path
) -> None:
    store, demo = Store(str(tmp_path)), make_demo(300, 17, DEMO)
    ratings = np.random.default_rng(17).normal(3.0, 1.0, len(demo.events))
    events = demo.events.append_column("rating", pa.array(ratings))
    for name, table in (("events", events), ("items", demo.items)):
        store.write_parquet(f"input/{name}.parquet", table)
    data = {name: store.uri(f"input/{name}.parquet") for name in ("events", "items")}
    # Plain descent at a rate of 1, which nothing clips, goes beyond all numbers.
    train = {"objective": "mse", "num_workers": 2, "epochs": 1, "optimizer": "sgd"}
    space = {"train.learning_rate": [RATE, 1.0]}
    config = small_config(
        store,
        tiny_backbone,
        data,
        run_id="search",
        train={**train, "clip_norm": 1e30},
        tune={"space": space, "trials": 2},
    )
    summary = tune(config, store)
    counts = {name: summary[name] for name in ("trials", FINISHED, FAILED)}
    assert counts == {"trials": 2, FINISHED: 1, FAILED: 1}
    assert summary["best"]["parameters"] == {"train.learning_rate": RATE}
    assert summary["best"]["rmse"] > 0
    told = store.read_json("runs/search/tune/tune.json")
    best, failed = told["trials"]
    assert told["measure"] == "rmse"
    assert {point["workers"] for point in best["epochs"] if "workers" in point} == {2}
    assert failed["error"].startswith("CrossrecError: training, epoch 1, step ")
    assert "it diverged: lower train.learning_rate" in failed["error"]
