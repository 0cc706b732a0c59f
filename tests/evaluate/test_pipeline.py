import pyarrow as pa
import pytest

from crossrec.data.histories import (
    DomainRange,
    Prepared,
    activity_path,
    catalogue_path,
    histories_path,
)
from crossrec.evaluate.pipeline import holdout_truth
from crossrec.schema import ACTIVITY, CATALOGUE, HISTORIES, US_PER_DAY
from crossrec.storage import Store

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
"""Users of each bucket with their (row, day)."""


@pytest.fixture
def prepared(store: Store) -> Prepared:
    """The buckets as prepare would have left them."""
    for domain, ids in ITEMS.items():
        rows = [{"domain": domain, "item_id": item, "text": ""} for item in ids]
        table = pa.Table.from_pylist(rows, CATALOGUE)
        store.write_parquet(catalogue_path("prepared", domain), table)
    for number, users in enumerate(BUCKETS):
        histories = [
            {
                "user_id": user,
                "rows": [row for row, _ in events],
                "timestamps": [day * US_PER_DAY + 5 for _, day in events],
            }
            for user, events in users.items()
        ]
        table = pa.Table.from_pylist(histories, HISTORIES)
        store.write_parquet(histories_path("prepared", number), table)
        events = sorted(event for history in users.values() for event in history)
        activity = [{"row": row, "day": day, "events": 1} for row, day in events]
        table = pa.Table.from_pylist(activity, ACTIVITY)
        store.write_parquet(activity_path("prepared", number), table)
    domains = (DomainRange("film", 0, 3, 7), DomainRange("shop", 3, 5, 5))
    as_of_us = 14 * US_PER_DAY
    return Prepared("prepared", "digest", domains, 2, 4, 12, 5, as_of_us)


def test_holdout_truth_is_what_known_users_did_for_the_first_time(
    store: Store, prepared: Prepared
) -> None:
    found = holdout_truth(store, prepared, range(2), START, STOP)
    assert found.column_names[3:] == ["is_cold_item", "is_cold_in_domain"]
    assert [tuple(row.values()) for row in found.to_pylist()] == [
        # Nobody had f2 before day 10. Anna's f0 on day 10 is not her first.
        ("anna", "film", "f2", True, False),
        # Twice, counted once; Ben had s0 on day 5; Anna had nothing of the shop.
        ("anna", "shop", "s0", False, True),
        # Anna had f1 on day 3. Ben's s1 on day 14 is too late.
        ("ben", "film", "f1", False, True),
        # Carl is new, and Dora did nothing in these days.
    ]


def test_holdout_truth_of_some_buckets_knows_items_from_all(
    store: Store, prepared: Prepared
) -> None:
    """Ben, who made s0 known, lies in the bucket that is left out."""
    found = holdout_truth(store, prepared, range(1), START, STOP).to_pylist()
    assert [(row["item_id"], row["is_cold_item"]) for row in found] == [("f2", True), ("s0", False)]


def test_holdout_truth_is_empty_where_nothing_happened(store: Store, prepared: Prepared) -> None:
    assert holdout_truth(store, prepared, range(2), 20, 34).num_rows == 0
