"""Items that require an age of their user, and doubtful texts: a full night, an incremental one."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from crossrec.config import Config
from crossrec.data.prepare import prepare
from crossrec.data.texts import COPIED, EMPTY, FINDINGS, is_on_trial
from crossrec.errors import CrossrecError
from crossrec.nightly import nightly
from crossrec.publish import publish
from crossrec.readers import read_scores
from crossrec.score.pipeline import score
from crossrec.storage import Store
from crossrec.verify import verify_run
from tests.nights import DOMAINS, Night, change

pytestmark = pytest.mark.slow

RULES = {"requires": [["min_age", "<=", "age"]], "check_texts": True}
FULL, MONDAY = "required", "monday"


def write_users(store: Store, name: str, ages: dict[str, int | None]) -> str:
    columns = {"user_id": list(ages), "age": pa.array(ages.values(), pa.int16())}
    store.write_parquet(f"input/{name}.parquet", pa.table(columns))
    return store.uri(f"input/{name}.parquet")


def lists_keep_to(
    store: Store, min_ages: dict[Any, int | None], ages: dict[str, int | None]
) -> int:
    """Look at all lists that readers find; return how many items in them require something."""
    asking = 0
    for domain in DOMAINS:
        for row in read_scores(store.root, domain=domain).read_all().to_pylist():
            age = ages.get(row["user_id"])
            required = [min_ages[domain, item] for item in row["item_ids"]]
            asked = [one for one in required if one is not None]
            assert all(age is not None and one <= age for one in asked)
            assert len(row["item_ids"]) == len(set(row["item_ids"])) > 0
            asking += len(asked)
    return asking


def copy_of_an_item(night: Night) -> dict[str, Any]:
    """Return an item of shop with the text of another, which has events."""
    event = next(row for row in night.events.to_pylist() if row["domain"] == "shop")
    key = event["domain"], event["item_id"]
    items = night.items.to_pylist()
    row = next(row for row in items if (row["domain"], row["item_id"]) == key)
    return {**row, "item_id": "copy"}


def test_no_list_of_a_night_holds_what_its_user_does_not_fulfil(
    night: Night, tmp_path: Path
) -> None:
    shutil.copytree(night.store.full_path(""), tmp_path / "store")
    store, draw = Store(str(tmp_path / "store")), np.random.default_rng(17)
    copied, blank = copy_of_an_item(night), {"item_id": "blank", "domain": "shop"}
    more = pa.Table.from_pylist([copied, blank], night.items.schema)
    items = pa.concat_tables([night.items, more])
    drawn = [[None, 12, 18][one] for one in draw.integers(0, 3, len(night.items))] + [None] * 2
    items = items.append_column("min_age", pa.array(drawn, pa.int8()))
    store.write_parquet("input/aged.parquet", items)
    keys = zip(items["domain"].to_pylist(), items["item_id"].to_pylist(), strict=True)
    min_ages = dict(zip(keys, drawn, strict=True))
    users = sorted(set(night.events["user_id"].to_pylist()))
    ages = {user: [None, 9, 15, 40][draw.integers(4)] for user in users[10:]}
    data = {
        "events": store.uri("input/events.parquet"),
        "items": store.uri("input/aged.parquet"),
        "users": write_users(store, "sunday", ages),
    }
    scored = {"model": night.read_json("plan.json")["model"].rpartition("/")[2]}
    full: Config = change(
        night.config,
        run_id=FULL,
        data=data,
        storage={"root": store.root},
        score={**scored, "candidates": RULES},
    )
    prepare(full, store)
    score(full, store)
    publish(full, store)
    assert lists_keep_to(store, min_ages, ages) > 1_000
    for row in store.read_parquet(f"runs/{FULL}/defaults.parquet").to_pylist():
        assert row["item_ids"]
        assert all(min_ages[row["domain"], item] is None for item in row["item_ids"])

    findings = store.read_parquet(f"runs/{FULL}/candidates/{FINDINGS}").to_pylist()
    reasons = {(row["item_id"], row["reason"]) for row in findings}
    assert reasons >= {("copy", COPIED), ("blank", EMPTY)}
    shop = read_scores(store.root, domain="shop").read_all()
    chosen = dict(zip(users, is_on_trial(pa.array(users)), strict=True))
    doubtful = {row["item_id"] for row in findings if row["domain"] == "shop"}
    holders = [row["user_id"] for row in shop.to_pylist() if doubtful & {*row["item_ids"]}]
    assert all(chosen[user] for user in holders)
    assert holders

    grown, shy = (next(u for u in ages if ages[u] == age) for age in (9, 40))
    now = {**ages, grown: 18, shy: None}
    monday = change(
        full,
        run_id=MONDAY,
        data={"users": write_users(store, "monday", now)},
        score={"model": None, "mode": "incremental"},
    )
    assert nightly(monday, store)["scored_users"] == 2
    assert lists_keep_to(store, min_ages, now) > 1_000

    # A published list of who turns out to be younger.
    plan = store.read_json(f"runs/{FULL}/plan.json")
    for name in store.list(f"runs/{FULL}/traits"):
        if name.endswith(".parquet"):
            path = f"runs/{FULL}/traits/{name}"
            table = store.read_parquet(path)
            younger = pa.array([15.0] * len(table))
            store.write_parquet(path, table.set_column(1, "trait.age", younger))
    with pytest.raises(CrossrecError, match=r"score\.candidates\.requires the user fulfils"):
        verify_run(store, f"runs/{FULL}", plan)
