from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import crossrec
from crossrec import schema
from crossrec.config import Config
from crossrec.errors import CrossrecError
from crossrec.publish import publish
from crossrec.purge import purge
from crossrec.storage import Store
from tests.runs import (
    BUCKETS,
    DOMAINS,
    USERS,
    bucket_user_ids,
    config_of,
    publish_run,
    scores_file,
    write_lists,
    write_run,
)

FILM, BOOK = ({"domain": "a/b", "item_id": "i3"}, {"domain": "shop", "item_id": "i4"})
"""What every user has had."""
GOOD = [[FILM, BOOK], [BOOK]]
NULLABLE = pa.schema([(field.name, field.type) for field in schema.scores_schema(2)])


def explain_run(store: Store, run_id: str, second: Any = GOOD) -> None:
    """Write a run that explains its lists, those of each bucket's second user as given."""
    folder = write_run(store, run_id)
    plan = store.read_json(f"{folder}/plan.json") | {"explain": 2}
    store.write_json(f"{folder}/plan.json", plan)
    for bucket in range(BUCKETS):
        path = f"{folder}/done/bucket-{bucket:05d}.json"
        record = store.read_json(path)
        because = [GOOD, second, GOOD]
        files = [scores_file(folder, bucket, domain) for domain in DOMAINS]
        tables = [store.read_parquet(file).append_column("because", [because]) for file in files]
        pairs = zip(files, tables, strict=True)
        record["files"] = [write_lists(store, file, table.cast(NULLABLE)) for file, table in pairs]
        store.write_json(path, record)


def test_reasons_are_published_and_read(store: Store) -> None:
    explain_run(store, "r1")
    publish(config_of(store, "r1"), store)
    table = crossrec.read_scores(store.root, options=store.options).read_all()
    assert table.column_names == ["user_id", "domain", "item_ids", "scores", "because"]
    assert table["because"].to_pylist() == [GOOD] * (BUCKETS * USERS * len(DOMAINS))
    # A night without reasons has none of it.
    publish_run(store, "r2")
    assert "explain" not in store.read_json("runs/r2/manifest.json")
    found = crossrec.read_scores(store.root, options=store.options).read_all()
    assert "because" not in found.column_names


@pytest.mark.parametrize(
    ("second", "where"),
    [
        (None, "expected a list in because, found null"),
        ([[FILM]], "expected reasons for each item, found lists of two lengths"),
        ([[FILM], None], "expected a list of reasons for each item, found null"),
        ([[FILM, BOOK, FILM], []], "expected at most 2 reasons an item, found more"),
        ([[FILM, FILM], []], "expected no reason twice for an item, found one"),
        ([[{"domain": "shop", "item_id": None}], []], "a domain and an item, found null"),
        ([[None], []], "expected a domain and an item, found null"),
        # Of another domain the same id; another item; no domain at all.
        ([[{"domain": "shop", "item_id": "i3"}], []], "the user's own history, found .*'i3'"),
        ([[{"domain": "shop", "item_id": "i1"}], []], "the user's own history, found .*'i1'"),
        ([[{"domain": "tv", "item_id": "i3"}], []], "the user's own history, found .*'tv'"),
    ],
)
def test_wrong_reasons_are_not_published(tmp_path: Path, second: Any, where: str) -> None:
    store = Store(str(tmp_path))
    explain_run(store, "r1", second)
    user = bucket_user_ids(0)[1]
    with pytest.raises(CrossrecError, match=f"{where}.* for '{user}'.*run score again"):
        publish(config_of(store, "r1"), store)
    assert not store.exists("current.json")


def test_no_reason_is_good(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    explain_run(store, "r1", [[], []])
    publish(config_of(store, "r1"), store)


def forget_a_column(plan: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in plan.items() if name != "explain"}


def ask_for_a_column(plan: dict[str, Any]) -> dict[str, Any]:
    return plan | {"explain": 2}


@pytest.mark.parametrize(
    ("write", "change"), [(explain_run, forget_a_column), (write_run, ask_for_a_column)]
)
def test_columns_are_those_of_the_plan(
    tmp_path: Path,
    write: Callable[[Store, str], None],
    change: Callable[[dict[str, Any]], dict[str, Any]],
) -> None:
    store = Store(str(tmp_path))
    write(store, "r1")
    store.write_json("runs/r1/plan.json", change(store.read_json("runs/r1/plan.json")))
    with pytest.raises(CrossrecError, match="expected columns user_id string, item_ids"):
        publish(config_of(store, "r1"), store)


def test_purged_lists_keep_their_reasons(tmp_path: Path) -> None:
    store, gone = Store(str(tmp_path / "store")), bucket_user_ids(0)[1]
    explain_run(store, "r1")
    publish(config_of(store, "r1"), store)
    pq.write_table(pa.table({"user_id": [gone]}), tmp_path / "forget.parquet")
    settings = {"run_id": "purge", "storage": {"root": store.root}}
    forget = {"data": {"forget": str(tmp_path / "forget.parquet")}}
    purge(Config.model_validate(settings | forget), store)
    table = crossrec.read_scores(store.root).read_all()
    assert gone not in table["user_id"].to_pylist()
    assert table["because"].to_pylist() == [GOOD] * ((BUCKETS * USERS - 1) * len(DOMAINS))
    # And all that publication verifies holds.
    publish_run(store, "r2", prepared="prepared/p2")
    publish(config_of(store, "r1"), store)
