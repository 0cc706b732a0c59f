import math

import numpy as np
import pytest

from crossrec.data.itemstate import EventStates
from crossrec.data.replay import Activity, Histories, before, select_users
from crossrec.data.userstate import (
    FEATURE_NAMES,
    TASTE_DECAY,
    TASTE_EVENTS,
    domain_counts,
    user_features,
)
from tests.small import activity_of, histories, random_users

ITEMS, DAY = 9, 90


def states_of(found: Histories) -> EventStates:
    return EventStates.of(activity_of(found, ITEMS))


def column(features: np.ndarray, name: str) -> list[float]:
    values: list[float] = features[:, FEATURE_NAMES.index(name)].tolist()
    return values


def test_user_features_count_events_and_days() -> None:
    # 60 is the first of the 30 days before day 90.
    found = histories([(1, 1), (2, 59), (3, 60), (4, 70)], [(1, 89), (1, 89)])
    features = user_features(found, states_of(found), DAY)
    assert column(features, "log_events") == pytest.approx([math.log(1 + 4), math.log(1 + 2)])
    assert column(features, "log_days_since") == pytest.approx([math.log(1 + 20), math.log(1 + 1)])
    assert column(features, "log_recent_events") == pytest.approx(
        [math.log(1 + 2), math.log(1 + 2)]
    )


def test_user_features_of_no_events_are_zeros() -> None:
    found = histories([(1, 3)], [])
    assert user_features(found, states_of(found), DAY)[1].tolist() == [0] * len(FEATURE_NAMES)


def test_taste_is_what_items_were_like_when_they_were_chosen() -> None:
    # On day 5 user 0 chose what user 1 had made known four days before, then what was new.
    found = histories([(0, 5), (2, 8)], [(0, 1)])
    features = user_features(found, states_of(found), DAY)
    total = TASTE_DECAY + 1
    assert column(features, "taste_is_new") == pytest.approx([1 / total, 1])
    assert column(features, "taste_log_age")[0] == pytest.approx(
        TASTE_DECAY * math.log(1 + 4) / total, rel=1e-3
    )


def test_taste_reads_the_newest_events() -> None:
    long = [(number * number % ITEMS, number) for number in range(TASTE_EVENTS + 10)]
    found = histories(long)
    states = states_of(found)
    first = FEATURE_NAMES.index("log_recent_events") + 1
    whole, newest, fewer = (
        user_features(histories(long[-kept:]), states, DAY)[0, first:]
        for kept in (len(long), TASTE_EVENTS, TASTE_EVENTS - 1)
    )
    assert np.array_equal(whole, newest)
    assert not np.array_equal(newest, fewer)


def test_user_features_know_nothing_of_later_events() -> None:
    found = histories(*random_users(17, 20, ITEMS, 40))
    known = before(found, 20)
    crowd = activity_of(found, ITEMS)
    changed = Activity(crowd.rows, crowd.days, np.where(crowd.days >= 20, 100, crowd.events), ITEMS)
    features = [user_features(known, EventStates.of(part), 20) for part in (crowd, changed)]
    assert np.array_equal(features[0], features[1])


def test_user_features_of_a_batch_equal_each_user_alone() -> None:
    found = histories(*random_users(18, 8, ITEMS, 40))
    states = states_of(found)
    whole = user_features(found, states, DAY)
    for user in range(8):
        alone = user_features(select_users(found, np.arange(8) == user), states, DAY)
        assert np.array_equal(alone[0], whole[user])


def test_user_features_of_nobody_are_empty() -> None:
    nobody = histories()
    assert user_features(nobody, states_of(nobody), DAY).shape == (0, len(FEATURE_NAMES))


def test_domain_counts_count_each_domain_by_itself() -> None:
    found = domain_counts(histories([(0, 1), (3, 1), (4, 2)], [], [(8, 1)]), [(0, 4), (4, 9)])
    expected = [[math.log(3), math.log(2)], [0.0, 0.0], [0.0, math.log(2)]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
