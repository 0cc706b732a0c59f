"""Mistakes in rules are told from the input's files alone, before anything is prepared."""

from typing import Any

import pyarrow as pa
import pytest

from crossrec.config import Config
from crossrec.data.pins import list_inputs
from crossrec.data.rulecheck import check_rules
from crossrec.errors import UserError
from crossrec.storage import Store
from tests.data.test_candidates import DAY, ITEMS, TODAY, TOMORROW, YESTERDAY, config_of

PRICE = pa.table({"item_id": ["late"], "domain": ["music"], "min_age": [18.0]})
"""A second file, with another domain and without the columns of the first."""
USERS = pa.table({"user_id": ["u"], "age": [20], "name": ["Ada"]})


def check(store: Store, day: int | None = None, **score: Any) -> None:
    store.write_parquet("in/users.parquet", USERS)
    settings = config_of(store, [ITEMS, PRICE], {}).model_dump() | {"score": score}
    settings["data"]["users"] = store.uri("in/users.parquet")
    config = Config.model_validate(settings)
    check_rules(config, list_inputs(config), day)


def rule(action: str, *condition: Any, **more: Any) -> dict[str, Any]:
    return {"action": action, "where": [list(condition)], **more}


def pin(item: Any, **more: Any) -> dict[str, Any]:
    return rule("pin", "item_id", "in" if isinstance(item, list) else "=", item, **more)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (rule("boost", "colour", "=", "red"), r"score\.rules\.0: expected a column.*found colour"),
        (rule("exclude", "price", "=", "cheap"), r"score\.rules\.0: expected conditions"),
        (rule("boost", "brand", ">", 5), r"score\.rules\.0: expected conditions"),
        (rule("boost", "brand", "=", "x", domain="shp"), r"rules\.0: expected one of.*found shp"),
        (pin("nowhere"), r"score\.rules\.0: expected items to pin, found no nowhere"),
        (pin("v", domain="shop"), r"expected items of 'shop' to pin, found no v"),
        (pin(["a", "q", "z"]), "found no q, z"),
    ],
)
def test_a_rule_that_cannot_be_is_told(store: Store, made: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as told:
        check(store, rules=[made])
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"filters": {"shp": [["price", "<", 5]]}}, r"filters\.shp: expected one of.*found shp"),
        ({"filters": {"shop": [["prise", "<", 5]]}}, r"filters\.shop: expected a column.*prise"),
        ({"filters": {"*": [["price", "<", "x"]]}}, r"filters\.\*: expected conditions"),
        ({"max_per": {"brnd": 3}}, r"max_per: expected a column of data\.items.*brnd"),
        ({"available_until": "price"}, "a column price of dates or timestamps"),
        ({"requires": [["max_age", "<=", "age"]]}, r"requires: expected a column of data\.items"),
        ({"requires": [["min_age", "<=", "years"]]}, r"requires: expected a column of data\.users"),
        ({"requires": [["min_age", "==", "name"]]}, "requires: expected two columns of numbers"),
    ],
)
def test_rules_of_candidates_that_cannot_be_are_told(
    store: Store, rules: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        check(store, candidates=rules)


def test_lists_that_cannot_be_read_are_told(store: Store) -> None:
    store.write_parquet("in/listed.parquet", pa.table({"item": ["a"]}))
    with pytest.raises(UserError, match=r"score\.candidates\.allow"):
        check(store, candidates={"allow": store.uri("in/listed.parquet")})
    with pytest.raises(UserError, match=r"score\.candidates\.deny=.*: expected a Parquet file"):
        check(store, candidates={"deny": store.uri("in/none.parquet")})


def test_what_is_only_pinned_on_another_day_need_not_exist_yet(store: Store) -> None:
    for days in ({"first_day": TOMORROW}, {"last_day": YESTERDAY}):
        check(store, rules=[pin("to come", **days)])
        check(store, DAY, rules=[pin("to come", **days)])
    now = pin("to come", first_day=TODAY)
    # Which day it is, the events tell.
    check(store, rules=[now])
    with pytest.raises(UserError, match="found no to come"):
        check(store, DAY, rules=[now])


def test_rules_that_can_be_are_passed(store: Store) -> None:
    rules = [
        rule("boost", "brand", "=", "nobody's"),
        rule("pin", "brand", "=", "nobody's"),
        pin("v", domain="video"),
        pin(["a", "late"]),
    ]
    candidates = {
        "filters": {"music": [["price", ">", 3]], "*": [["brand", "in", ["x", "y"]]]},
        "max_per": {"brand": 1},
        "requires": [["min_age", "<=", "age"]],
    }
    check(store, rules=rules, candidates=candidates)
