"""Items that require an age of their user: a full night and an incremental one after it."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from crossrec.config import Config
from crossrec.data.prepare import prepare
from crossrec.errors import CrossrecError
from crossrec.nightly import nightly
from crossrec.publish import publish
from crossrec.readers import read_scores
from crossrec.score.pipeline import score
from crossrec.storage import Store
from crossrec.verify import verify_run
from tests.nights import DOMAINS, Night, change

pytestmark = pytest.mark.slow

RULES = {"requires": [["min_age", "<=", "age"]]}
FULL, MONDAY = "required", "monday"


def write_users(store: Store, name: str, ages: dict[str, int | None]) -> str:
    columns = {"user_id": list(ages), "age": pa.array(ages.values(), pa.int16())}
    store.write_parquet(f"input/{name}.parquet", pa.table(columns))
    return store.uri(f"input/{name}.parquet")


def lists_keep_to(store: Store, min_ages: dict[Any, int | None], ages: dict[str, int | None]) -> int:
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


def test_no_list_of_a_night_holds_what_its_user_does_not_fulfil(
    night: Night, tmp_path: Path
) -> None:
    shutil.copytree(night.store.full_path(""), tmp_path / "store")
    store, draw = Store(str(tmp_path / "store")), np.random.default_rng(17)
    drawn = [[None, 12, 18][one] for one in draw.integers(0, 3, len(night.items))]
    items = night.items.append_column("min_age", pa.array(drawn, pa.int8()))
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
