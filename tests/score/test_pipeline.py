import datetime as dt
import os
from collections import Counter, defaultdict
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from crossrec.data.prepare import prepare
from crossrec.errors import ConfigError, InputError
from crossrec.schema import bucket_name, domain_folder
from crossrec.score.pipeline import score
from crossrec.verify import verify_run
from tests.nights import BUCKETS, DEMO, DOMAINS, Night, change, modified

GONE = (3, 17)
"""Buckets whose work is undone."""


@pytest.fixture(scope="module")
def again(night: Night) -> Night:
    """Another run that scores with the night's model."""
    model = night.manifest["model"].removeprefix("models/")
    config = change(night.config, run_id="again", score={"model": model})
    prepare(config, night.store)
    return Night(config, night.store, score(config, night.store), night.events, night.items)


def bytes_by_name(night: Night) -> dict[str, str]:
    """Return the sha256 of each scores file by its path within the run."""
    files = modified(night.store, f"runs/{night.config.run_id}/scores")
    return {path.partition("/scores/")[2]: sha256 for path, (_, sha256) in files.items()}


def test_score_of_the_same_model_gives_the_same_bytes(night: Night, again: Night) -> None:
    """So nothing in the files depends on the run or the moment."""
    found = bytes_by_name(again)
    assert len(found) == BUCKETS * len(DOMAINS)
    assert found == bytes_by_name(night)


def test_score_writes_a_record_a_bucket(again: Night) -> None:
    records = [again.read_json(f"done/{bucket_name(bucket)}.json") for bucket in range(BUCKETS)]
    assert sum(record["users"] for record in records) == again.summary["users"]
    assert {len(record["files"]) for record in records} == {len(DOMAINS)}
    assert again.store.list("runs/again/done") == [
        f"{bucket_name(bucket)}.json" for bucket in range(BUCKETS)
    ]


def test_score_does_only_the_buckets_that_are_missing(again: Night) -> None:
    store = again.store
    folders = ("runs/again/scores", "runs/again/done")
    before = [modified(store, folder) for folder in folders]
    for bucket in GONE:
        record = again.read_json(f"done/{bucket_name(bucket)}.json")
        store.delete(f"runs/again/done/{bucket_name(bucket)}.json")
        for file in record["files"]:
            store.delete(file["path"])
    summary = score(again.config, store)
    assert summary["rescored_buckets"] == len(GONE)
    after = [modified(store, folder) for folder in folders]
    changed = {path for path in after[0] if after[0][path] != before[0][path]}
    assert changed == {
        path for path in after[0] if any(bucket_name(bucket) in path for bucket in GONE)
    }
    sha256 = [{path: fact[1] for path, fact in files[0].items()} for files in (before, after)]
    assert sha256[0] == sha256[1]


def test_score_of_a_finished_run_does_nothing(again: Night) -> None:
    before = modified(again.store, "runs/again")
    assert score(again.config, again.store)["rescored_buckets"] == 0
    assert modified(again.store, "runs/again") == before


def test_score_refuses_to_go_on_where_the_input_has_changed(again: Night) -> None:
    path = Path(again.store.full_path("input/events.parquet"))
    changed_ns = path.stat().st_mtime_ns
    os.utime(path, ns=(changed_ns, changed_ns + 10**9))
    try:
        with pytest.raises(InputError, match=r"events\.parquet: .* that run again began with"):
            score(again.config, again.store)
    finally:
        os.utime(path, ns=(changed_ns, changed_ns))
    assert score(again.config, again.store)["rescored_buckets"] == 0


def test_score_keeps_to_the_rules_and_publication_sees_to_it(night: Night, again: Night) -> None:
    denied = pa.table({"item_id": night.lists("shop")["item_ids"][0].as_py()[:3]})
    night.store.write_parquet("rules/denied.parquet", denied)
    shop = night.items.filter(pc.field("domain") == "shop")
    category = dict(zip(shop["item_id"].to_pylist(), shop["category"].to_pylist(), strict=True))
    banned = category[denied["item_id"][0].as_py()]
    rules = {
        "deny": night.store.uri("rules/denied.parquet"),
        "filters": {"shop": [["category", "!=", banned]]},
        "max_per": {"category": 3},
    }
    score_config = {"model": again.config.score.model, "candidates": rules}
    config = change(night.config, run_id="ruled", score=score_config)
    prepare(config, night.store)
    score(config, night.store)
    plan = night.store.read_json("runs/ruled/plan.json")
    files = verify_run(night.store, "runs/ruled", plan).files
    paths = [file["path"] for file in files if file["domain"] == "shop"]
    lists = pa.concat_tables(night.store.read_parquet(path) for path in paths)["item_ids"]
    found = [Counter(category[item] for item in items) for items in lists.to_pylist()]
    assert not {*denied["item_id"].to_pylist()} & {*pc.list_flatten(lists).to_pylist()}
    assert max(max(counter.values()) for counter in found) == 3
    assert banned not in {value for counter in found for value in counter}
    night.store.write_parquet("rules/denied.parquet", denied.slice(1))
    with pytest.raises(ConfigError, match=r"another plan \(differs in candidates\)"):
        score(config, night.store)


@pytest.mark.parametrize("domain", DEMO.domains)
def test_holdout_lists_unseen_items_for_those_who_come_back(night: Night, domain: str) -> None:
    """Who had events before the hold-out and did something new in it."""
    start = dt.date.fromisoformat(night.read_json("metrics.json")["holdout"]["start"])
    had, came_back = defaultdict(set), set()
    for event in night.events.sort_by("timestamp").to_pylist():
        user, item = event["user_id"], (event["domain"], event["item_id"])
        if event["timestamp"].date() < start:
            had[user].add(item)
        elif user in had and item not in had[user]:
            came_back.add(user)
    folder = f"runs/night/holdout/{domain_folder(domain)}"
    tables = [night.store.read_parquet(f"{folder}/{name}") for name in night.store.list(folder)]
    rows = [row for table in tables for row in table.to_pylist()]
    assert sorted(row["user_id"] for row in rows) == sorted(came_back)
    for row in rows:
        assert len(row["item_ids"]) == len(set(row["item_ids"])) == 50
        assert not {(domain, item) for item in row["item_ids"]} & had[row["user_id"]]
