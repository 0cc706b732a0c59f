import math
from dataclasses import replace

import numpy as np
import pytest

from crossrec.data.itemstate import (
    HALF_LIVES_DAYS,
    POPULARITY_FLOOR,
    STATE_NAMES,
    EventStates,
    states_on_day,
)
from crossrec.data.replay import NEVER, Activity
from tests.small import activity_of, histories, random_users

ITEMS = 6


def activity(*cells: tuple[int, int, int]) -> Activity:
    """Cells of (row, day, events), by row, then day."""
    columns = np.array(cells, np.int32).reshape(-1, 3).T
    return Activity(columns[0], columns[1], columns[2], ITEMS)


def column(states: np.ndarray, name: str) -> list[float]:
    found: list[float] = states[:, STATE_NAMES.index(name)].tolist()
    return found


def random_activity(seed: int) -> Activity:
    return activity_of(histories(*random_users(seed, 20, ITEMS, 40)), ITEMS)


def up_to(found: Activity, day: int) -> Activity:
    known = found.days < day
    return Activity(found.rows[known], found.days[known], found.events[known], found.items)


@pytest.mark.parametrize("half_life", HALF_LIVES_DAYS)
def test_states_count_an_event_of_the_day_before_as_one(half_life: float) -> None:
    states = states_on_day(activity((0, 10, 1)), 11)
    assert column(states, f"log_popularity_{half_life:g}d")[0] == pytest.approx(
        math.log(1 + POPULARITY_FLOOR)
    )


@pytest.mark.parametrize("half_life", [3, 6, 12, 24, 48, 96, 384])
def test_states_halve_an_event_after_a_half_life(half_life: int) -> None:
    states = states_on_day(activity((0, 10, 1)), 11 + half_life)
    assert column(states, f"log_popularity_{half_life}d")[0] == pytest.approx(
        math.log(1 / 2 + POPULARITY_FLOOR)
    )


def test_states_add_up_what_is_left_of_all_events() -> None:
    states = states_on_day(activity((1, 5, 8), (1, 8, 4), (1, 11, 2)), 12)
    assert column(states, "log_popularity_3d")[1] == pytest.approx(
        math.log(8 / 4 + 4 / 2 + 2 + POPULARITY_FLOOR)
    )


def test_states_age_from_the_first_event() -> None:
    states = states_on_day(activity((0, 10, 1), (0, 13, 1), (1, 13, 1)), 14)
    assert column(states, "log_age")[:2] == pytest.approx([math.log(1 + 4), math.log(1 + 1)])
    assert column(states, "is_new") == [0, 0, 1, 1, 1, 1]


def test_states_of_a_new_item_are_finite() -> None:
    states = states_on_day(activity((0, 10, 1)), 12)
    assert states[5].tolist() == pytest.approx(
        [math.log(POPULARITY_FLOOR)] * len(HALF_LIVES_DAYS) + [0, 1]
    )


@pytest.mark.parametrize("day", [1, 10, 25, 40])
def test_states_on_day_know_nothing_of_the_day_or_later(day: int) -> None:
    found = random_activity(17)
    assert (found.days >= day - 1).any()
    assert np.array_equal(states_on_day(found, day), states_on_day(up_to(found, day), day))


def at_events_by_day(found: Activity) -> np.ndarray:
    return np.stack(
        [
            states_on_day(found, day)[row]
            for row, day in zip(found.rows.tolist(), found.days.tolist(), strict=True)
        ]
    )


def test_at_events_equal_the_states_on_the_day_of_each_event() -> None:
    found = random_activity(18)
    order = np.random.default_rng(18).permutation(np.repeat(np.arange(len(found.rows)), 2))
    states = EventStates.of(found).at_events(found.rows[order], found.days[order])
    np.testing.assert_allclose(states, at_events_by_day(found)[order], rtol=1e-3, atol=1e-5)


def test_at_events_know_days_before_1970() -> None:
    found = random_activity(19)
    early = Activity(found.rows, found.days - np.int32(200_000), found.events, ITEMS)
    states = EventStates.of(early).at_events(early.rows, early.days)
    np.testing.assert_allclose(states, at_events_by_day(found), rtol=1e-3, atol=1e-5)


def test_at_events_of_very_many_days_or_items_have_wide_keys() -> None:
    found = random_activity(22)
    gap = np.where(found.days < 20, 0, 2**30).astype(np.int32)
    far = replace(found, days=found.days + gap)
    states = EventStates.of(far)
    assert EventStates.of(found).keys.dtype == np.int32
    assert states.keys.dtype == np.int64
    expected = at_events_by_day(far)
    np.testing.assert_allclose(states.at_events(far.rows, far.days), expected, rtol=1e-3, atol=1e-5)


def test_at_events_know_nothing_of_the_day_or_later() -> None:
    found, day = random_activity(20), 20
    known = found.days <= day
    changed = Activity(
        found.rows, found.days, np.where(found.days >= day, 100, found.events), ITEMS
    )
    states = [
        EventStates.of(part).at_events(found.rows[known], found.days[known])
        for part in (found, changed, up_to(found, day + 1))
    ]
    assert (found.days[known] == day).any()
    assert np.array_equal(states[0], states[1])
    assert np.array_equal(states[0], states[2])


def test_events_after_the_activity_have_the_state_of_the_night() -> None:
    found, day = random_activity(21), 30
    known = up_to(found, day)
    night = states_on_day(known, day)
    states = replace(EventStates.of(known), night=night)
    late = np.flatnonzero(found.days >= day)
    assert len(late)
    # As an incremental night sees them: as of the day before.
    as_of = np.full(len(late), day - 1)
    cells = set(zip(known.rows.tolist(), known.days.tolist(), strict=True))
    told = EventStates.of(known)
    expected = np.concatenate(
        [
            told.at_events(np.array([row]), np.array([day - 1]))
            if (row, day - 1) in cells
            else night[[row]]
            for row in found.rows[late].tolist()
        ]
    )
    assert 0 < np.isclose(expected, night[found.rows[late]]).all(1).sum() < len(late)
    np.testing.assert_array_equal(states.at_events(found.rows[late], as_of), expected)
    np.testing.assert_array_equal(
        states.at_events(known.rows, known.days),
        EventStates.of(known).at_events(known.rows, known.days),
    )
    nothing = replace(EventStates.of(activity()), night=night)
    np.testing.assert_array_equal(nothing.at_events(found.rows, found.days), night[found.rows])


def test_at_events_of_no_events_are_none() -> None:
    nothing = np.zeros(0, np.int32)
    states = EventStates.of(activity()).at_events(nothing, nothing)
    assert states.shape == (0, len(STATE_NAMES))


def test_age_counts_from_the_day_the_catalogue_tells() -> None:
    cells = activity((0, 20, 1), (1, 20, 1), (1, 25, 1))
    told = np.array([NEVER, 10, 5, 40, NEVER, NEVER], np.int32)
    known = replace(cells, available=told)
    # Item 0 has its first event, 1 and 2 the catalogue's word, 3 comes later, 4 is unknown.
    expected = np.log1p([30 - 20, 30 - 10, 30 - 5, 0, 0, 0])
    assert column(states_on_day(known, 30), "log_age") == pytest.approx(expected)
    at_events = EventStates.of(known).at_events(np.array([1, 0]), np.array([25, 20]))
    assert column(at_events, "log_age") == pytest.approx(np.log1p([25 - 10, 0]), rel=1e-3)
