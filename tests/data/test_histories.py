import numpy as np
import pyarrow as pa
import pytest

from crossrec.data.events import CHECKED, LISTED, NO_EVENT
from crossrec.data.grouping import Grouped, group_users
from crossrec.data.histories import Prepared, open_prepared, read_histories
from crossrec.data.pieces import encode_piece, read_buckets
from crossrec.errors import InputError
from crossrec.schema import ACTIVITY, HISTORIES, US_PER_DAY
from crossrec.storage import Store
from crossrec.storage_errors import MissingObject

STARTS = np.array([0, 10, 20])
"""Two domains of ten items."""


def events(*rows: tuple[str, int, int, int]) -> pa.Table:
    return pa.Table.from_pylist(
        [dict(zip(CHECKED.names, row, strict=True)) for row in rows], schema=CHECKED
    )


def group(*rows: tuple[str, int, int, int]) -> Grouped:
    return group_users(events(*rows), STARTS)


def test_group_users_orders_users_by_id_and_events_by_time_then_row() -> None:
    grouped = group(("bob", 3, 7, 0), ("ada", 9, 5, 1), ("ada", 2, 5, 2), ("ada", 4, 1, 3))
    assert grouped.histories.schema == HISTORIES
    assert grouped.histories.to_pylist() == [
        {"user_id": "ada", "rows": [4, 2, 9], "timestamps": [1, 5, 5]},
        {"user_id": "bob", "rows": [3], "timestamps": [7]},
    ]


def test_group_users_keeps_the_first_of_exact_duplicates() -> None:
    grouped = group(("ada", 2, 5, 8), ("ada", 2, 5, 1), ("ada", 2, 6, 2), ("bob", 2, 5, 3))
    assert grouped.duplicates.column("origin").to_pylist() == [8]
    assert grouped.histories.column("rows").to_pylist() == [[2, 2], [2]]


def test_group_users_does_not_depend_on_the_order_of_its_input() -> None:
    draw = np.random.default_rng(17)
    size = 300
    table = events(
        *(
            (f"user-{user}", row, time, origin)
            for origin, (user, row, time) in enumerate(draw.integers(0, 8, (size, 3)).tolist())
        )
    )
    shuffled = table.take(pa.array(draw.permutation(size)))
    one, other = group_users(table, STARTS), group_users(shuffled, STARTS)
    assert one.histories == other.histories
    assert one.activity == other.activity
    assert one.duplicates.num_rows > 0
    origins = [set(found.duplicates.column("origin").to_pylist()) for found in (one, other)]
    assert origins[0] == origins[1]


def test_group_users_gives_listed_users_empty_histories() -> None:
    grouped = group(("new", LISTED, 0, -1), ("ada", LISTED, 0, -1), ("ada", 2, 5, 0))
    assert grouped.histories.to_pylist() == [
        {"user_id": "ada", "rows": [2], "timestamps": [5]},
        {"user_id": "new", "rows": [], "timestamps": []},
    ]


def test_group_users_counts_users_of_rejected_events_alone() -> None:
    bad = NO_EVENT
    grouped = group(("cy", bad, 0, -1), ("cy", bad, 0, -1), ("ada", bad, 0, -1), ("ada", 1, 5, 0))
    assert grouped.histories.column("user_id").to_pylist() == ["ada"]
    assert grouped.unheard == 1


def test_group_users_counts_events_of_items_by_day() -> None:
    day = US_PER_DAY
    grouped = group(("ada", 2, day - 1, 0), ("bob", 2, 0, 1), ("ada", 2, day, 2), ("ada", 1, -1, 3))
    assert grouped.activity.schema == ACTIVITY
    assert grouped.activity.to_pylist() == [
        {"row": 1, "day": -1, "events": 1},
        {"row": 2, "day": 0, "events": 2},
        {"row": 2, "day": 1, "events": 1},
    ]


def test_group_users_counts_by_domain_and_week() -> None:
    # Day 4 is 1970-01-05, a Monday; day 3 belongs to the week of day -3.
    grouped = group(
        ("ada", 2, 3 * US_PER_DAY, 0),
        ("ada", 3, 4 * US_PER_DAY, 1),
        ("bob", 12, 4 * US_PER_DAY, 2),
        ("bob", 2, 10 * US_PER_DAY, 3),
    )
    assert grouped.domain_events.tolist() == [3, 1]
    assert grouped.domain_users.tolist() == [2, 1]
    assert grouped.weeks.tolist() == [[0, -3, 1], [0, 4, 2], [1, 4, 1]]


def test_group_users_of_an_empty_bucket_is_empty() -> None:
    grouped = group()
    assert grouped.histories.schema == HISTORIES
    assert (grouped.histories.num_rows, grouped.activity.num_rows, grouped.unheard) == (0, 0, 0)
    assert grouped.domain_events.tolist() == [0, 0]


def test_group_users_handles_a_history_of_100_000_events() -> None:
    size = 100_000
    order = np.random.default_rng(17).permutation(size)
    table = pa.table(
        [
            pa.array(["ada"] * size, pa.large_string()),
            pa.array((order % 20).astype(np.int32)),
            pa.array(order),
            pa.array(np.arange(size)),
        ],
        schema=CHECKED,
    )
    histories = group_users(table, STARTS).histories
    assert histories.column("timestamps").to_pylist() == [list(range(size))]
    assert histories.column("rows")[0].as_py()[:21] == [*range(20), 0]


def test_read_buckets_returns_what_pieces_hold(store: Store) -> None:
    table = events(("ada", 1, 5, 0), ("bob", 2, 6, 1), ("🦊", 3, 7, 2))
    store.write_bytes("p/0.bin", encode_piece(table, np.array([3, 0, 3]), 4))
    store.write_bytes("p/1.bin", encode_piece(table.slice(2), np.array([3]), 4))
    found = dict(read_buckets(store, ["p/0.bin", "p/1.bin"], range(1, 4)))
    assert list(found) == [1, 2, 3]
    assert found[1] == found[2] == CHECKED.empty_table()
    assert found[3].column("user_id").to_pylist() == ["ada", "🦊", "🦊"]
    assert found[3].column("origin").to_pylist() == [0, 2, 2]


def test_open_prepared_tells_of_an_unfinished_folder(tmp_path: object) -> None:
    with pytest.raises(MissingObject, match=r"prepared/x/summary.json"):
        open_prepared(Store(str(tmp_path)), "prepared/x")


def test_open_prepared_refuses_another_format(tmp_path: object) -> None:
    store = Store(str(tmp_path))
    store.write_json("prepared/x/summary.json", {"format": 0})
    with pytest.raises(InputError, match="expected format 4, found format 0; run the stage"):
        open_prepared(store, "prepared/x")


def test_read_histories_names_the_buckets_that_exist(tmp_path: object) -> None:
    prepared = Prepared("prepared/x", "x", (), 32, 0, 0, 0, 0)
    with pytest.raises(InputError, match="expected a bucket from 0 to 31, found 32"):
        read_histories(Store(str(tmp_path)), prepared, 32)
