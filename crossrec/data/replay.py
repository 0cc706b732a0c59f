"""What was known at a moment: histories cut in time, targets, and the state of items on a day.

Training, validation, hold-out and the night itself all cut time here, so that they cannot drift
apart. Time is cut by whole days: on day d everything before d is known, and nothing of d.

    histories = flatten(read_histories(store, prepared, bucket))
    known = before(histories, day)
    truth = new_events(histories, day, day + 14)
    known, truth = newest_events(histories, day, day + 14)      # leave-one-out
    padded = pad(known, max_history=50)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from crossrec.data.histories import (
    Prepared,
    read_histories,
)
from crossrec.data.traits import traits_of
from crossrec.schema import EVENT_VALUES, RATING, US_PER_DAY, USER_ID
from crossrec.storage import Store

Array = np.ndarray

NEVER = np.iinfo(np.int32).max
"""No day."""

SAMPLE_EVENTS = 4_000_000
"""Enough to know which items go together; some 100 MB of histories."""


@dataclass(frozen=True)
class Histories:
    """Histories laid end to end: user u has events offsets[u]:offsets[u + 1], oldest first.

    user_ids: (U,) Arrow strings. offsets: (U + 1,) int64. rows: (E,) int32 catalogue rows. days:
    (E,) int32. values: (E,) float32 each, of the schema.EVENT_VALUES that the input has, by their
    names there. traits: (U,) Arrow arrays, what rules for candidates look at of the users.
    """

    user_ids: pa.Array
    offsets: Array
    rows: Array
    days: Array
    values: Mapping[str, Array] = field(default_factory=dict)
    traits: Mapping[str, pa.Array] = field(default_factory=dict)

    @property
    def lengths(self) -> Array:
        """Events of each user, (U,) int64."""
        return np.diff(self.offsets)

    @property
    def owners(self) -> Array:
        """The user of each event, (E,) int64."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.lengths)


def flatten(table: pa.Table) -> Histories:
    """Turn a table of schema.HISTORIES, perhaps with traits behind it, into arrays."""
    table = table.combine_chunks()
    rows, timestamps = (_one_chunk(table, name) for name in ("rows", "timestamps"))
    offsets = rows.offsets.to_numpy().astype(np.int64)
    return Histories(
        _one_chunk(table, USER_ID),
        offsets - offsets[0],
        rows.flatten().to_numpy().astype(np.int32),
        (timestamps.flatten().to_numpy() // US_PER_DAY).astype(np.int32),
        {
            value: _one_chunk(table, name).flatten().to_numpy()
            for value, name in EVENT_VALUES.items()
            if name in table.column_names
        },
        traits_of(table),
    )


def _one_chunk(table: pa.Table, name: str) -> pa.Array:
    column = table.column(name)
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)


def sample_histories(store: Store, prepared: Prepared, events: int = SAMPLE_EVENTS) -> Histories:
    """Return the histories of the first buckets, which are random samples of users.

    Buckets are read until they hold so many events, or all are read; memory does not grow with the
    number of users.
    """
    tables = []
    for bucket in range(prepared.buckets):
        tables.append(read_histories(store, prepared, bucket))
        events -= len(tables[-1]["rows"].combine_chunks().flatten())
        if events <= 0:
            break
    return flatten(pa.concat_tables(tables))


def select_events(histories: Histories, keep: Array) -> Histories:
    """Keep the events where `keep` (E,) is true; users stay, even those left without events."""
    kept_before = np.concatenate([[0], np.cumsum(keep, dtype=np.int64)])
    return Histories(
        histories.user_ids,
        kept_before[histories.offsets],
        histories.rows[keep],
        histories.days[keep],
        {name: value[keep] for name, value in histories.values.items()},
        histories.traits,
    )


def select_users(histories: Histories, keep: Array) -> Histories:
    """Keep the users where `keep` (U,) is true."""
    events = np.repeat(keep, histories.lengths)
    offsets = np.concatenate([[0], np.cumsum(histories.lengths[keep], dtype=np.int64)])
    return Histories(
        histories.user_ids.filter(pa.array(keep)),
        offsets,
        histories.rows[events],
        histories.days[events],
        {name: value[events] for name, value in histories.values.items()},
        {name: trait.filter(pa.array(keep)) for name, trait in histories.traits.items()},
    )


def slice_users(histories: Histories, start: int, stop: int) -> Histories:
    """Return users start..stop-1."""
    offsets = histories.offsets[start : stop + 1]
    events = slice(int(offsets[0]), int(offsets[-1]))
    user_ids = histories.user_ids.slice(start, stop - start)
    values = {name: value[events] for name, value in histories.values.items()}
    traits = {name: trait.slice(start, stop - start) for name, trait in histories.traits.items()}
    rows, days = histories.rows[events], histories.days[events]
    return Histories(user_ids, offsets - offsets[0], rows, days, values, traits)


def before(histories: Histories, day: int) -> Histories:
    """Return what was known on `day`: the events of earlier days."""
    return select_events(histories, histories.days < day)


def up_to(histories: Histories, day: int) -> Histories:
    """Return the histories as if all that came on `day` or later had come the day before."""
    return replace(histories, days=np.minimum(histories.days, day - 1).astype(np.int32))


def new_events(histories: Histories, start: int, stop: int) -> tuple[Array, Array]:
    """Return what known users did for the first time in days start..stop-1.

    An event counts once per (user, item), not if the user had the item before `start`, and not if
    the user had no event at all before `start`.

    Returns:
        Users (N,) int64 and catalogue rows (N,) int32, sorted by user, then row.
    """
    owners = histories.owners
    known = np.diff(before(histories, start).offsets) > 0
    items = int(histories.rows.max(initial=0)) + 1
    keys = owners * items + histories.rows
    future = (histories.days >= start) & (histories.days < stop) & known[owners]
    found = np.setdiff1d(keys[future], keys[histories.days < start])
    return found // items, (found % items).astype(np.int32)


def newest_events(
    histories: Histories, start: int, stop: int
) -> tuple[Histories, tuple[Array, Array]]:
    """Return all but each user's newest event, and those of them that lie in days start..stop-1.

    Left out is the newest event of a user who had the item before, or had nothing before.

    Returns:
        What was known, and of those events users (N,) int64, ascending, and catalogue rows (N,)
        int32.
    """
    users = np.flatnonzero(histories.lengths)
    newest = histories.offsets[users + 1] - 1
    is_newest = np.zeros(len(histories.rows), bool)
    is_newest[newest] = True
    known = select_events(histories, ~is_newest)
    rows, days = histories.rows[newest], histories.days[newest]
    items = int(histories.rows.max(initial=0)) + 1
    had = np.isin(users * items + rows, known.owners * items + known.rows)
    chosen = (days >= start) & (days < stop) & (known.lengths[users] > 0) & ~had
    return known, (users[chosen], rows[chosen])


def ratings_of(histories: Histories) -> Array:
    """Return the rating of every event, (E,) float32; NaN where none was given."""
    return histories.values.get(RATING, np.full(len(histories.rows), np.nan, np.float32))


def rated_events(histories: Histories, start: int, stop: int) -> tuple[Array, Array, Array]:
    """Return what users with an event before `start` rated in days start..stop-1.

    Returns:
        Users (N,) int64, catalogue rows (N,) int32 and ratings (N,) float32, in the order of
        histories; none where the input has no ratings.
    """
    ratings = ratings_of(histories)
    owners = histories.owners
    known = np.diff(before(histories, start).offsets) > 0
    chosen = (histories.days >= start) & (histories.days < stop) & known[owners]
    chosen &= ~np.isnan(ratings)
    return owners[chosen], histories.rows[chosen], ratings[chosen]


def rated_newest(histories: Histories) -> tuple[Array, Array, Array]:
    """Return the newest events that have a rating, of users with another event before.

    Returns:
        As `rated_events`.
    """
    ratings = ratings_of(histories)
    users = np.flatnonzero(histories.lengths > 1)
    newest = histories.offsets[users + 1] - 1
    is_rated = ~np.isnan(ratings[newest])
    return users[is_rated], histories.rows[newest[is_rated]], ratings[newest[is_rated]]


@dataclass(frozen=True)
class PaddedHistories:
    """The newest events of each user as a matrix, oldest first; column 0 stands for "no event yet".

    rows: (B, L) int64, -1 where there is no event. days: (B, L) int32, repeating the last day in
    the padding.
    lengths: (B,) int64, events in the row: the column of a user's newest event.
    values: (B, L) float32 each, NaN where there is no event.
    """

    rows: Array
    days: Array
    lengths: Array
    values: Mapping[str, Array] = field(default_factory=dict)


def pad(histories: Histories, max_history: int) -> PaddedHistories:
    """Lay the newest `max_history` events of each user into a matrix, one row a user."""
    kept = np.minimum(histories.lengths, max_history)
    length = int(kept.max(initial=0))
    column = np.arange(length)
    valid = column < kept[:, None]
    index = np.where(valid, (histories.offsets[1:] - kept)[:, None] + column, 0)
    rows = np.full((len(kept), length + 1), -1, np.int64)
    days = np.zeros((len(kept), length + 1), np.int32)
    if len(histories.rows):
        rows[:, 1:] = np.where(valid, histories.rows[index], -1)
        days[:, 1:] = np.where(valid, histories.days[index], 0)
        days[:, 0] = np.where(kept > 0, days[:, min(1, length)], 0)
        days = np.maximum.accumulate(days, axis=1)
    values = {name: np.full(rows.shape, np.nan, np.float32) for name in histories.values}
    for name, value in histories.values.items():
        values[name][:, 1:][valid] = value[index[valid]]
    return PaddedHistories(rows, days, kept, values)


@dataclass(frozen=True)
class Activity:
    """Events of each item by day, sorted by (row, day), (N,) int32 each; of `items` items.

    available: (items,) int32 day from which an item could be had, NEVER where the catalogue does
    not say; None where it says of none.
    """

    rows: Array
    days: Array
    events: Array
    items: int
    available: Array | None = None

    def began(self, rows: Array, first_days: Array, day: int) -> Array:
        """Return the day from which the age of items counts: as the catalogue says, else given.

        Args:
            rows: (N,) items.
            first_days: (N,) their first events, or `day`.
            day: the day that is predicted; nothing begins later.
        """
        if self.available is None:
            return first_days
        told = self.available[rows]
        return np.where(told == NEVER, first_days, np.minimum(told, day))

    def decayed(self, day: int, half_life_days: float) -> Array:
        """Return (items,) float32: each item's events before a day, halved every half-life."""
        known = self.days < day
        weights = np.exp2((self.days[known] - day + 1) / half_life_days) * self.events[known]
        return np.bincount(self.rows[known], weights, self.items).astype(np.float32)

    def counts(self, start: int, stop: int) -> Array:
        """Return each item's events in days start..stop-1, (items,) int64."""
        known = (self.days >= start) & (self.days < stop)
        return np.bincount(self.rows[known], self.events[known], self.items).astype(np.int64)
