import numpy as np
import pyarrow as pa
import pytest

from crossrec.config import Config
from crossrec.data.histories import Prepared
from crossrec.evaluate.holdout import open_holdout
from crossrec.evaluate.truth import (
    holdout_truth,
    load_known_items,
    newest_truth,
    popularity_deciles,
)
from crossrec.storage import Store
from tests.evaluate.holdout import write_prepared

ITEMS = {"film": ["f0", "f1", "f2"], "shop": ["s0", "s1"]}
F0, F1, F2, S0, S1 = range(5)
"""Catalogue rows."""

START, STOP = 10, 14
"""Days of the hold-out: 10 up to 13."""

ANNA = [(F0, 1), (F1, 3), (F0, 10), (F2, 11), (S0, 12), (S0, 13)]
BEN = [(S0, 5), (F1, 10), (S1, 14)]
CARL = [(F1, 11), (S0, 12)]
DORA = [(F0, 9)]
BUCKETS = [{"anna": ANNA}, {"ben": BEN, "carl": CARL, "dora": DORA}]


@pytest.fixture
def prepared(store: Store) -> Prepared:
    return write_prepared(store, ITEMS, BUCKETS)


def truth(store: Store, prepared: Prepared, buckets: range, start: int, stop: int) -> pa.Table:
    items = load_known_items(store, prepared, start)
    return holdout_truth(store, prepared, items, buckets, start, stop)


def test_holdout_truth_is_what_known_users_did_for_the_first_time(
    store: Store, prepared: Prepared
) -> None:
    found = truth(store, prepared, range(2), START, STOP)
    assert found.column_names[3:5] == ["is_cold_item", "is_cold_in_domain"]
    assert [tuple(row.values())[:5] for row in found.to_pylist()] == [
        # Nobody had f2 before day 10. Anna's f0 on day 10 is not her first.
        ("anna", "film", "f2", True, False),
        # Twice, counted once; Ben had s0 on day 5; Anna had nothing of the shop.
        ("anna", "shop", "s0", False, True),
        # Anna had f1 on day 3. Ben's s1 on day 14 is too late.
        ("ben", "film", "f1", False, True),
        # Carl is new, and Dora did nothing in these days.
    ]


def test_holdout_truth_says_what_was_known_on_the_first_day(
    store: Store, prepared: Prepared
) -> None:
    found = truth(store, prepared, range(2), START, STOP)
    columns = ["item_id", "events_in_domain", "history_length", "item_popularity_decile"]
    assert found.column_names[5:] == columns[1:]
    assert [tuple(row.values()) for row in found.select(columns).to_pylist()] == [
        # Anna's f0 and f1 of days 1 and 3; what she did from day 10 on does not count.
        ("f2", 2, 2, 0),
        ("s0", 0, 2, 10),
        # Ben's s0 of day 5. Of two known films, f1 (one event) is behind f0 (two).
        ("f1", 0, 1, 5),
    ]


def test_holdout_truth_of_some_buckets_knows_items_from_all(
    store: Store, prepared: Prepared
) -> None:
    """Ben, who made s0 known, lies in the bucket that is left out."""
    found = truth(store, prepared, range(1), START, STOP).to_pylist()
    assert [(row["item_id"], row["is_cold_item"]) for row in found] == [("f2", True), ("s0", False)]


def test_holdout_truth_is_empty_where_nothing_happened(store: Store, prepared: Prepared) -> None:
    assert truth(store, prepared, range(2), 20, 34).num_rows == 0


def test_popularity_deciles_are_equal_groups_of_the_known_items_of_a_domain() -> None:
    draw = np.random.default_rng(1)
    events = np.concatenate([draw.permutation(60) - 30, [0, 3]]).clip(0)
    deciles = popularity_deciles(events, [(0, 60), (60, 62)])
    known = events[:60] > 0
    assert known.sum() == 29  # 1 to 29
    assert np.bincount(deciles[:60][known])[1:].tolist() == [2, 3, 3, 3, 3, 3, 3, 3, 3, 3]
    assert (np.diff(deciles[:60][known][np.argsort(events[:60][known])]) >= 0).all()
    assert not deciles[:60][~known].any()
    # The other domain has one known item, whatever its count is beside the first domain's.
    assert deciles[60:].tolist() == [0, 10]


def test_popularity_deciles_divide_equal_counts_by_the_order_of_the_catalogue() -> None:
    assert popularity_deciles(np.full(10, 7), [(0, 10)]).tolist() == list(range(1, 11))


def test_newest_truth_is_each_users_newest_event_if_it_is_new_to_them(
    store: Store, prepared: Prepared
) -> None:
    known = prepared.without_newest()
    items = load_known_items(store, known, 100)
    found = newest_truth(store, prepared, known, items, range(2)).to_pylist()
    # Anna's newest, s0, repeats the one before it; Dora has no other event.
    assert [tuple(row.values())[:7] for row in found] == [
        ("ben", "shop", "s1", True, False, 1, 2),
        ("carl", "shop", "s0", False, True, 0, 1),
    ]


def test_leave_one_out_knows_all_days_but_no_newest_event(store: Store, prepared: Prepared) -> None:
    config = Config.model_validate(
        {"storage": {"root": "/x"}, "evaluate": {"protocol": "leave_one_out"}}
    )
    holdout = open_holdout(config, prepared, {"holdout": 20, "night": 20})
    assert holdout.active_until is None
    items = holdout.known_items(store)
    # f0 twice of Anna, f1 of Anna, Ben and Carl, f2 of Anna, s0 of Anna and Ben; not Dora's f0.
    assert items.events.tolist() == [2, 3, 1, 2, 0]
    assert holdout.truth(store, items)["user_id"].to_pylist() == ["ben", "carl"]


def test_holdout_of_a_domain_alone_has_its_rows_and_judges_the_same(
    store: Store, prepared: Prepared
) -> None:
    config = Config.model_validate({"storage": {"root": "/x"}})
    whole = open_holdout(config, prepared, {"holdout": START, "night": STOP})
    assert whole.active_until == STOP
    alone = whole.only(prepared.domains[1])
    assert alone.active_until is None
    found = alone.truth(store, alone.known_items(store))
    # Anna had nothing of the shop, so to a model of the shop alone she is no known user.
    assert found["item_id"].to_pylist() == []
    assert whole.truth(store, whole.known_items(store)).num_rows == 3
