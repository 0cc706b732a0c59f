"""Pinned items, held against what was written: they come first in every list that may hold them.

    check_pins(parquet, users, ItemIndex(ids), Pinned(rows, top_k))       # raises WrongLists

In: as in `verify_lists`, and the rows that editors pinned, in their order, that are candidates.
Out: nothing, or the first list that does not begin with those that its user has not had.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq

from crossrec.verify_lists import (
    ENTRIES_AT_ONCE,
    NOT_AN_ITEM,
    BucketUsers,
    ItemIndex,
    refuse,
)

Array = np.ndarray


@dataclass(frozen=True)
class Pinned:
    """rows: (P,) within the domain, in their order. top_k: items of a list at most."""

    rows: Array
    top_k: int


def check_pins(
    parquet: pq.ParquetFile, users: BucketUsers, items: ItemIndex, pinned: Pinned
) -> None:
    """Look that every list begins with the pinned items that its user has not had.

    Raises:
        WrongLists: the first that does not.
    """
    if not len(pinned.rows):
        return
    first = 0
    for batch in parquet.iter_batches(
        batch_size=max(1, ENTRIES_AT_ONCE // pinned.top_k), columns=["item_ids"], use_threads=False
    ):
        last = first + len(batch)
        offsets = users.offsets[first : last + 1]
        seen = users.rows[offsets[0] : offsets[-1]]
        owners = np.repeat(np.arange(len(batch)), np.diff(offsets))
        expected, asked = _expected(owners, seen, len(batch), pinned)
        lists = batch.column(0)
        lengths = lists.value_lengths().to_numpy()
        listed = items.rows_of(lists.flatten())
        starts = np.cumsum(lengths) - lengths
        places = starts[:, None] + np.arange(expected.shape[1])
        is_there = np.arange(expected.shape[1]) < lengths[:, None]
        found = np.append(listed, NOT_AN_ITEM)[np.where(is_there, places, len(listed))]
        wrong = ((found != expected) & asked).any(1)
        said = ("lists that begin with the items pinned by score.rules", "another")
        refuse(wrong, said, users.user_ids.slice(first, len(batch)), np.arange(len(batch)))
        first = last


def _expected(owners: Array, seen: Array, size: int, pinned: Pinned) -> tuple[Array, Array]:
    """Return what (B, P) lists begin with, and in which of these places something must stand."""
    rows = pinned.rows
    is_seen = np.zeros((size, len(rows)), bool)
    for place, row in enumerate(rows.tolist()):
        is_seen[owners[seen == row], place] = True
    order = np.argsort(is_seen, axis=1, kind="stable")
    unseen = len(rows) - is_seen.sum(1)
    asked = np.arange(len(rows)) < np.minimum(unseen, pinned.top_k)[:, None]
    return rows[order], asked
