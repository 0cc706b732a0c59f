"""A part of the input, used as if it were all of it: one domain, or all but the newest events.

A model that knows one domain alone, and the protocol leave-one-out, run through the very same code
as everything else, on a view of the same prepared folder.

    view_histories(View(start=600, stop=1_000), read_histories(store, prepared, 0))
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from crossrec.data.grouping import count_activity, to_histories
from crossrec.schema import EVENT_VALUES, US_PER_DAY, USER_ID


@dataclass(frozen=True)
class View:
    """What is seen: catalogue rows start..stop-1, numbered from 0, and not the newest events.

    without_newest: so many events at the end of each user's history are left out.
    """

    start: int
    stop: int
    without_newest: int = 0


def view_histories(view: View, histories: pa.Table) -> pa.Table:
    """Return the histories (schema.HISTORIES) as the view shows them; no user is left out.

    >>> table = to_histories(pa.array(["ada"]), np.array([3]), np.array([5, 1, 7]), np.arange(3))
    >>> view_histories(View(4, 8), table)["rows"].to_pylist()
    [[1, 3]]
    >>> view_histories(View(0, 8, without_newest=1), table)["rows"].to_pylist()
    [[5, 1]]
    """
    users, rows, times = (
        histories.column(name).combine_chunks() for name in (USER_ID, "rows", "timestamps")
    )
    more = {
        value: histories.column(name).combine_chunks().flatten().to_numpy()
        for value, name in EVENT_VALUES.items()
        if name in histories.column_names
    }
    lengths = rows.value_lengths().to_numpy()
    owners = np.repeat(np.arange(len(lengths)), lengths)
    left = np.cumsum(lengths)[owners] - np.arange(len(owners))
    values = rows.flatten().to_numpy()
    kept = (values >= view.start) & (values < view.stop) & (left > view.without_newest)
    counts = np.bincount(owners[kept], minlength=len(lengths))
    return to_histories(
        users,
        counts,
        values[kept] - np.int32(view.start),
        times.flatten().to_numpy()[kept],
        {name: value[kept] for name, value in more.items()},
    )


def view_activity(histories: pa.Table) -> pa.Table:
    """Return schema.ACTIVITY of histories (schema.HISTORIES)."""
    rows, times = (histories.column(name).combine_chunks() for name in ("rows", "timestamps"))
    return count_activity(rows.flatten().to_numpy(), times.flatten().to_numpy() // US_PER_DAY)
