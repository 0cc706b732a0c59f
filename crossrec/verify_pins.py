"""Pinned items, held against what was written: they come first in every list that may hold them.

    check_pins(parquet, users, Allowed(items, candidates, top_k=50), rows)   # raises WrongLists

In: as in `verify_lists`, and the rows that editors pinned, in their order, that are candidates.
Out: nothing, or the first list that does not begin with those that its user has not had and may
have.
"""

import numpy as np
import pyarrow.parquet as pq

from crossrec.verify_lists import (
    ENTRIES_AT_ONCE,
    NOT_AN_ITEM,
    Allowed,
    BucketUsers,
    refuse,
    refused_to,
)

Array = np.ndarray


def check_pins(
    parquet: pq.ParquetFile, users: BucketUsers, allowed: Allowed, pinned: Array
) -> None:
    """Look that every list begins with the pinned items that its user has not had and may have.

    Args:
        parquet: lists of a bucket.
        users: of the bucket.
        allowed: what lists may hold, also by user.
        pinned: (P,) int64 rows within the domain, in their order.

    Raises:
        WrongLists: the first that does not.
    """
    if not len(pinned):
        return
    first = 0
    for batch in parquet.iter_batches(
        batch_size=max(1, ENTRIES_AT_ONCE // allowed.top_k), columns=["item_ids"], use_threads=False
    ):
        last = first + len(batch)
        expected, asked = _expected(users.part(first, last), allowed, pinned)
        lists = batch.column(0)
        lengths = lists.value_lengths().to_numpy()
        listed = allowed.items.rows_of(lists.flatten())
        starts = np.cumsum(lengths) - lengths
        places = starts[:, None] + np.arange(expected.shape[1])
        is_there = np.arange(expected.shape[1]) < lengths[:, None]
        found = np.append(listed, NOT_AN_ITEM)[np.where(is_there, places, len(listed))]
        wrong = ((found != expected) & asked).any(1)
        said = ("lists that begin with the items pinned by score.rules", "another")
        refuse(wrong, said, users.user_ids.slice(first, len(batch)), np.arange(len(batch)))
        first = last


def _expected(users: BucketUsers, allowed: Allowed, pinned: Array) -> tuple[Array, Array]:
    """Return what (B, P) lists begin with, and in which of these places something must stand."""
    everyone = np.arange(len(users.user_ids))
    owners = np.repeat(everyone, np.diff(users.offsets))
    is_barred = np.zeros((len(everyone), len(pinned)), bool)
    for place, row in enumerate(pinned.tolist()):
        is_barred[owners[users.rows == row], place] = True
    for _, refused in refused_to(users, everyone[:, None], pinned, allowed):
        is_barred |= refused
    order = np.argsort(is_barred, axis=1, kind="stable")
    left = len(pinned) - is_barred.sum(1)
    asked = np.arange(len(pinned)) < np.minimum(left, allowed.top_k)[:, None]
    return pinned[order], asked
