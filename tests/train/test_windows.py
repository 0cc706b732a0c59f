import numpy as np
import pyarrow as pa
import pytest

from crossrec.data.replay import Histories, flatten, pad
from crossrec.schema import US_PER_DAY, histories_schema
from crossrec.train.continued import FIRST_DAY, SINCE
from crossrec.train.windows import BY_EVENT, draw_epoch, draw_windows, training_targets
from tests.data.test_replay import histories, random_users

LENGTHS = [9, 3, 0, 4]
NEVER = 10**6


def users(lengths: list[int], an_hour: int = 1) -> pa.Table:
    """Users with rows 0, 1, ..., so many in each hour of an endless day, rated as the row."""
    rows = [list(range(length)) for length in lengths]
    times = [[row // an_hour * 3_600_000_000 for row in range(length)] for length in lengths]
    ratings = [[float(row) for row in range(length)] for length in lengths]
    ids = [f"u{user}" for user in range(len(lengths))]
    return pa.table([ids, rows, times, ratings], schema=histories_schema(["rating"]))


def drawn(table: pa.Table, known_before: int = NEVER, rounds: int = 300) -> list[pa.Table]:
    rng = np.random.default_rng(17)
    return [draw_windows(table, 4, known_before, rng) for _ in range(rounds)]


def test_windows_of_long_histories_end_anywhere_and_begin_at_the_start() -> None:
    found = drawn(users(LENGTHS))
    ends = [[len(rows) for rows in table["rows"].to_pylist()] for table in found]
    assert {end[0] for end in ends} == set(range(4, 10))
    # Half of them as they are, half of them at one of six ends, which the whole is too.
    assert np.mean([end[0] == 9 for end in ends]) == pytest.approx(1 / 2 + 1 / 12, abs=0.1)
    assert {tuple(end[1:]) for end in ends} == {(3, 0, 4)}
    assert all(
        rows == list(range(len(rows))) == ratings
        for table in found
        for rows, ratings in zip(
            table["rows"].to_pylist(), table["ratings"].to_pylist(), strict=True
        )
    )


def test_windows_end_among_what_is_known() -> None:
    """Of 24 events an hour apart each day has 24; a third day's are those of the hold-out."""
    found = drawn(users([60]), known_before=2)
    ends = {len(table["rows"][0]) for table in found}
    assert max(ends - {60}) == 48
    assert min(ends) == 4


def test_events_of_one_moment_come_in_any_order_and_others_in_theirs() -> None:
    found = [table["rows"][0].as_py() for table in drawn(users([4], an_hour=2))]
    orders = {tuple(rows) for rows in found}
    assert orders == {(0, 1, 2, 3), (1, 0, 2, 3), (0, 1, 3, 2), (1, 0, 3, 2)}


def test_values_stay_with_their_events() -> None:
    for table in drawn(users([8], an_hour=4), rounds=20):
        assert table["ratings"][0].as_py() == table["rows"][0].as_py()
        assert table["timestamps"][0].as_py() == sorted(table["timestamps"][0].as_py())


def test_half_of_the_histories_go_by_event() -> None:
    flags = [flag for table in drawn(users(LENGTHS)) for flag in table[BY_EVENT].to_pylist()]
    assert np.mean(flags) == pytest.approx(0.5, abs=0.05)


def test_histories_of_which_a_part_learns_are_not_cut() -> None:
    since = pa.array([5, FIRST_DAY])
    found = drawn(users([9, 9]).append_column(SINCE, since))
    ends = np.array([[len(rows) for rows in table["rows"].to_pylist()] for table in found])
    assert set(ends[:, 0]) == {9}
    assert set(ends[:, 1]) == set(range(4, 10))


def test_nothing_is_drawn_of_nothing() -> None:
    assert draw_windows(users([]), 4, NEVER, np.random.default_rng(1)).num_rows == 0
    assert draw_windows(users([0, 0]), 4, NEVER, np.random.default_rng(1)).num_rows == 2


def test_an_epoch_has_other_windows_of_a_history_at_each_pass() -> None:
    rng = np.random.default_rng(17)
    tables = list(draw_epoch([users([99]), users([3])], 3, 4, NEVER, rng))
    assert [table["user_id"].to_pylist() for table in tables] == [["u0"]] * 6
    assert len({len(table["rows"][0]) for table in tables[:3]}) > 1
    assert [len(table["rows"][0]) for table in tables[3:]] == [3, 3, 3]


def one_day(events: int) -> Histories:
    return flatten(
        pa.table(
            [["u0"], [list(range(events))], [[US_PER_DAY] * events]], schema=histories_schema([])
        )
    )


def test_a_day_longer_than_a_window_teaches_by_event_alone() -> None:
    known = one_day(9)
    padded = pad(known, 4)
    assert len(training_targets(padded, known)[0]) == 0
    users_N, sources_N, columns_N = training_targets(padded, known, np.array([True]))
    assert users_N.tolist() == [0, 0, 0]
    assert (sources_N + 1).tolist() == columns_N.tolist() == [2, 3, 4]


def targets_of(found: Histories, max_history: int) -> list[tuple[int, int, int]]:
    parts = training_targets(pad(found, max_history), found)
    return list(zip(*(part.tolist() for part in parts), strict=True))


def test_training_targets_of_one_day_share_the_newest_source_of_an_earlier_day() -> None:
    # Columns:                    1       2       3       4       5
    found = histories([(1, 1), (2, 3), (3, 3), (4, 3), (5, 4)])
    assert targets_of(found, 10) == [(0, 0, 1), (0, 1, 2), (0, 1, 3), (0, 1, 4), (0, 4, 5)]


def test_training_targets_leave_out_those_whose_source_was_cut_off() -> None:
    # Kept are (2, 3), (3, 3), (4, 5): what was known before day 3 is cut off.
    found = histories([(1, 1), (2, 3), (3, 3), (4, 5)])
    assert targets_of(found, 3) == [(0, 2, 3)]


def test_training_targets_of_a_whole_history_start_from_nothing() -> None:
    assert targets_of(histories([(2, 3), (3, 3)]), 2) == [(0, 0, 1), (0, 0, 2)]


@pytest.mark.parametrize("max_history", [1, 3, 20])
def test_training_targets_equal_a_search_by_hand(max_history: int) -> None:
    users = random_users(np.random.default_rng(19))
    expected = []
    for number, events in enumerate(users):
        cut = max(len(events) - max_history, 0)
        for place in range(cut, len(events)):
            source = sum(day < events[place][1] for _, day in events) - cut
            if source > 0 or not cut:
                expected.append((number, source, place - cut + 1))
    assert expected
    assert targets_of(histories(*users), max_history) == expected
