"""Two incremental nights after a full one, on a copy of the published night."""

import datetime as dt
import shutil
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from crossrec.config import Config
from crossrec.data.candidates import read_candidates
from crossrec.data.histories import open_prepared, read_catalogue, read_histories
from crossrec.data.replay import flatten, up_to
from crossrec.errors import ConfigError
from crossrec.model.checkpoint import load_model
from crossrec.nightly import nightly
from crossrec.readers import read_scores
from crossrec.retention import remove_old_runs
from crossrec.schema import ITEM_ID, US_PER_DAY
from crossrec.score.catalogue import load_items
from crossrec.score.lists import to_table
from crossrec.score.pipeline import new_places, score
from crossrec.score.scorer import Scorer
from crossrec.storage import Store
from tests.nights import DOMAINS, Night, change

pytestmark = pytest.mark.slow

NEW_USER = "came on monday"
FULL, MONDAY, TUESDAY = "night", "monday", "tuesday"


@dataclass(frozen=True)
class Week:
    store: Store
    configs: dict[str, Config]
    summaries: dict[str, dict[str, Any]]
    changed: dict[str, set[str]]


@pytest.fixture(scope="module")
def week(night: Night, tmp_path_factory: pytest.TempPathFactory) -> Week:
    root = tmp_path_factory.mktemp("week") / "store"
    shutil.copytree(night.store.full_path(""), root)
    store = Store(str(root))
    users = sorted(set(night.events["user_id"].to_pylist()))
    changed = {MONDAY: {users[3], users[77], NEW_USER}, TUESDAY: {users[3], users[200]}}
    configs, summaries, events = {}, {}, night.events
    newest = max(night.events["timestamp"].to_pylist())
    for number, name in enumerate((MONDAY, TUESDAY)):
        moment = newest + dt.timedelta(days=number + 1)
        events = pa.concat_tables([events, new_events(night, sorted(changed[name]), moment)])
        store.write_parquet(f"input/{name}.parquet", events)
        configs[name] = change(
            night.config,
            run_id=name,
            data={"events": store.uri(f"input/{name}.parquet")},
            storage={"root": store.root},
            score={"mode": "incremental"},
        )
        summaries[name] = nightly(configs[name], store)
    return Week(store, configs, summaries, changed)


def new_events(night: Night, users: list[str], moment: dt.datetime) -> pa.Table:
    """Return what users did: an item that was there, and one that came after the full night."""
    known = night.items.filter(pa.compute.equal(night.items["domain"], "shop"))["item_id"]
    rows = [(user, item) for user in users for item in (known[5].as_py(), "came later")]
    columns = {
        "user_id": [user for user, _ in rows],
        "item_id": [item for _, item in rows],
        "domain": ["shop"] * len(rows),
        "timestamp": [moment] * len(rows),
    }
    return pa.table(columns).select(night.events.column_names).cast(night.events.schema)


def test_only_users_with_new_events_are_scored(week: Week) -> None:
    for name, changed in week.changed.items():
        assert week.summaries[name]["scored_users"] == len(changed)
        assert week.summaries[name]["full"] == FULL
    assert (
        week.summaries[MONDAY]["users"]
        == week.store.read_json(f"runs/{FULL}/manifest.json")["users"] + 1
    )


def test_buckets_without_them_are_those_of_the_nights_before(week: Week) -> None:
    manifest = week.store.read_json(f"runs/{TUESDAY}/manifest.json")
    runs = [file["path"].split("/")[1] for file in manifest["files"]]
    assert set(runs) == {FULL, MONDAY, TUESDAY}
    buckets = len(runs) // len(DOMAINS)
    assert runs.count(TUESDAY) <= 2 * len(DOMAINS)
    assert runs.count(FULL) >= (buckets - 5) * len(DOMAINS)


def test_lists_are_those_of_all_users_scored_with_what_was_pinned(week: Week) -> None:
    config, store = week.configs[TUESDAY], week.store
    prepared = open_prepared(store, store.read_json(f"runs/{TUESDAY}/prepare.json")["prepared"])
    plan = store.read_json(f"runs/{FULL}/plan.json")
    day = open_prepared(store, plan["prepared"]).as_of_us // US_PER_DAY + 1
    items = load_items(store, prepared, f"runs/{FULL}/items")
    candidates = {name: read_candidates(store, f"runs/{FULL}/candidates", name) for name in DOMAINS}
    recommender = load_model(store, plan["model"]).recommender
    scorer = Scorer(recommender, items, prepared.domains, candidates)
    wanted = [("model", domain) for domain in DOMAINS]
    places, top_k = new_places(config, config.score.top_k), config.score.top_k
    expected: dict[str, list[pa.Table]] = {domain: [] for domain in DOMAINS}
    for bucket in range(prepared.buckets):
        known = up_to(flatten(read_histories(store, prepared, bucket)), day)
        for (_, domain), found in scorer.score(known, day, wanted, top_k, places).items():
            ids = read_catalogue(store, prepared, domain)[ITEM_ID].combine_chunks()
            expected[domain].append(to_table(known.user_ids, found, ids))
    for domain, tables in expected.items():
        whole = pa.concat_tables(tables).sort_by("user_id").to_pydict()
        published = read_scores(store.root, domain=domain).read_all().sort_by("user_id").to_pydict()
        assert published["user_id"] == whole["user_id"]
        assert published["item_ids"] == whole["item_ids"]
        scores = [np.concatenate(table["scores"]) for table in (published, whole)]
        np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)


def test_new_events_change_the_lists_and_what_was_had_is_gone(week: Week, night: Night) -> None:
    before = {row["user_id"]: row for row in night.lists("shop").to_pylist()}
    after = read_scores(week.store.root, domain="shop").read_all().to_pylist()
    had = new_events(night, ["x"], dt.datetime.now(dt.UTC))["item_id"][0].as_py()
    changed = week.changed[MONDAY] | week.changed[TUESDAY]
    for row in after:
        if row["user_id"] in changed:
            assert had not in row["item_ids"]
            earlier = before.get(row["user_id"], {"scores": []})
            assert row["scores"] != earlier["scores"]
        else:
            assert row["item_ids"] == before[row["user_id"]]["item_ids"]


def test_items_newer_than_the_catalogue_are_kept_as_rejects(week: Week) -> None:
    rejects = week.store.read_json(f"runs/{MONDAY}/prepare.json")["rejects"]["events"]
    assert rejects["unknown item"] == len(week.changed[MONDAY])


def test_runs_that_a_publication_stands_on_stay(week: Week) -> None:
    assert remove_old_runs(week.store, TUESDAY, keep=1) == []
    assert set(week.store.list("runs")) >= {FULL, MONDAY, TUESDAY}


@pytest.mark.parametrize(("key", "told"), [("top_k", "top_k"), ("diversity", "steering")])
def test_other_settings_than_those_of_the_full_night_are_refused(
    week: Week, key: str, told: str
) -> None:
    config = change(week.configs[TUESDAY], run_id="wednesday", score={key: 1})
    week.store.write_json(
        "runs/wednesday/prepare.json", week.store.read_json(f"runs/{TUESDAY}/prepare.json")
    )
    with pytest.raises(ConfigError, match=rf"full night night, found others \({told}\)"):
        score(config, week.store)


def test_a_rerun_changes_nothing(week: Week) -> None:
    path = f"runs/{TUESDAY}/manifest.json"
    before = week.store.read_bytes(path)
    nightly(week.configs[TUESDAY], week.store)
    assert week.store.read_bytes(path) == before
