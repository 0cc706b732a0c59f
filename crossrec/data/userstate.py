"""What was known of a user at a moment: how active they are, and how new and popular their taste.

features_UF = user_features(before(histories, day), states, day)
counts_UD = domain_counts(before(histories, day), bounds)
"""

from collections.abc import Sequence

import numpy as np

from crossrec.data.itemstate import STATE_NAMES, EventStates
from crossrec.data.replay import Histories

Array = np.ndarray

TASTE_DECAY = 0.9
"""A user's taste is the mean state of the items they chose, on the day they chose them, weighted
TASTE_DECAY ** age in events."""

TASTE_EVENTS = 50
"""Older events weigh less than half a percent and are left out."""

RECENT_DAYS = 30

FEATURE_NAMES = (
    "log_events",
    "log_days_since",
    "log_recent_events",
    *(f"taste_{name}" for name in STATE_NAMES),
)
"""log(1 + events); log(1 + days since the newest); log(1 + events in RECENT_DAYS); the taste."""


def event_ages(histories: Histories) -> Array:
    """Return the age of each event within its history, (E,) int64: 0 for the newest.

    >>> import pyarrow as pa
    >>> offsets, days = np.array([0, 2, 2, 5]), np.zeros(5, np.int32)
    >>> event_ages(Histories(pa.array(["a", "b", "c"]), offsets, days, days)).tolist()
    [1, 0, 2, 1, 0]
    """
    ages: Array = histories.offsets[1:][histories.owners] - 1 - np.arange(len(histories.rows))
    return ages


def user_features(histories: Histories, states: EventStates, day: int) -> Array:
    """Return (U, F) float32 in the order of FEATURE_NAMES; zeros for a user without events.

    Args:
        histories: events before `day` only.
        states: of the input that the histories are from.
        day: the day that is predicted.
    """
    users = len(histories.lengths)
    has = histories.lengths > 0
    last = np.zeros(users, np.int64)
    last[has] = histories.days[histories.offsets[1:][has] - 1]
    owners = histories.owners
    recent = np.bincount(owners[histories.days >= day - RECENT_DAYS], minlength=users)
    ages = event_ages(histories)
    kept = ages < TASTE_EVENTS
    weights = TASTE_DECAY ** ages[kept]
    chosen = states.at_events(histories.rows[kept], histories.days[kept])
    total = np.maximum(np.bincount(owners[kept], weights, users), 1e-9)
    taste = [
        np.bincount(owners[kept], weights * chosen[:, k], users) / total
        for k in range(len(STATE_NAMES))
    ]
    since = np.where(has, day - last, 0)
    columns = [np.log1p(histories.lengths), np.log1p(since), np.log1p(recent), *taste]
    return np.stack(columns, 1).astype(np.float32)


def domain_counts(histories: Histories, bounds: Sequence[tuple[int, int]]) -> Array:
    """Return log(1 + events) of each user in each domain, (U, D) float32."""
    owners, users = histories.owners, len(histories.lengths)
    inside = [(histories.rows >= start) & (histories.rows < stop) for start, stop in bounds]
    counts = [np.bincount(owners[chosen], minlength=users) for chosen in inside]
    return np.log1p(np.stack(counts, 1)).astype(np.float32)
