"""Whole nights under objectives that give scores a unit of their own."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from crossrec.data.demo import make_demo
from crossrec.data.histories import open_prepared
from crossrec.data.prepare import prepare
from crossrec.errors import ConfigError
from crossrec.evaluate.holdout import open_holdout, score_holdout
from crossrec.evaluate.lists import files_of
from crossrec.evaluate.pipeline import run_lists
from crossrec.nightly import nightly
from crossrec.score.pipeline import score
from crossrec.storage import Store
from crossrec.study.pipeline import own_lists
from tests.nights import DEMO, Night, change, small_config

pytestmark = pytest.mark.slow

MEAN, DEVIATION = 3.0, 0.7
"""Of the ratings of all items; users differ by as much again."""


def night_of(objective: str, root: str, backbone: str, **sections: Any) -> Night:
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
    config = small_config(store, backbone, data, train=train, run_id=objective, **sections)
    return Night(config, store, nightly(config, store), events, demo.items)


def cut(night: Night) -> tuple[pa.Table, pa.Table]:
    """Return the events before the hold-out, and those in it of users who had one before."""
    start = np.datetime64(night.read_json("metrics.json")["holdout"]["start"], "us")
    began = pa.scalar(start.astype(np.int64).item(), pa.timestamp("us", tz="UTC"))
    is_early = pc.less(night.events["timestamp"], began)
    early, later = night.events.filter(is_early), night.events.filter(pc.invert(is_early))
    return early, later.filter(pc.is_in(later["user_id"], early["user_id"].unique()))


def test_a_night_of_ratings_publishes_predicted_ratings(
    ray_cluster: None, tmp_path_factory: pytest.TempPathFactory, tiny_backbone: str
) -> None:
    sections = {"model": {"layers": 2}, "score": {"encoder": "small"}}
    root = str(tmp_path_factory.mktemp("mse"))
    night = night_of("mse", root, tiny_backbone, **sections)
    training = night.read_json("finetune.json")["training"]
    errors = [point["rmse"] for point in training["curve"]]
    assert night.manifest["scores"]["unit"] == "that of rating"
    # Levels of users and items are all that there is, and at first a rating is just these.
    assert errors[0] < 0.5 * DEVIATION * 2**0.5
    assert min(errors) == errors[training["best_epoch"]]
    for domain in DEMO.domains:
        lists = night.lists(domain)["scores"].to_pylist()
        assert all(found == sorted(found, reverse=True) for found in lists)
        first = np.array([found[0] for found in lists])
        assert MEAN < first.mean() < MEAN + 6 * DEVIATION
    judge_ratings_of(night)
    judge_the_small_encoder_of(night)


def judge_the_small_encoder_of(night: Night) -> None:
    """Lists are made by it, beside it stands what it costs, and later nights keep to it."""
    trained, metrics = night.read_json("finetune.json"), night.read_json("metrics.json")
    # 0 where levels are all that is learned, and neither encoder has anything to ask.
    assert 0 <= trained["small"]["distance"] < DEVIATION
    for folder in (trained["selected"], trained["model"]):
        assert {"small.json", "small.safetensors"} < set(night.store.list(folder))
    assert "small.safetensors" in night.store.read_json(f"{trained['model']}/checksums.json")
    card = night.store.read_bytes(f"{trained['model']}/README.md").decode()
    assert 'load_model(store, folder, "small")' in card
    assert night.read_json("plan.json")["encoder"] == "small"
    judged = [metrics["systems"][name]["all"] for name in ("model", "full_encoder")]
    assert judged[0]["pairs"] == judged[1]["pairs"] > 0
    assert "full_encoder" in metrics["comparison"]
    report = night.store.read_bytes(f"runs/{night.config.run_id}/report.html").decode()
    assert "with its whole encoder" in report
    judge_what_a_study_compares_with(night)
    monday = change(night.config, run_id="monday", score={"mode": "incremental"})
    prepare(monday, night.store)
    assert score(monday, night.store)["users"] == night.summary["users"]
    tuesday = change(monday, run_id="tuesday", score={"encoder": "full"})
    prepare(tuesday, night.store)
    with pytest.raises(ConfigError, match=r"others \(encoder\)"):
        score(tuesday, night.store)


def judge_what_a_study_compares_with(night: Night) -> None:
    """Variants are read by their own encoders, so the model is too."""
    trained = night.read_json("finetune.json")
    whole = open_prepared(night.store, night.read_json("prepare.json")["prepared"])
    holdout = open_holdout(night.config, whole, trained["days"])
    lists = run_lists(night.config, night.store, trained["selected"])
    job = score_holdout(night.config, night.store, holdout, lists)
    by_small = files_of(job, holdout.buckets)
    compared = own_lists(night.config, holdout, job)
    assert set(compared) == set(by_small)
    folder = f"runs/{night.config.run_id}/baselines/full_encoder/"
    assert all(path.startswith(folder) for path in compared["model"])
    assert len(compared["model"]) == len(by_small["model"]) > 0
    assert compared["step0"] == by_small["step0"]


def judge_ratings_of(night: Night) -> None:
    """Hold the errors in metrics.json against the events themselves."""
    found = night.read_json("metrics.json")["ratings"]
    early, later = cut(night)
    assert found["all"]["events"] == len(later) > 300
    squares = []
    for domain in DEMO.domains:
        known, given = (
            part.filter(pc.equal(part["domain"], domain))["rating"].to_numpy()
            for part in (early, later)
        )
        errors = given - known.mean()
        figures = found["domain"][domain]
        assert figures["events"] == len(given)
        assert figures["rmse"]["domain_mean"] == pytest.approx((errors**2).mean() ** 0.5, abs=1e-4)
        assert figures["mae"]["domain_mean"] == pytest.approx(abs(errors).mean(), abs=1e-4)
        squares.append(figures["events"] * figures["rmse"]["model"] ** 2)
    rmse = found["all"]["rmse"]
    assert rmse["model"] == pytest.approx((sum(squares) / len(later)) ** 0.5, abs=1e-4)
    # Ratings are levels of users and items, and nothing else.
    assert rmse["biases"] < 0.5 * rmse["domain_mean"]
    assert rmse["model"] < 1.1 * rmse["biases"]
    report = night.store.read_bytes(f"runs/{night.config.run_id}/report.html").decode()
    assert f"All domains, {len(later):,} rated events" in report


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
    judge_calibration_of(night)


def judge_calibration_of(night: Night) -> None:
    """Hold the calibration in metrics.json against the events and the lists that were judged."""
    metrics = night.read_json("metrics.json")
    found, early = metrics["calibration"], cut(night)[0]
    users = len(early["user_id"].unique())
    everybody, judged = (found[part]["all"] for part in ("known_users", "judged_lists"))
    assert (found["users"], found["days"]) == (users, night.config.evaluate.holdout_days)
    # Every list is full.
    assert everybody["pairs"] == users * len(DEMO.domains) * found["top_k"]
    assert judged["pairs"] == metrics["holdout"]["users"] * len(DEMO.domains) * found["top_k"]
    assert judged["pairs"] < everybody["pairs"]
    # Who does nothing new makes nothing come true.
    hits = round(everybody["observed"] * everybody["pairs"])
    assert hits == round(judged["observed"] * judged["pairs"]) > 100
    # What is said is said of everybody; of those who did something new, more came true.
    assert 0.5 < everybody["predicted"] / everybody["observed"] < 2
    assert everybody["ece"] < 0.6 * judged["ece"]
    for part in (everybody, *found["known_users"]["domain"].values()):
        assert sum(found["pairs"] for found in part["bins"]) == part["pairs"]
        assert part["bins"][-1]["observed"] > part["bins"][0]["observed"]
    assert set(found["known_users"]["domain"]) == set(DEMO.domains)
    report = night.store.read_bytes(f"runs/{night.config.run_id}/report.html").decode()
    assert "What scores promise" in report
