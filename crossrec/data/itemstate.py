"""What was known of an item at a moment: how popular it was over several spans, how old, how new.

One function serves a past event, a training moment and the night's cut, so that what the model
learned from and what it is used on cannot drift apart. As everywhere, day d knows what came before
d and nothing of d.

    activity = load_activity(store, prepared)
    states_on_day(activity, day)                      # (items, F): every item of the catalogue
    EventStates.of(activity).at_events(rows, days)    # (E, F): items of events, each on its day
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from crossrec.data.replay import Activity

Array = np.ndarray

HALF_LIVES_DAYS = (1.5, 3.0, 6.0, 12.0, 24.0, 48.0, 96.0, 384.0)
"""From what sells this week to what always sells."""

POPULARITY_FLOOR = 0.01
"""What an item without any event counts as, so that new items are not at minus infinity."""

STATE_NAMES = (*(f"log_popularity_{days:g}d" for days in HALF_LIVES_DAYS), "log_age", "is_new")
"""log(decayed events + floor) for each half-life; log(1 + days since the first event, or since the
item could be had, where the catalogue says when); 1 where there was no event yet."""


@dataclass(frozen=True)
class EventStates:
    """The state of each item on each day on which it had an event.

    There are many of these cells, and a node's scoring processes hold them: so they are narrow.

    span: (2,) int64, the first day of the activity, and how many there are. keys: (N,) int32 or,
    where that is too narrow, int64, sorted, row * days + day since the first of each cell of the
    activity. cells: (N, F - 1) float16, the item's state at the start of that day but the last of
    STATE_NAMES: of a new item log_age has its sign bit set. night: (I, F) float32, every item's
    state on the day that is predicted, which stands for that of events that are not part of the
    activity.
    """

    span: Array
    keys: Array
    cells: Array
    night: Array | None = None

    @classmethod
    def of(cls, activity: Activity) -> "EventStates":
        """Run once through the days, keeping each item's decayed counts as of its newest event."""
        half_lives_H = np.array(HALF_LIVES_DAYS)
        counts_IH = np.zeros((activity.items, len(half_lives_H)))
        # Not 0: counts of days before 1970 would be multiplied by infinity.
        newest_I = np.full(activity.items, activity.days.min(initial=0), np.int64)
        first_I = np.zeros(activity.items, np.int64)
        is_new_I = np.ones(activity.items, bool)
        cells = np.zeros((len(activity.rows), len(STATE_NAMES) - 1), np.float16)
        order = np.argsort(activity.days, kind="stable")
        days, starts = np.unique(activity.days[order], return_index=True)
        for day, cell in zip(days.tolist(), np.split(order, starts)[1:], strict=True):
            rows = activity.rows[cell]
            counts_IH[rows] *= np.exp2((newest_I[rows] - day)[:, None] / half_lives_H)
            is_new = is_new_I[rows]
            # An event of the day before counts as one, as in Activity.decayed.
            known = counts_IH[rows] * np.exp2(1 / half_lives_H)
            first_I[rows] = np.where(is_new, day, first_I[rows])
            age = day - activity.began(rows, first_I[rows], day)
            states = _features(known.T, age, is_new)
            states[is_new, -2] *= -1
            cells[cell] = states[:, :-1]
            counts_IH[rows] += activity.events[cell][:, None]
            newest_I[rows] = day
            is_new_I[rows] = False
        span = np.array([days[0], days[-1] + 1 - days[0]] if len(days) else [0, 0], np.int64)
        is_narrow = activity.items * span[1] <= np.iinfo(np.int32).max
        kind = np.int32 if is_narrow else np.int64
        return cls(span, _keys(activity.rows, activity.days, span, kind), cells)

    def at_events(self, rows: Array, days: Array) -> Array:
        """Return the state (E, F) float32 of each item on the day of its event.

        Args:
            rows: (E,) catalogue rows of events, which without `night` are part of the activity.
            days: (E,) days of those events.
        """
        if not len(self.keys):
            nothing = np.zeros((len(rows), len(STATE_NAMES)), np.float32)
            return nothing if self.night is None else self.night[rows]
        # Of one type, or all keys would be copied for each batch of events.
        keys = _keys(rows, days, self.span, self.keys.dtype)
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        cells = self.cells[places].astype(np.float32)
        states = np.column_stack([cells[:, :-1], abs(cells[:, -1]), np.signbit(cells[:, -1])])
        if self.night is None:
            return states
        is_known = self.keys[places] == keys
        return np.where(is_known[:, None], states, self.night[rows])


def states_on_day(activity: Activity, day: int) -> Array:
    """Return the state (I, F) float32 of every item at the start of a day."""
    first = np.full(activity.items, day, np.int64)
    known = activity.days < day
    np.minimum.at(first, activity.rows[known], activity.days[known])
    is_new = np.ones(activity.items, bool)
    is_new[activity.rows[known]] = False
    began = activity.began(np.arange(activity.items), first, day)
    # One column at a time: of very many items no more than the result is held.
    counts = (activity.decayed(day, days) for days in HALF_LIVES_DAYS)
    return _features(counts, day - began, is_new)


def _keys(rows: Array, days: Array, span: Array, kind: np.dtype | type) -> Array:
    """Return the keys of events; -1, which no cell has, outside the days or the items."""
    first, number = span.tolist()
    since = days.astype(np.int64) - first
    keys = rows.astype(np.int64) * number + since
    is_inside = (since >= 0) & (since < number) & (keys <= np.iinfo(kind).max)
    return np.where(is_inside, keys, -1).astype(kind)


def _features(counts_H: Iterable[Array], age_days: Array, is_new: Array) -> Array:
    features = np.empty((len(age_days), len(STATE_NAMES)), np.float32)
    for column, counts in enumerate(counts_H):
        features[:, column] = np.log(counts + POPULARITY_FLOOR)
    features[:, -2] = np.log1p(age_days)
    features[:, -1] = is_new
    return features
