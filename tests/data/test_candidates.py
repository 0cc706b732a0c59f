import datetime as dt
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from crossrec import schema
from crossrec.config import Config
from crossrec.data.attributes import NO_VALUE
from crossrec.data.candidates import Candidates, read_candidates, rules_of
from crossrec.data.candidates import write_candidates as write
from crossrec.data.histories import DomainRange, Prepared, catalogue_path
from crossrec.errors import ConfigError, InputError
from crossrec.storage import Store

DAY = 20_000
TODAY = dt.date(1970, 1, 1) + dt.timedelta(DAY)
YESTERDAY, TOMORROW = (TODAY + dt.timedelta(days) for days in (-1, 1))

SHOP = ["a", "b", "c", "d", "e"]
VIDEO = ["a", "v"]
FROM_DAYS = {"a": None, "b": DAY + 1, "c": DAY, "d": DAY - 1, "e": None}

ITEMS = pa.table(
    {
        "item_id": ["e", "d", "c", "b", "a", "a", "v", "a", None],
        "domain": ["shop", "shop", "shop", "shop", "shop", "video", "video", "shop", "shop"],
        "price": [5.0, 4.0, None, 2.0, 1.0, 10.0, 20.0, 99.0, 1.0],
        # The last but one repeats a key: prepare keeps the first.
        "brand": ["x", "x", "y", None, "x", "y", "y", "z", "z"],
    }
)


LAST_DAYS = [TODAY, YESTERDAY, None, TOMORROW, TOMORROW, YESTERDAY, TODAY, None, None]
"""Of ITEMS."""


@pytest.fixture
def prepared(store: Store) -> Prepared:
    for domain, ids in (("shop", SHOP), ("video", VIDEO)):
        columns = {
            "domain": [domain] * len(ids),
            "item_id": ids,
            "text": [""] * len(ids),
            "category": pa.nulls(len(ids), pa.string()),
            "available_day": [FROM_DAYS[one] if domain == "shop" else None for one in ids],
        }
        table = pa.table(columns, schema=schema.CATALOGUE)
        store.write_parquet(catalogue_path("prepared/p", domain), table)
    ranges = (DomainRange("shop", 0, 5, 9), DomainRange("video", 5, 7, 9))
    return Prepared("prepared/p", "p", ranges, 1, 1, 9, 7, 0)


def config_of(store: Store, items: Sequence[pa.Table], score: dict[str, Any]) -> Config:
    """Write the items, a file each, and return the config of a night on them."""
    for number, table in enumerate(items, 1):
        store.write_parquet(f"in/items/{number}.parquet", table)
    store.write_parquet("in/events.parquet", pa.table({"user_id": ["u"]}))
    return Config.model_validate(
        {
            "run_id": "night",
            "storage": {"root": store.root, "options": store.options},
            "data": {"events": store.uri("in/events.parquet"), "items": store.uri("in/items")},
            "score": score,
        }
    )


def found_by(
    store: Store, prepared: Prepared, items: pa.Table = ITEMS, **rules: Any
) -> dict[str, Candidates]:
    config = config_of(store, [items.slice(0, 4), items.slice(4)], {"candidates": rules})
    folder = write(config, store, prepared, rules_of(config, store), DAY)
    return {domain.name: read_candidates(store, folder, domain.name) for domain in prepared.domains}


def allowed(store: Store, prepared: Prepared, items: pa.Table = ITEMS, **rules: Any) -> str:
    """What lists may hold: the ids of shop, a dash, and those of video."""
    found = found_by(store, prepared, items, **rules)
    names = (np.array(ids)[found[name].allowed] for name, ids in (("shop", SHOP), ("video", VIDEO)))
    return "-".join("".join(ids.tolist()) for ids in names)


def test_item_before_its_day_is_no_candidate(store: Store, prepared: Prepared) -> None:
    """Of `b` the catalogue says that it comes tomorrow."""
    assert allowed(store, prepared) == "acde-av"


@pytest.mark.parametrize(
    "until",
    [
        pa.array(LAST_DAYS),
        pa.array(
            [day and dt.datetime.combine(day, dt.time(7), dt.UTC) for day in LAST_DAYS],
            pa.timestamp("ns", "UTC"),
        ),
        pa.array([str(day or "some day") for day in LAST_DAYS]),
    ],
    ids=["dates", "timestamps", "texts"],
)
def test_item_after_its_last_day_is_no_candidate(
    store: Store, prepared: Prepared, until: pa.Array
) -> None:
    items = ITEMS.append_column("ends", until)
    assert allowed(store, prepared, items, available_until="ends") == "ace-v"


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"shop": [["price", "<", 5]]}, "ad-av"),
        ({"*": [["price", ">=", 5]]}, "e-av"),
        ({"*": [["price", ">=", 5]], "video": [["brand", "in", ["z"]]]}, "e-"),
        ({"shop": [[["price", "<", 2]], [["brand", "=", "y"]]]}, "ac-av"),
        ({"shop": [["price", "<", 5], ["brand", "not in", ["y", "z"]]]}, "ad-av"),
    ],
)
def test_filters_leave_items_out(
    store: Store, prepared: Prepared, filters: dict[str, Any], expected: str
) -> None:
    """A null fulfils nothing: c has no price."""
    assert allowed(store, prepared, filters=filters) == expected


def test_filters_read_categories_that_are_stored_as_numbers(
    store: Store, prepared: Prepared
) -> None:
    coded = ITEMS.set_column(3, "brand", ITEMS.column("brand").dictionary_encode())
    assert allowed(store, prepared, coded, filters={"*": [["brand", "==", "x"]]}) == "ade-"


@pytest.mark.parametrize(
    ("listed", "rule", "expected"),
    [
        ({"item_id": ["a", "nobody"]}, "deny", "cde-v"),
        ({"item_id": ["a", "a"], "domain": ["video", "nowhere"]}, "deny", "acde-v"),
        ({"item_id": ["a", "b"]}, "allow", "a-a"),
        ({"item_id": ["a", "c"], "domain": ["shop", "shop"]}, "allow", "ac-av"),
        ({"item_id": ["c"], "domain": ["video"]}, "allow", "acde-"),
    ],
)
def test_lists_of_items_allow_and_deny(
    store: Store, prepared: Prepared, listed: dict[str, list[str]], rule: str, expected: str
) -> None:
    store.write_parquet("in/listed.parquet", pa.table(listed))
    assert allowed(store, prepared, **{rule: store.uri("in/listed.parquet")}) == expected


def test_items_of_one_value_have_one_code(store: Store, prepared: Prepared) -> None:
    found = found_by(store, prepared, max_per={"brand": 2, "price": 1})
    assert found["shop"].most == {"brand": 2, "price": 1}
    a, b, c, d, e = found["shop"].groups["brand"].tolist()
    assert a == d == e != c
    assert b == NO_VALUE
    assert found["video"].groups["brand"].tolist() == [c, c]
    assert len(set(found["shop"].groups["price"].tolist())) == 5


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"filters": {"shp": [["price", "<", 5]]}}, "filters: expected some of"),
        ({"filters": {"shop": [["prise", "<", 5]]}}, "expected a column of data.items"),
        ({"filters": {"shop": [["price", "<", "x"]]}}, "filters.shop: expected conditions"),
        ({"max_per": {"brnd": 3}}, "max_per: expected a column of data.items"),
    ],
)
def test_rule_that_cannot_be_is_told(
    store: Store, prepared: Prepared, rules: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        found_by(store, prepared, **rules)
    assert not store.exists("runs/night/candidates/rules.json")


def test_list_that_is_not_there_is_told(store: Store, prepared: Prepared) -> None:
    with pytest.raises(InputError, match=r"score\.candidates\.deny=.*: expected a Parquet file"):
        found_by(store, prepared, deny=store.uri("in/none.parquet"))


def test_list_without_ids_is_told(store: Store, prepared: Prepared) -> None:
    store.write_parquet("in/listed.parquet", pa.table({"item": ["a"]}))
    with pytest.raises(InputError, match=r"rename the column in score\.candidates\.allow"):
        found_by(store, prepared, allow=store.uri("in/listed.parquet"))


def test_last_day_that_is_no_day_is_told(store: Store, prepared: Prepared) -> None:
    with pytest.raises(InputError, match="a column price of dates or timestamps"):
        found_by(store, prepared, available_until="price")
