"""Which items go together: for each item, those of a domain that the same users have had.

Item-kNN with shrinkage (Sarwar et al. 2001), users weighted by 1/sqrt(events) so that the busiest
do not decide alone; once over all of the past, and once for what users with the item did lately.

    bounds = [(0, 600), (600, 1_000)]
    kinds = count_neighbours(before(histories, day), day, items=1_000, bounds=bounds)
    kinds["ever"][0]       # neighbours in domain 0, as CSR
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from crossrec.data.replay import Histories
from crossrec.data.sparse import keep_highest
from crossrec.data.userstate import event_ages

Array = np.ndarray

KINDS = ("ever", "lately")
"""`ever`: cosine of the items' users. `lately`: what users who have had the item did lately, an
event counting half as much every LATELY_HALF_LIFE_DAYS."""

NEIGHBOURS = 100
"""Neighbours kept for an item, a domain and kind; the heaviest."""

SHRINKAGE = {"ever": 10.0, "lately": 2.0}
"""Added to an item's count of events: a pair that met once by chance does not score high."""

LATELY_HALF_LIFE_DAYS = 14.0
LATELY_DAYS = 98
"""Seven half-lives; what is older adds less than a percent."""

PAIRS_A_BLOCK = 2**23
"""Pairs of items counted at once, at most but for a single item's; some 300 MB."""

EVENTS_A_USER = 200
"""Newest events of a user that are paired: pairs grow with the square."""


@dataclass(frozen=True)
class Neighbours:
    """Neighbours of every catalogue row within one domain, in CSR form.

    offsets: (I + 1,) int64. columns: (N,) int32, rows within the domain. weights: (N,) float32,
    positive; of one item, heaviest first, equal ones by column.
    """

    offsets: Array
    columns: Array
    weights: Array


def count_neighbours(
    histories: Histories, day: int, items: int, bounds: Sequence[tuple[int, int]]
) -> dict[str, list[Neighbours]]:
    """Return the neighbours in each domain, by kind.

    Args:
        histories: events before `day`; a sample of the users serves where there are many.
        day: the day that is predicted.
        items: size of the catalogue.
        bounds: (start, stop) of each domain's catalogue rows.
    """
    kept = event_ages(histories) < EVENTS_A_USER
    owners, rows, days = histories.owners[kept], histories.rows[kept], histories.days[kept]
    shape = (len(histories.lengths), items)
    had = sp.csr_matrix((np.ones(len(rows), np.float32), (owners, rows)), shape=shape)
    had.data[:] = 1.0
    weight_U = 1 / np.sqrt(np.maximum(np.asarray(had.sum(1)).ravel(), 1))
    had_T = (sp.diags(weight_U.astype(np.float32)) @ had).T.tocsr()
    recent = days >= day - LATELY_DAYS
    counted = np.exp2((days[recent] - day + 1) / LATELY_HALF_LIFE_DAYS).astype(np.float32)
    sources = {
        "ever": sp.diags(weight_U.astype(np.float32)) @ had,
        "lately": sp.csr_matrix((counted, (owners[recent], rows[recent])), shape=shape),
    }
    events_I = np.asarray(had.sum(0)).ravel()
    left_I = 1 / np.sqrt(events_I + SHRINKAGE["ever"])
    found: dict[str, list[Neighbours]] = {}
    for kind, source in sources.items():
        mass_I = events_I if kind == "ever" else np.asarray(source.sum(0)).ravel()
        right_I = 1 / np.sqrt(mass_I + SHRINKAGE[kind])
        by_item = source.tocsc()
        found[kind] = [
            _heaviest(had_T, by_item[:, start:stop].tocsr(), left_I, right_I[start:stop], start)
            for start, stop in bounds
        ]
    return found


def _heaviest(
    had_T: sp.csr_matrix, source: sp.csr_matrix, left_I: Array, right_C: Array, start: int
) -> Neighbours:
    """Count pairs, scale them, drop items beside themselves, keep the heaviest of each item."""
    blocks = [
        _heaviest_of_block(had_T[first:stop] @ source, first, left_I, right_C, start)
        for first, stop in _blocks(had_T, source)
    ]
    counts, columns, weights = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    return Neighbours(np.concatenate([[0], np.cumsum(counts)]), columns, weights)


def _blocks(had_T: sp.csr_matrix, source: sp.csr_matrix) -> list[tuple[int, int]]:
    """Return (first, stop) of rows whose products have some PAIRS_A_BLOCK entries, few or many.

    Most items of a large catalogue have few pairs or none: what bounds a row are the events of its
    users, not the columns that there are.
    """
    counts_U = np.diff(source.indptr)
    own_N = np.concatenate([[0], np.cumsum(counts_U[had_T.indices])])
    most_I = np.minimum(np.diff(own_N[had_T.indptr]), source.shape[1])
    numbers_I = np.cumsum(most_I) // PAIRS_A_BLOCK
    cuts = [0, *(np.flatnonzero(np.diff(numbers_I)) + 1).tolist(), len(most_I)]
    return list(itertools.pairwise(cuts)) if len(most_I) else [(0, 0)]


def _heaviest_of_block(
    pairs: sp.csr_matrix, first: int, left_I: Array, right_C: Array, start: int
) -> tuple[Array, Array, Array]:
    """Return counts a row, columns and weights of the rows from `first`."""
    rows_in_block = pairs.shape[0]
    pairs.sort_indices()
    pairs = pairs.tocoo()
    apart = pairs.row + first != pairs.col + start
    rows, columns = pairs.row[apart].astype(np.int64), pairs.col[apart].astype(np.int32)
    weights = (pairs.data[apart] * left_I[first + rows] * right_C[columns]).astype(np.float32)
    found = keep_highest(sp.coo_matrix((weights, (rows, columns)), pairs.shape), NEIGHBOURS)
    counts = np.bincount(found.rows, minlength=rows_in_block)
    return counts, found.columns.astype(np.int32), found.values
