import numpy as np

from crossrec.data.replay import Histories
from crossrec.model.biases import Biases, fit_biases, shrinkage_of, user_levels
from tests.small import rated

BOUNDS = [(0, 3), (3, 5)]
NONE = float("nan")


def test_means_are_those_of_known_ratings_by_domain() -> None:
    known = rated([(0, 1.0), (1, 4.0), (2, NONE)], [(0, 4.0)])
    found = fit_biases(known, BOUNDS, items=5)
    # The second domain has none, so it gets the mean of all.
    assert found.means_D.tolist() == [3.0, 3.0]
    assert found.deviations_D.tolist() == [np.std([1, 4, 4])] * 2
    assert found.items_I[2:].tolist() == [0.0, 0.0, 0.0]


def test_biases_of_no_ratings_are_zero() -> None:
    found = fit_biases(rated([(0, NONE)]), BOUNDS, items=5)
    assert found.means_D.tolist() == [0.0, 0.0]
    assert not found.items_I.any()
    assert user_levels(found, rated([(0, NONE)], []), BOUNDS).tolist() == [0.0, 0.0]


def additive(noise: float, levels: float) -> tuple[Histories, np.ndarray, np.ndarray]:
    """Return ratings that are a user's level plus an item's plus noise, and both levels."""
    draw = np.random.default_rng(3)
    users_U, items_I = levels * draw.normal(size=300), levels * draw.normal(size=40)
    known = rated(
        *(
            [(row, 3 + level + items_I[row] + noise * draw.normal()) for row in taken]
            for level, taken in zip(
                users_U, (draw.permutation(40)[:12] for _ in users_U), strict=True
            )
        )
    )
    return known, users_U, items_I


def test_biases_find_levels_of_users_and_items() -> None:
    known, users_U, items_I = additive(noise=0.1, levels=1.0)
    bounds = [(0, 40)]
    found = fit_biases(known, bounds, items=40)
    rated_alike = found.means_D[0] + found.items_I + user_levels(found, known, bounds)[:, None]
    true = 3 + items_I + users_U[:, None]
    assert np.sqrt(np.square(rated_alike - true).mean()) < 0.1


def test_biases_of_noise_alone_are_drawn_to_zero() -> None:
    known, _, _ = additive(noise=1.0, levels=0.0)
    found = fit_biases(known, [(0, 40)], items=40)
    # Plain means of 12 ratings would stray by 1 / sqrt(12), about .29.
    assert user_levels(found, known, [(0, 40)]).std() < 0.1
    assert found.items_I.std() < 0.1


def test_a_users_level_is_the_shrunken_mean_of_what_items_leave() -> None:
    levels_I = np.array([1.0, 0, 0, 0, -0.5])
    biases = Biases(np.array([3.0, 1.0]), np.ones(2), levels_I, shrinkage=2.0)
    known = rated([(0, 5.0), (4, 2.5)], [(1, NONE)], [])
    # 5 - 3 - 1 = 1 and 2.5 - 1 + .5 = 2
    assert user_levels(biases, known, BOUNDS).tolist() == [(1 + 2) / (2 + 2), 0.0, 0.0]


def test_shrinkage_is_infinite_where_owners_do_not_differ() -> None:
    assert shrinkage_of(np.array([0, 0, 1, 1]), np.array([1.0, -1.0, 1.0, -1.0]), 2) == np.inf
    # One value each: what is noise and what is theirs cannot be told.
    assert shrinkage_of(np.array([0, 1, 2]), np.array([1.0, 5.0, 9.0]), 3) == np.inf
    assert shrinkage_of(np.zeros(0, np.int64), np.zeros(0), 3) == np.inf
