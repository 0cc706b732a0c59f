"""A night whose lists are steered, with the model of the night that tests share."""

import pyarrow as pa
import pytest

from crossrec.data.prepare import prepare
from crossrec.errors import ConfigError
from crossrec.evaluate.pipeline import evaluate
from crossrec.evaluate.steering import VALUES
from crossrec.score.pipeline import score
from crossrec.verify import verify_run
from tests.nights import DEMO, Night, change

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


def first_places(lists: pa.Table) -> int:
    """Return how many items stand first in somebody's list."""
    return len({items[0] for items in lists["item_ids"].to_pylist()})
