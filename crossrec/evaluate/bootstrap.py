"""How sure is "better than": a paired bootstrap over users.

In: a measure of every (user, domain) pair, for the model and for the systems beside it. Out: the
mean difference with its 95 % interval, for each of them.

The model has 0.1 more for one user and 0.3 more for the other:

>>> found = compare(np.array([0.5, 0.6]), {"als": np.array([0.4, 0.3])}, np.array([0, 1]))
>>> found["als"]
{'pairs': 2, 'difference': 0.2, 'low': 0.1, 'high': 0.3, 'better': 1.0}
"""

from collections.abc import Iterator, Mapping

import numpy as np

Array = np.ndarray

RESAMPLES = 2_000
"""Enough for the second digit of an interval's ends."""

DRAWS_A_BLOCK = 2**21
"""Users drawn at once, in all resamples of a block; some 50 MB."""


def compare(
    model: Array,
    others: Mapping[str, Array],
    users: Array,
    seed: int = 0,
    draws_a_block: int = DRAWS_A_BLOCK,
) -> dict[str, dict[str, float]]:
    """Return by how much the model is better than each of the others, and how sure that is.

    Users are drawn with replacement, and all pairs of a user come along, because the lists of one
    user in several domains are not independent. All systems are compared on the same draws.
    Sources: Efron and Tibshirani, An introduction to the bootstrap, 1993, chapter 13; Sakai,
    Evaluating evaluation metrics based on the bootstrap, 2006.

    Args:
        model: (P,) a measure of each pair.
        others: the same of other systems, by name.
        users: (P,) int64 from 0, the user of each pair.
        seed: of the draws; the same one gives the same result.
        draws_a_block: users drawn at once; bounds the memory.

    Returns:
        By name {"pairs", "difference": mean over pairs of model - other, "low", "high": its 95 %
        percentile interval, "better": the share of resamples in which it is above 0}, rounded to 5
        digits; nothing where there are no pairs.
    """
    if not len(model) or not others:
        return {}
    size = int(users.max()) + 1
    differences_PS = np.stack([model - other for other in others.values()], 1)
    columns = [np.bincount(users, column, size) for column in differences_PS.T]
    sums_US = np.stack([*columns, np.bincount(users, minlength=size)], 1)
    # A user's number that no pair has would be drawn for nothing.
    sums_US = sums_US[sums_US[:, -1] > 0]
    totals_RS = resample(sums_US, seed, draws_a_block)
    means_RS = totals_RS[:, :-1] / totals_RS[:, -1:]
    low_S, high_S = np.quantile(means_RS, [0.025, 0.975], axis=0)
    columns_by_name = {
        "difference": differences_PS.mean(0),
        "low": low_S,
        "high": high_S,
        "better": (means_RS > 0).mean(0),
    }
    return {
        name: {"pairs": len(model)}
        | {key: round(float(values[index]), 5) for key, values in columns_by_name.items()}
        for index, name in enumerate(others)
    }


def resample(sums_US: Array, seed: int = 0, draws_a_block: int = DRAWS_A_BLOCK) -> Array:
    """Return the totals (RESAMPLES, S) of sums that users brought, drawn with replacement.

    Args:
        sums_US: what each user adds to each of S sums, at least one user.
        seed: of the draws; the same one gives the same result.
        draws_a_block: users drawn at once; bounds the memory.
    """
    drawn = [counts_RU @ sums_US for counts_RU in _draw(len(sums_US), seed, draws_a_block)]
    return np.concatenate(drawn)


def _draw(users: int, seed: int, draws_a_block: int) -> Iterator[Array]:
    """Yield how often each user is drawn, (R, U) float64, RESAMPLES rows in all."""
    draw = np.random.default_rng(seed)
    block = max(1, draws_a_block // users)
    for start in range(0, RESAMPLES, block):
        rows = min(block, RESAMPLES - start)
        chosen = draw.integers(users, size=(rows, users)) + users * np.arange(rows)[:, None]
        counts = np.bincount(chosen.ravel(), minlength=rows * users)
        yield counts.reshape(rows, users).astype(np.float64)
