"""What an item and a user add to a rating, whatever the other is: where a model of ratings starts.

    r(user, item) = mean_d + level of the user + level of the item

Each level is the mean of what the other leaves over, drawn towards 0 as far as its ratings are few
and noisy.

Array suffixes: U users, I items, D domains, N ratings, E events.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crossrec.data.replay import Histories, ratings_of
from crossrec.model.inference import domain_of_rows

Array = np.ndarray
Bounds = Sequence[tuple[int, int]]

ROUNDS = 3
"""Items and users in turn; after these nothing moves that a figure shows."""

SMALLEST = 1e-9
"""In place of no shrinkage, so that who has no rating has a level of 0."""


@dataclass(frozen=True)
class Biases:
    """What is known of the ratings of each domain, of items, and of users in general.

    means_D, deviations_D: of the ratings in each domain; where it has none, of all. items_I: what
    items add. shrinkage: what draws a user's own level to 0, counted in ratings: with as many, half
    of it is left.
    """

    means_D: Array
    deviations_D: Array
    items_I: Array
    shrinkage: float


def fit_biases(histories: Histories, bounds: Bounds, items: int) -> Biases:
    """Learn means, items' levels and the users' shrinkage from known ratings.

    Source: Koren, Factor in the neighbors, 2010, baseline estimates, items and users in turn; how
    far each is drawn towards 0 comes from the data (`shrinkage_of`) in place of constants.
    """
    is_given, owners, rows = _given(histories)
    ratings = ratings_of(histories)[is_given].astype(np.float64)
    domains = domain_of_rows(rows, bounds)
    means_D, deviations_D = np.zeros(len(bounds)), np.ones(len(bounds))
    for index in range(len(bounds)):
        own = ratings[domains == index] if (domains == index).any() else ratings
        if len(own):
            # Where all are the same, errors count as they are.
            means_D[index], deviations_D[index] = own.mean(), own.std() or 1.0
    rest, size = ratings - means_D[domains], len(histories.lengths)
    users_U, shrinkage = np.zeros(size), np.inf
    for _ in range(ROUNDS):
        left = rest - users_U[owners]
        items_I = shrunken(rows, left, items, shrinkage_of(rows, left, items))
        left = rest - items_I[rows]
        shrinkage = shrinkage_of(owners, left, size)
        users_U = shrunken(owners, left, size, shrinkage)
    return Biases(means_D, deviations_D, items_I, shrinkage)


def user_levels(biases: Biases, histories: Histories, bounds: Bounds) -> Array:
    """Return what users add to the ratings of items, (U,), from those that they gave before."""
    is_given, owners, rows = _given(histories)
    means = biases.means_D[domain_of_rows(rows, bounds)]
    left = ratings_of(histories)[is_given] - means - biases.items_I[rows]
    return shrunken(owners, left, len(histories.lengths), biases.shrinkage)


def shrunken(owners_N: Array, values_N: Array, size: int, shrinkage: float) -> Array:
    """Return each owner's sum of values over their number and the shrinkage, (size,).

    >>> shrunken(np.array([0, 0, 2]), np.array([1.0, 2.0, -2.0]), 3, shrinkage=1.0).tolist()
    [1.0, 0.0, -1.0]
    """
    found: Array = np.bincount(owners_N, values_N, size) / (
        np.bincount(owners_N, minlength=size) + shrinkage
    )
    return found


def shrinkage_of(owners_N: Array, values_N: Array, size: int) -> float:
    """Return the variance of an owner's values over the variance of owners, by method of moments.

    Infinite where owners do not differ, or nobody has two values.
    Source: Searle, Casella and McCulloch, Variance components, 1992, chapter 3 (ANOVA estimators
    of unbalanced one-way data).

    Owners 1, 3 and 5, 7: within (1 + 1 + 1 + 1) / 2 = 2, between (16 - 2) / 2 = 7.

    >>> shrinkage_of(np.array([0, 0, 1, 1]), np.array([1.0, 3.0, 5.0, 7.0]), 2) == 2 / 7
    True
    """
    counts = np.bincount(owners_N, minlength=size)
    total, owners = len(owners_N), int((counts > 0).sum())
    if owners < 2 or total == owners:
        return float("inf")
    means = np.bincount(owners_N, values_N, size) / np.maximum(counts, 1)
    within = float(np.square(values_N - means[owners_N]).sum()) / (total - owners)
    spread = float(counts @ np.square(means - values_N.mean())) / (owners - 1)
    typical = (total - float(counts @ counts) / total) / (owners - 1)
    between = (spread - within) / typical
    return max(within / between, SMALLEST) if between > 0 else float("inf")


def _given(histories: Histories) -> tuple[Array, Array, Array]:
    """Return which events carry a rating, (E,) bool, and the users and rows of those."""
    is_given = ~np.isnan(ratings_of(histories))
    return is_given, histories.owners[is_given], histories.rows[is_given]
