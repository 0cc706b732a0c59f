import math

import numpy as np
import pytest

from crossrec.data import cooccurrence
from crossrec.data.cooccurrence import (
    EVENTS_A_USER,
    KINDS,
    LATELY_DAYS,
    LATELY_HALF_LIFE_DAYS,
    NEIGHBOURS,
    SHRINKAGE,
    Neighbours,
    count_neighbours,
)
from tests.small import Event, histories, random_users

DAY = 101
EVER, LATELY = SHRINKAGE["ever"], SHRINKAGE["lately"]


def listed(found: Neighbours, item: int) -> dict[int, float]:
    """Weights of an item's neighbours by column, in their order."""
    kept = slice(found.offsets[item], found.offsets[item + 1])
    return dict(zip(found.columns[kept].tolist(), found.weights[kept].tolist(), strict=True))


def count(users: list[list[Event]], kind: str, items: int = 6) -> Neighbours:
    return count_neighbours(histories(*users), DAY, items, [(0, items)])[kind][0]


def users_of(*items: list[int]) -> list[list[Event]]:
    """Users who had items on the day before."""
    return [[(item, DAY - 1) for item in own] for own in items]


def test_ever_is_a_cosine_with_shrinkage() -> None:
    # Both common users have two items: each side of a pair counts 1 / sqrt(2).
    found = count(users_of([0, 1], [0, 1], [0]), "ever")
    weight = (1 / 2 + 1 / 2) / math.sqrt((3 + EVER) * (2 + EVER))
    assert listed(found, 0) == pytest.approx({1: weight})
    assert listed(found, 1) == pytest.approx({0: weight})


def test_ever_lets_a_busy_user_say_less_of_each_pair() -> None:
    found = count(users_of([0, 1], [2, 3, 4, 5]), "ever")
    assert listed(found, 0) == pytest.approx({1: 1 / 2 / (1 + EVER)})
    assert listed(found, 2)[3] == pytest.approx(1 / 4 / (1 + EVER))


def test_ever_counts_an_item_once_a_user() -> None:
    assert listed(count(users_of([0, 0, 0, 1]), "ever"), 1) == pytest.approx(
        {0: 1 / 2 / (1 + EVER)}
    )


@pytest.mark.parametrize("kind", KINDS)
def test_an_item_is_no_neighbour_of_itself(kind: str) -> None:
    found = count_neighbours(histories(*users_of([0, 0, 3], [4, 4])), DAY, 6, [(0, 3), (3, 6)])[
        kind
    ]
    assert listed(found[0], 0) == {}
    assert list(listed(found[1], 0)) == [0]
    assert listed(found[1], 4) == {}


def test_lately_counts_what_was_done_recently() -> None:
    # Item 0 was had on the last day that is too old, item 1 yesterday.
    found = count([[(0, DAY - LATELY_DAYS - 1), (1, DAY - 1)]], "lately")
    weight = 1 / math.sqrt(2) / math.sqrt((1 + EVER) * (1 + LATELY))
    assert listed(found, 0) == pytest.approx({1: weight})
    assert listed(found, 1) == {}


def test_lately_halves_an_event_after_a_half_life() -> None:
    found = count([[(0, 1), (1, DAY - 1 - int(LATELY_HALF_LIFE_DAYS))]], "lately")
    weight = 1 / math.sqrt(2) * (1 / 2) / math.sqrt((1 + EVER) * (1 / 2 + LATELY))
    assert listed(found, 0) == pytest.approx({1: weight})


def test_lately_counts_every_event() -> None:
    found = count(users_of([0, 1, 1, 1]), "lately")
    weight = 1 / math.sqrt(2) * 3 / math.sqrt((1 + EVER) * (3 + LATELY))
    assert listed(found, 0) == pytest.approx({1: weight})


def test_neighbours_are_the_heaviest_and_equal_ones_by_column(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cooccurrence, "NEIGHBOURS", 3)
    # Item 0 met 5 three times, 1 to 4 once each.
    found = count(users_of([0, 4], [0, 3], [0, 5], [0, 1], [0, 5], [0, 2], [0, 5]), "ever")
    assert list(listed(found, 0)) == [5, 1, 2]


def test_neighbours_read_a_users_newest_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cooccurrence, "EVENTS_A_USER", 2)
    found = count(users_of([0, 1, 2]), "ever")
    assert listed(found, 0) == {}
    assert listed(found, 1) == pytest.approx({2: 1 / 2 / (1 + EVER)})
    assert listed(found, 2) == pytest.approx({1: 1 / 2 / (1 + EVER)})


def dense(users: list[list[Event]], items: int) -> dict[str, np.ndarray]:
    """Every pair's weight (items, items), straight from the formulas."""
    had, lately = np.zeros((len(users), items)), np.zeros((len(users), items))
    for user, events in enumerate(users):
        for item, day in events:
            had[user, item] = 1
            if day >= DAY - LATELY_DAYS:
                lately[user, item] += 0.5 ** ((DAY - 1 - day) / LATELY_HALF_LIFE_DAYS)
    share = 1 / np.sqrt(np.maximum(had.sum(1, keepdims=True), 1))
    left = np.sqrt(had.sum(0) + EVER)[:, None]
    weights = {
        "ever": (had * share).T @ (had * share) / left / np.sqrt(had.sum(0) + EVER),
        "lately": (had * share).T @ lately / left / np.sqrt(lately.sum(0) + LATELY),
    }
    for matrix in weights.values():
        np.fill_diagonal(matrix, 0)
    return weights


def as_matrix(found: Neighbours, shape: tuple[int, int]) -> np.ndarray:
    matrix = np.zeros(shape)
    for item in range(shape[0]):
        for column, weight in listed(found, item).items():
            matrix[item, column] = weight
    return matrix


BOUNDS = [(0, 11), (11, 11), (11, 30)]


@pytest.mark.parametrize("kind", KINDS)
def test_neighbours_equal_a_dense_count(kind: str) -> None:
    users = random_users(17, 40, 30, DAY)
    assert max(map(len, users)) < EVENTS_A_USER
    expected = dense(users, 30)[kind]
    assert (expected > 0).sum(1).max() < NEIGHBOURS
    for found, (start, stop) in zip(
        count_neighbours(histories(*users), DAY, 30, BOUNDS)[kind], BOUNDS, strict=True
    ):
        matrix = as_matrix(found, (30, stop - start))
        np.testing.assert_allclose(matrix, expected[:, start:stop], rtol=1e-5, atol=1e-9)
        # Heaviest first, but for the last bit of a float32.
        for item in range(30):
            weights = np.array(list(listed(found, item).values()))
            assert (weights[1:] <= weights[:-1] * (1 + 1e-6)).all()


@pytest.mark.parametrize("pairs_a_block", [1, 100])
def test_neighbours_do_not_depend_on_blocks(
    monkeypatch: pytest.MonkeyPatch, pairs_a_block: int
) -> None:
    users = histories(*random_users(18, 40, 30, DAY))
    whole = count_neighbours(users, DAY, 30, BOUNDS)
    monkeypatch.setattr(cooccurrence, "PAIRS_A_BLOCK", pairs_a_block)
    blocks = count_neighbours(users, DAY, 30, BOUNDS)
    for kind in KINDS:
        for one, other in zip(blocks[kind], whole[kind], strict=True):
            shape = (30, 30)
            assert np.array_equal(one.offsets, other.offsets)
            np.testing.assert_allclose(as_matrix(one, shape), as_matrix(other, shape), rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_neighbours_of_nobody_are_none(kind: str) -> None:
    for users in (histories(), histories([], [])):
        found = count_neighbours(users, DAY, 30, BOUNDS)[kind]
        assert [part.offsets.tolist() for part in found] == [[0] * 31] * 3
