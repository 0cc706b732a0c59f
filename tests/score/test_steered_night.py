"""A night whose lists are steered, with the model of the night that tests share."""

import datetime as dt
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from crossrec.data.histories import open_prepared, read_histories, read_item_ids
from crossrec.data.prepare import prepare
from crossrec.data.replay import flatten, slice_users, up_to
from crossrec.errors import ConfigError
from crossrec.evaluate.pipeline import evaluate
from crossrec.evaluate.steering import VALUES
from crossrec.nightly import nightly
from crossrec.publish import publish
from crossrec.readers import read_scores
from crossrec.schema import US_PER_DAY
from crossrec.score.bucket import ScoreJob
from crossrec.score.pipeline import new_places, score
from crossrec.score.steering import Steering
from crossrec.storage import Store
from crossrec.verify import verify_run
from tests.nights import DEMO, Night, change
from tests.score.test_incremental import new_events

pytestmark = pytest.mark.slow


def test_what_steering_costs_is_judged_on_the_hold_out(night: Night) -> None:
    """Under the night's own run_id, whose hold-out it is."""
    plain = night.read_json("metrics.json")
    metrics = evaluate(change(night.config, evaluate={"steering": True}), night.store)
    assert metrics["systems"] == plain["systems"]
    found = metrics["steering"]
    assert found["published"] == {"popularity_control": 0.0, "diversity": 0.0}
    unsteered, *others = found["settings"]
    assert unsteered["ndcg@10"] == plain["systems"]["model"]["all"]["ndcg@10"]
    for name in DEMO.domains:
        lists = plain["systems"]["model"]["lists"][name]
        assert unsteered["domain"][name].items() >= lists.items()
    controlled = [part for part in others if not part["diversity"]]
    varied = [part for part in others if not part["popularity_control"]]
    assert [part["popularity_control"] for part in controlled] == list(VALUES)
    assert [part["diversity"] for part in varied] == list(VALUES)
    ginis = [part["gini@10"] for part in (unsteered, *controlled)]
    coverage = [part["coverage@10"] for part in (unsteered, *controlled)]
    assert ginis == sorted(ginis, reverse=True)
    assert ginis[-1] < 0.6 * ginis[0]
    assert coverage[-1] > coverage[0]
    distances = [part["distance@10"] for part in (unsteered, *varied)]
    assert distances == sorted(distances)
    assert distances[-1] > distances[0]
    # Texts say little of what comes next, and lists that look at nothing else cost what is known.
    assert varied[-1]["cost"]["low"] > 0
    page = night.store.read_bytes("runs/night/report.html").decode()
    assert "What steering costs" in page


def test_a_steered_night_passes_publication_and_says_what_its_scores_mean(night: Night) -> None:
    store = night.store
    model = night.manifest["model"].removeprefix("models/")
    steering = {"popularity_control": 0.5, "diversity": 0.3}
    config = change(night.config, run_id="steered", score={"model": model, **steering})
    prepare(config, store)
    score(config, store)
    plan = store.read_json("runs/steered/plan.json")
    # What the manifest takes over.
    assert plan["scores"]["unit"] == "none"
    assert plan["scores"].items() >= plan["steering"].items() == steering.items()
    files = verify_run(store, "runs/steered", plan).files
    for domain in DEMO.domains:
        paths = [file["path"] for file in files if file["domain"] == domain]
        lists = pa.concat_tables(store.read_parquet(path) for path in paths)
        plain = night.lists(domain)
        assert lists["user_id"] == plain["user_id"]
        assert first_places(lists) > first_places(plain)
    with pytest.raises(ConfigError, match=r"another plan \(differs in steering\)"):
        score(change(config, score={"popularity_control": 0.0, "diversity": 0.0}), store)


def test_an_incremental_night_steers_by_the_prices_of_the_full_one(
    night: Night, tmp_path: Path
) -> None:
    root = tmp_path / "store"
    shutil.copytree(night.store.full_path(""), root)
    store, model = Store(str(root)), night.manifest["model"].removeprefix("models/")
    steering = {"popularity_control": 0.5, "diversity": 0.2}
    places = {"root": str(root)}
    full = change(night.config, run_id="full", storage=places, score={"model": model, **steering})
    for stage in (prepare, score, publish):
        stage(full, store)
    user = night.events["user_id"][0].as_py()
    moment = pc.max(night.events["timestamp"]).as_py() + dt.timedelta(days=1)
    events = pa.concat_tables([night.events, new_events(night, [user], moment)])
    store.write_parquet("input/later.parquet", events)
    data = {"events": store.uri("input/later.parquet")}
    later = change(full, run_id="later", data=data, score={"mode": "incremental", "model": None})
    assert nightly(later, store)["scored_users"] == 1
    assert not store.exists("runs/later/items/prices.safetensors")
    prepared = open_prepared(store, store.read_json("runs/later/prepare.json")["prepared"])
    pinned = open_prepared(store, store.read_json("runs/full/plan.json")["prepared"])
    day, top_k = pinned.as_of_us // US_PER_DAY + 1, full.score.top_k
    scorer = ScoreJob(
        store,
        prepared,
        f"models/{model}",
        "runs/full/items",
        day,
        {},
        ("shop",),
        top_k,
        "",
        steered={"model": Steering(0.5, 0.2)},
    ).open_scorer()
    histories = [flatten(read_histories(store, prepared, n)) for n in range(prepared.buckets)]
    (mine,) = (found for found in histories if user in found.user_ids.to_pylist())
    place = mine.user_ids.to_pylist().index(user)
    known = up_to(slice_users(mine, place, place + 1), day)
    expected = scorer.score(known, day, [("model", "shop")], top_k, new_places(full, top_k))
    ids = read_item_ids(store, prepared, "shop").to_pylist()
    (row,) = read_scores(str(root), domain="shop", user_ids=[user]).read_all().to_pylist()
    rows = expected["model", "shop"].rows[0].tolist()
    assert row["item_ids"] == [ids[item] for item in rows]


def first_places(lists: pa.Table) -> int:
    """Return how many items stand first in somebody's list."""
    return len({items[0] for items in lists["item_ids"].to_pylist()})
