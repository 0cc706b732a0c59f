"""Adds up what each item had on each day, a bucket at a time.

    activity = load_activity(store, prepared)

Sums are merged as in a merge sort, those of few cells first, so that each cell is moved some
log2(buckets) times, and little more is held than two sorted arrays of all cells.
"""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from crossrec.data.hashing import Array
from crossrec.data.histories import Prepared, read_activity, read_catalogue
from crossrec.data.replay import NEVER, Activity
from crossrec.storage import Store

Cells = tuple[Array, Array]
"""Keys (N,) int64, ascending, no two the same; events (N,) int64."""

HALF, DAY_BITS = 1 << 31, 32


def load_activity(store: Store, prepared: Prepared) -> Activity:
    """Add up the activity of all buckets; memory grows with (item, day) pairs, not with users."""
    parts = (read_activity(store, prepared, bucket) for bucket in range(prepared.buckets))
    rows, days, events = add_up(parts)
    return Activity(rows, days, events, prepared.items, _available(store, prepared))


def _available(store: Store, prepared: Prepared) -> Array | None:
    parts = [
        read_catalogue(store, prepared, domain.name, ["available_day"])["available_day"]
        for domain in prepared.domains
    ]
    column = pa.chunked_array([chunk for part in parts for chunk in part.chunks], pa.int32())
    if column.null_count == len(column):
        return None
    days: Array = column.fill_null(NEVER).to_numpy()
    return days


def add_up(tables: Iterable[pa.Table]) -> tuple[Array, Array, Array]:
    """Return rows, days and events (N,) int32, sorted by row, then day.

    Args:
        tables: of schema.ACTIVITY.

    >>> table = pa.table({"row": [0, 2], "day": [-5, 7], "events": [1, 2]})
    >>> [part.tolist() for part in add_up([table, table.slice(1), table.slice(0, 0)])]
    [[0, 2], [-5, 7], [1, 4]]
    """
    sums: list[Cells] = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
    for table in tables:
        sums.append(_cells(table))
        while len(sums) > 1 and len(sums[-2][0]) <= 2 * len(sums[-1][0]):
            sums.append(_merged(sums.pop(), sums.pop()))
    while len(sums) > 1:
        sums.append(_merged(sums.pop(), sums.pop()))
    keys, events = sums[0]
    keys += HALF
    days = (keys & ((1 << DAY_BITS) - 1)) - HALF
    return (keys >> DAY_BITS).astype(np.int32), days.astype(np.int32), events.astype(np.int32)


def _cells(table: pa.Table) -> Cells:
    rows, days, events = (
        table[name].to_numpy().astype(np.int64) for name in ("row", "day", "events")
    )
    return _summed((rows << DAY_BITS) + days, events)


def _merged(one: Cells, other: Cells) -> Cells:
    """Return the sums of both."""
    return _summed(*(np.concatenate(parts) for parts in zip(one, other, strict=True)))


def _summed(keys: Array, events: Array) -> Cells:
    """Return the sums by key; fast where the keys are a few ascending runs."""
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    events = events[order]
    starts = np.flatnonzero(np.diff(keys, prepend=keys[:1] - 1))
    return keys[starts], np.add.reduceat(events, starts) if len(starts) else events[:0]
