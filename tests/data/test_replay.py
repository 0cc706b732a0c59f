from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from crossrec.data.daily import load_activity
from crossrec.data.histories import Prepared, activity_path
from crossrec.data.replay import (
    Activity,
    Histories,
    before,
    flatten,
    new_events,
    pad,
    rated_events,
    rated_newest,
    select_events,
    select_users,
)
from crossrec.schema import ACTIVITY, HISTORIES, US_PER_DAY
from crossrec.storage import Store

Event = tuple[int, int]
"""Catalogue row and day."""


def histories(*users: Sequence[Event]) -> Histories:
    return flatten(
        pa.Table.from_pylist(
            [
                {
                    "user_id": f"user-{number}",
                    "rows": [row for row, _ in events],
                    "timestamps": [day * US_PER_DAY + 1 for _, day in events],
                }
                for number, events in enumerate(users)
            ],
            schema=HISTORIES,
        )
    )


def listed(found: Histories) -> list[list[Event]]:
    pairs = list(zip(found.rows.tolist(), found.days.tolist(), strict=True))
    return [pairs[start:stop] for start, stop in pairwise(found.offsets.tolist())]


def random_users(draw: np.random.Generator) -> list[list[Event]]:
    return [
        [
            (int(draw.integers(0, 6)), day)
            for day in sorted(draw.integers(0, 8, draw.integers(0, 12)).tolist())
        ]
        for _ in range(20)
    ]


def test_flatten_cuts_timestamps_into_whole_days() -> None:
    table = pa.table(
        [["ada"], [[1, 2, 3]], [[-1, US_PER_DAY - 1, US_PER_DAY]]],
        schema=HISTORIES,
    )
    assert listed(flatten(table)) == [[(1, -1), (2, 0), (3, 1)]]


def test_flatten_reads_a_slice_of_several_chunks() -> None:
    whole = pa.table([["ada", "bob"], [[1], [2, 3]], [[0], [0, 0]]], schema=HISTORIES)
    table = pa.concat_tables([whole.slice(1), whole])
    assert listed(flatten(table)) == [[(2, 0), (3, 0)], [(1, 0)], [(2, 0), (3, 0)]]


def test_flatten_of_no_users_is_empty() -> None:
    found = flatten(pa.Table.from_batches([], schema=HISTORIES))
    assert (found.offsets.tolist(), len(found.rows), len(found.user_ids)) == ([0], 0, 0)


def test_before_keeps_the_users_whose_events_are_all_later() -> None:
    found = before(histories([(1, 4), (2, 5), (3, 6)], [(4, 5)], []), 5)
    assert listed(found) == [[(1, 4)], [], []]
    assert found.user_ids.to_pylist() == ["user-0", "user-1", "user-2"]


def test_select_events_and_users_agree_with_lists() -> None:
    draw = np.random.default_rng(17)
    users = random_users(draw)
    found = histories(*users)
    keep_events = draw.random(len(found.rows)) < 0.5
    keep_users = draw.random(len(users)) < 0.5
    flags = iter(keep_events.tolist())
    expected = [[event for event in events if next(flags)] for events in users]
    assert listed(select_events(found, keep_events)) == expected
    chosen = select_users(found, keep_users)
    assert listed(chosen) == [users[number] for number in np.flatnonzero(keep_users)]
    assert chosen.user_ids.to_pylist() == [
        f"user-{number}" for number in np.flatnonzero(keep_users)
    ]


def test_new_events_leaves_out_what_the_user_had_before() -> None:
    users, rows = new_events(histories([(7, 1), (7, 5), (8, 5), (8, 6)]), 5, 7)
    assert (users.tolist(), rows.tolist()) == ([0], [8])


def test_new_events_leaves_out_users_unknown_at_the_start() -> None:
    users, rows = new_events(histories([(7, 5), (8, 6)], [(1, 4), (9, 5)]), 5, 7)
    assert (users.tolist(), rows.tolist()) == ([1], [9])


def test_new_events_stop_is_exclusive() -> None:
    found = histories([(1, 1), (2, 5), (3, 6), (4, 7)])
    assert new_events(found, 5, 7)[1].tolist() == [2, 3]


def test_new_events_equals_a_search_by_hand() -> None:
    users = random_users(np.random.default_rng(18))
    found_users, found_rows = new_events(histories(*users), 3, 6)
    expected = []
    for number, events in enumerate(users):
        known = {row for row, day in events if day < 3}
        new = {row for row, day in events if 3 <= day < 6} - known
        expected += [(number, row) for row in sorted(new) if known]
    assert expected
    assert list(zip(found_users.tolist(), found_rows.tolist(), strict=True)) == expected


def test_pad_leaves_column_0_empty_and_repeats_the_last_day() -> None:
    padded = pad(histories([(5, 2), (6, 4)], [(7, 3)], []), 10)
    assert padded.rows.tolist() == [[-1, 5, 6], [-1, 7, -1], [-1, -1, -1]]
    assert padded.days.tolist() == [[2, 2, 4], [3, 3, 3], [0, 0, 0]]
    assert padded.lengths.tolist() == [2, 1, 0]


def test_pad_keeps_the_newest_events() -> None:
    padded = pad(histories([(1, 1), (2, 2), (3, 3)], [(4, 4)]), 2)
    assert padded.rows.tolist() == [[-1, 2, 3], [-1, 4, -1]]
    assert padded.days.tolist() == [[2, 2, 3], [4, 4, 4]]
    assert padded.lengths.tolist() == [2, 1]


def test_pad_of_empty_histories_has_column_0_alone() -> None:
    padded = pad(histories([], []), 5)
    assert padded.rows.tolist() == [[-1], [-1]]
    assert padded.lengths.tolist() == [0, 0]


def activity(*entries: tuple[int, int, int], items: int = 3) -> Activity:
    columns = np.array(entries, np.int32).reshape(-1, 3).T
    return Activity(columns[0], columns[1], columns[2], items)


def test_decayed_halves_events_every_half_life() -> None:
    found = activity((0, 9, 3), (0, 7, 4), (1, 5, 8), (1, 10, 100)).decayed(10, 2.0)
    # Day 9, the day before, counts whole; day 7 is one half-life older and day 5 two.
    assert found.tolist() == [3 + 4 / 2, 8 / 4, 0]


def test_decayed_does_not_know_the_day_itself() -> None:
    assert activity((2, 10, 5), (2, 11, 5)).decayed(10, 2.0).tolist() == [0, 0, 0]


def test_counts_add_up_days_from_start_to_before_stop() -> None:
    found = activity((0, 4, 1), (0, 5, 2), (0, 6, 4), (0, 7, 8), (2, 6, 16))
    assert found.counts(5, 7).tolist() == [2 + 4, 0, 16]
    assert found.counts(-(2**31), 6).tolist() == [1 + 2, 0, 0]


def test_load_activity_adds_up_buckets(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    prepared = Prepared("prepared/x", "x", (), 2, 0, 0, 4, 0)
    for bucket, columns in enumerate([([1, 3], [5, 5], [2, 1]), ([0, 1], [9, 5], [7, 3])]):
        table = pa.table(list(columns), schema=ACTIVITY)
        store.write_parquet(activity_path(prepared.folder, bucket), table)
    found = load_activity(store, prepared)
    parts = (found.rows, found.days, found.events)
    assert [part.tolist() for part in parts] == [[0, 1, 3], [9, 5, 5], [7, 2 + 3, 1]]
    assert found.items == 4


def test_what_events_carry_goes_with_them() -> None:
    table = pa.table(
        {
            "user_id": ["ada", "bob"],
            "rows": pa.array([[1, 2, 3], [4]], pa.list_(pa.int32())),
            "timestamps": [[day * US_PER_DAY for day in (1, 2, 3)], [9 * US_PER_DAY]],
            "ratings": pa.array([[1.0, float("nan"), 5.0], [2.0]], pa.list_(pa.float32())),
        }
    )
    found = flatten(table)
    assert before(found, 3).values["rating"].tolist()[0] == 1
    padded = pad(found, 2).values["rating"]
    # Column 0 stands for no event; the newest two are kept.
    assert str(padded.tolist()) == "[[nan, nan, 5.0], [nan, 2.0, nan]]"
    users, rows, ratings = rated_events(found, 2, 10)
    # Ada's second event has no rating; bob was not known before.
    assert (users.tolist(), rows.tolist(), ratings.tolist()) == ([0], [3], [5.0])
    # Bob's only event has nothing before it.
    users, rows, ratings = rated_newest(found)
    assert (users.tolist(), rows.tolist(), ratings.tolist()) == ([0], [3], [5.0])
