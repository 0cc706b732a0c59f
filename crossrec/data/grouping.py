"""A bucket's events as whole users, each with one history in the order of time.

In: events of whole users, checked, in any order. Out: histories, what each item had on each day,
and what was found on the way.

    grouped = group_users(events, starts)      # one bucket
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crossrec.data.events import LISTED
from crossrec.data.hashing import Array
from crossrec.data.inputs import ORIGIN
from crossrec.schema import (
    ACTIVITY,
    EVENT_VALUES,
    TIMESTAMP,
    US_PER_DAY,
    USER_ID,
    histories_schema,
)


@dataclass(frozen=True)
class Grouped:
    """A bucket's users.

    histories: schema.HISTORIES. activity: schema.ACTIVITY.
    duplicates: events that stood there before, schema events.CHECKED.
    unheard: users with nothing but rejected events.
    domain_events, domain_users: (domains,) int64.
    weeks: (n, 3) int64 of domain number, day of the week's Monday, events.
    """

    histories: pa.Table
    activity: pa.Table
    duplicates: pa.Table
    unheard: int
    domain_events: Array
    domain_users: Array
    weeks: Array


def group_users(events: pa.Table, starts: Array) -> Grouped:
    """Turn a bucket's events into one time-ordered history a user.

    Equal timestamps are ordered by catalogue row; of exact duplicates that with the lowest origin
    is kept. The order of the input does not matter.

    Args:
        events: of whole users, schema events.CHECKED, with any of schema.EVENT_VALUES.
        starts: first catalogue row of each domain, and the end, (domains + 1,) int64.
    """
    users, owners = _rank_users(events)
    rows, times, origins = (events.column(name).to_numpy() for name in ("row", TIMESTAMP, ORIGIN))
    order = np.lexsort((origins, rows, times, owners))
    order = order[rows[order] >= 0]
    is_copy = np.zeros(len(order), bool)
    is_copy[1:] = True
    for values in (owners, times, rows):
        is_copy[1:] &= np.diff(values[order]) == 0
    duplicates = np.sort(order[is_copy])
    order = order[~is_copy]
    owners_kept, rows_kept, times_kept = owners[order], rows[order], times[order]
    lengths = np.bincount(owners_kept, minlength=len(users))
    is_user = lengths > 0
    is_user[owners[rows == LISTED]] = True
    values = {
        name: events.column(name).to_numpy()[order]
        for name in EVENT_VALUES
        if name in events.column_names
    }
    histories = to_histories(
        users.filter(pa.array(is_user)), lengths[is_user], rows_kept, times_kept, values
    )
    activity = count_activity(rows_kept, times_kept // US_PER_DAY)
    places = owners_kept.astype(np.int64) * (len(starts) - 1) + _domains(rows_kept, starts)
    size = len(starts) - 1
    return Grouped(
        histories,
        activity,
        events.take(pa.array(duplicates)),
        unheard=int((~is_user).sum()),
        domain_events=np.bincount(places % size, minlength=size),
        domain_users=np.bincount(np.unique(places) % size, minlength=size),
        weeks=_weeks(activity, starts),
    )


def _rank_users(events: pa.Table) -> tuple[pa.LargeStringArray, Array]:
    """Return the distinct users sorted, and each row's place among them, (N,) int64."""
    column = events.column(USER_ID).cast(pa.large_string()).combine_chunks()
    encoded = column.dictionary_encode()
    order = pc.sort_indices(encoded.dictionary).to_numpy()
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order))
    return encoded.dictionary.take(pa.array(order)), ranks[encoded.indices.to_numpy()]


def to_histories(
    users: pa.Array,
    lengths: Array,
    rows: Array,
    times: Array,
    values: Mapping[str, Array] = MappingProxyType({}),
) -> pa.Table:
    """Return schema.HISTORIES of users whose events lie end to end.

    Args:
        users: (U,) strings.
        lengths: (U,) events of each.
        rows: (E,) int32 catalogue rows.
        times: (E,) int64 microseconds since 1970.
        values: (E,) float32 each, by their names in schema.EVENT_VALUES.
    """
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    columns = (rows, times, *(values[name] for name in EVENT_VALUES if name in values))
    lists = [pa.ListArray.from_arrays(offsets, pa.array(column)) for column in columns]
    return pa.table([users.cast(pa.string()), *lists], schema=histories_schema(values))


def count_activity(rows: Array, days: Array) -> pa.Table:
    """Return schema.ACTIVITY of events (E,) in any order."""
    first = int(days.min(initial=0))
    span = int(days.max(initial=0)) - first + 1
    keys, events = np.unique(rows.astype(np.int64) * span + (days - first), return_counts=True)
    columns = (keys // span, keys % span + first, events)
    return pa.table([pa.array(column.astype(np.int32)) for column in columns], schema=ACTIVITY)


def _domains(rows: Array, starts: Array) -> Array:
    return np.searchsorted(starts, rows, side="right") - 1


def _weeks(activity: pa.Table, starts: Array) -> Array:
    rows, days, events = (column.to_numpy().astype(np.int64) for column in activity.columns)
    # 1970-01-01 was a Thursday.
    mondays = days - (days + 3) % 7
    first = int(mondays.min(initial=0))
    span = int(mondays.max(initial=0)) - first + 1
    keys, places = np.unique(_domains(rows, starts) * span + (mondays - first), return_inverse=True)
    counts = np.bincount(places, events, len(keys)).astype(np.int64)
    return np.column_stack([keys // span, keys % span + first, counts])
