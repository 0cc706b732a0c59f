"""Editors' rules on a small catalogue, and the lists that they make."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crossrec.config import Config
from crossrec.data.candidates import Candidates, read_candidates, rules_of
from crossrec.data.candidates import write_candidates as write
from crossrec.data.editors import PIN, Edits, read_edits
from crossrec.data.histories import Prepared
from crossrec.data.requires import Requires
from crossrec.data.texts import is_on_trial
from crossrec.errors import ConfigError
from crossrec.storage import Store, encode_parquet
from crossrec.verify_lists import Allowed, BucketUsers, ItemIndex, WrongLists
from crossrec.verify_pins import check_pins
from tests.data.test_candidates import (
    DAY,
    ITEMS,
    TODAY,
    TOMORROW,
    YESTERDAY,
    config_of,
    prepared,
)

__all__ = ["prepared"]

BRAND_X = [["brand", "=", "x"]]
"""Rows a, d, e of the shop."""


def edits_of(
    store: Store, prepared: Prepared, *rules: dict[str, Any]
) -> tuple[dict[str, Edits], list[str]]:
    """What the rules add in each domain, and what of the shop lists may hold."""
    config = config_of(store, [ITEMS], {"rules": rules})
    folder = write(config, store, prepared, rules_of(config, store), DAY)
    found = {name: read_edits(store, folder, name) for name in ("shop", "video")}
    allowed = read_candidates(store, folder, "shop").allowed
    kept = [one for one, is_kept in zip("abcde", allowed.tolist(), strict=True) if is_kept]
    return {name: edits for name, edits in found.items() if edits is not None}, kept


def test_boosts_add_up_where_their_conditions_hold(store: Store, prepared: Prepared) -> None:
    dear = {"action": "boost", "where": [["price", ">=", 5]], "by": -0.5}
    own = {"action": "boost", "where": BRAND_X, "domain": "shop", "by": 0.25}
    edits, _ = edits_of(store, prepared, dear, own)
    assert edits["shop"].added.tolist() == [0.25, 0, 0, 0.25, 0.25 - 0.5]
    assert edits["video"].added.tolist() == [-0.5, -0.5]
    assert not edits["shop"].place.any()


def test_rules_hold_from_their_first_day_to_their_last(store: Store, prepared: Prepared) -> None:
    days: list[tuple[dict[str, Any], bool]] = [
        ({}, True),
        ({"first_day": TODAY, "last_day": TODAY}, True),
        ({"first_day": TOMORROW}, False),
        ({"last_day": YESTERDAY}, False),
    ]
    rules = [
        {"action": "boost", "where": BRAND_X, "by": 2.0**number, **day}
        for number, (day, _) in enumerate(days)
    ]
    edits, _ = edits_of(store, prepared, *rules)
    expected = sum(2.0**number for number, (_, holds) in enumerate(days) if holds)
    assert edits["shop"].added.tolist() == [expected, 0, 0, expected, expected]


def test_excluded_items_are_no_candidates_and_no_pins(store: Store, prepared: Prepared) -> None:
    pin = {"action": "pin", "where": BRAND_X}
    exclude = {"action": "exclude", "where": [["item_id", "=", "d"]], "domain": "shop"}
    late = {"action": "exclude", "where": BRAND_X, "first_day": TOMORROW}
    edits, kept = edits_of(store, prepared, pin, exclude, late)
    # Of b the day has not come.
    assert kept == ["a", "c", "e"]
    assert edits["shop"].pinned.tolist() == [0, 4]


def test_pins_stand_in_the_order_of_their_rules(store: Store, prepared: Prepared) -> None:
    rules = [{"action": "pin", "where": [["item_id", "=", one]], "domain": "shop"} for one in "eae"]
    edits, _ = edits_of(store, prepared, *rules)
    assert edits["shop"].pinned.tolist() == [4, 0]
    added = edits["shop"].added
    assert added[4] > added[0] > PIN
    assert added[1:4].tolist() == [0, 0, 0]
    assert not edits["video"].added.any()


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"where": [["colour", "=", "red"]]}, "colour"),
        ({"where": BRAND_X, "domain": "books"}, "books"),
        ({"where": [["price", "=", "cheap"]]}, "score.rules.0.where"),
    ],
)
def test_rule_that_cannot_be_is_told(
    store: Store, prepared: Prepared, rule: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        edits_of(store, prepared, {"action": "boost", **rule})


def test_pins_and_diversity_do_not_go_together() -> None:
    rules = [{"action": "pin", "where": BRAND_X}]
    with pytest.raises(ValueError, match="diversity would move"):
        Config.model_validate(
            {"storage": {"root": "/s"}, "score": {"rules": rules, "diversity": 0.5}}
        )


def lists_file(*lists: list[str]) -> pq.ParquetFile:
    table = pa.table({"item_ids": pa.array(lists, pa.list_(pa.string()))})
    return pq.ParquetFile(pa.BufferReader(encode_parquet(table)))


USERS = BucketUsers(pa.array(["ada", "bob"]), np.array([0, 0, 1]), np.array([4]))
"""Bob has had item e."""
ITEM_IDS = ItemIndex(pa.chunked_array([list("abcde")]))
ALLOWED = Allowed(ITEM_IDS, Candidates(np.ones(5, bool)), top_k=3)
PINNED = np.array([4, 0])


def test_lists_that_begin_with_unseen_pins_pass() -> None:
    check_pins(lists_file(["e", "a", "b"], ["a", "b", "c"]), USERS, ALLOWED, PINNED)


@pytest.mark.parametrize(
    ("lists", "whose"),
    [
        ((["a", "e", "b"], ["a", "b", "c"]), "ada"),
        ((["e", "a", "b"], ["b", "a", "c"]), "bob"),
        ((["e"], ["a"]), "ada"),
        (([], ["a"]), "ada"),
    ],
    ids=["order", "not first", "too short", "empty"],
)
def test_lists_that_do_not_begin_with_pins_are_refused(
    lists: tuple[list[str], list[str]], whose: str
) -> None:
    with pytest.raises(WrongLists, match=f"pinned by score.rules.*{whose}"):
        check_pins(lists_file(*lists), USERS, ALLOWED, PINNED)


def check_pins_by_rules(candidates: Candidates, users: BucketUsers, *lists: list[str]) -> None:
    check_pins(lists_file(*lists), users, Allowed(ITEM_IDS, candidates, top_k=3), PINNED)


def test_a_pin_that_its_user_does_not_fulfil_is_not_expected() -> None:
    """Item e requires an age of 18; Ada is younger, and what Cy is nobody knows."""
    requires = Requires(np.array([0, 0, 0, 0, 1]), (("<=", "age"),), ((None,), (18.0,)))
    candidates = Candidates(np.ones(5, bool), requires=requires)
    ages = pa.array([17.0, 40.0, None])
    nothing = np.zeros(4, np.int64), np.zeros(0, np.int64)
    users = BucketUsers(pa.array(["ada", "bob", "cy"]), *nothing, {"age": ages})
    check_pins_by_rules(candidates, users, ["a", "b"], ["e", "a"], ["a", "c"])
    with pytest.raises(WrongLists, match=r"pinned by score\.rules.*bob"):
        check_pins_by_rules(candidates, users, ["a", "b"], ["a", "b"], ["a", "c"])


def test_a_pin_on_trial_is_expected_by_those_who_are_on_trial() -> None:
    limited = np.array([False, False, False, False, True])
    candidates = Candidates(np.ones(5, bool), limited=limited)
    names = pa.array([f"user {number}" for number in range(200)])
    chosen = is_on_trial(names)
    assert 0 < chosen.sum() < len(names)
    users = BucketUsers(names, np.zeros(len(names) + 1, np.int64), np.zeros(0, np.int64))
    lists = [["e", "a"] if one else ["a", "b"] for one in chosen]
    check_pins_by_rules(candidates, users, *lists)
    lists[int(chosen.argmax())] = ["a", "b"]
    with pytest.raises(WrongLists, match=r"pinned by score\.rules"):
        check_pins_by_rules(candidates, users, *lists)
