"""The truth of a hold-out: what known users did for the first time in its days.

    items = load_known_items(store, prepared, start)
    truth = holdout_truth(store, prepared, items, buckets, start, stop)

Beside each item stands what was known on the first day, by which figures are sliced; nothing of the
days from `start` on is in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from crossrec.data.daily import load_activity
from crossrec.data.histories import Prepared, read_histories, read_item_ids
from crossrec.data.replay import Histories, before, flatten, new_events
from crossrec.evaluate.metrics import DECILES
from crossrec.model.inference import domain_of_rows
from crossrec.schema import DOMAIN, ITEM_ID, USER_ID
from crossrec.storage import Store

Array = np.ndarray

BEGINNING = -(2**31)
"""A day before all others."""


@dataclass(frozen=True)
class KnownItems:
    """What was known of the catalogue on a day.

    bounds: (start, stop) of each domain's rows. item_ids: (I,) strings. events: (I,) int64 of
    everybody before the day. deciles: (I,) int64, see `popularity_deciles`.
    """

    names: tuple[str, ...]
    bounds: tuple[tuple[int, int], ...]
    item_ids: pa.Array
    events: Array
    deciles: Array


def load_known_items(store: Store, prepared: Prepared, day: int) -> KnownItems:
    """Read what was known of the catalogue on a day."""
    names = tuple(domain.name for domain in prepared.domains)
    bounds = tuple((domain.start, domain.stop) for domain in prepared.domains)
    ids = [read_item_ids(store, prepared, name) for name in names]
    events = load_activity(store, prepared).counts(BEGINNING, day)
    deciles = popularity_deciles(events, bounds)
    return KnownItems(names, bounds, pa.concat_arrays(ids), events, deciles)


def holdout_truth(
    store: Store, prepared: Prepared, items: KnownItems, buckets: range, start: int, stop: int
) -> pa.Table:
    """Return what known users did for the first time in days start..stop-1.

    Args:
        store: of the run.
        prepared: the input.
        items: as of `start`.
        buckets: those whose users are judged.
        start: the first day that is judged.
        stop: the day after the last one.

    Returns:
        As `truth_of`.
    """
    parts = []
    for bucket in buckets:
        histories = flatten(read_histories(store, prepared, bucket))
        users, rows = new_events(histories, start, stop)
        parts.append(truth_of(before(histories, start), users, rows, items))
    return pa.concat_tables(parts)


def newest_truth(
    store: Store, whole: Prepared, known: Prepared, items: KnownItems, buckets: range
) -> pa.Table:
    """Return each user's newest event, for leave-one-out.

    Users without another event are not judged, nor those who had the same item before: what was
    seen is left out of lists.

    Args:
        store: of the run.
        whole: the input.
        known: the same without each user's newest event.
        items: as `known` has them.
        buckets: those whose users are judged.

    Returns:
        As `truth_of`.
    """
    parts = []
    for bucket in buckets:
        histories = flatten(read_histories(store, whole, bucket))
        before_it = flatten(read_histories(store, known, bucket))
        users = np.flatnonzero(before_it.lengths > 0)
        rows = histories.rows[histories.offsets[1:][users] - 1]
        size = sum(stop - start for start, stop in items.bounds)
        had = before_it.owners * size + before_it.rows
        is_new = ~np.isin(users * size + rows, had)
        parts.append(truth_of(before_it, users[is_new], rows[is_new], items))
    return pa.concat_tables(parts)


def truth_of(known: Histories, users: Array, rows: Array, items: KnownItems) -> pa.Table:
    """Return relevant items as the truth that `crossrec.evaluate.metrics` judges by.

    Args:
        known: what was known of the users.
        users: (N,) place in `known` of who did something.
        rows: (N,) catalogue rows of what they did.
        items: what was known of the catalogue.

    Returns:
        One row a relevant item:
        user_id, domain, item_id.
        is_cold_item: bool, nobody had an event with the item.
        is_cold_in_domain: bool, the user had no event in the domain.
        events_in_domain, history_length: int64, the user's events in the domain, and in all.
        item_popularity_decile: int64, see `popularity_deciles`.
    """
    size = len(items.names)
    domains = domain_of_rows(rows, items.bounds)
    places = known.owners * size + domain_of_rows(known.rows, items.bounds)
    events = np.bincount(places, minlength=len(known.lengths) * size)[users * size + domains]
    columns = {
        USER_ID: known.user_ids.take(pa.array(users)),
        DOMAIN: pa.array(items.names, pa.string()).take(pa.array(domains)),
        ITEM_ID: items.item_ids.take(pa.array(rows)),
        "is_cold_item": items.events[rows] == 0,
        "is_cold_in_domain": events == 0,
        "events_in_domain": events,
        "history_length": known.lengths[users],
        "item_popularity_decile": items.deciles[rows],
    }
    return pa.table(columns)


def popularity_deciles(events_I: Array, bounds: Sequence[tuple[int, int]]) -> Array:
    """Return which tenth of its domain's items each item is in, by events: 10 the most popular.

    Items without events are in none, 0. All tenths have the same number of items, so that where
    more items have the same count than fit into one, the catalogue's order divides them.

    Args:
        events_I: (I,) events of each catalogue row.
        bounds: (start, stop) of each domain's catalogue rows.

    Returns:
        (I,) int64 from 0 to 10.

    >>> popularity_deciles(np.array([5, 0, 1, 8, 3, 2]), [(0, 4), (4, 6)]).tolist()
    [7, 0, 4, 10, 10, 5]
    """
    deciles_I = np.zeros(len(events_I), np.int64)
    for start, stop in bounds:
        rows = start + np.flatnonzero(events_I[start:stop])
        ranked = rows[np.argsort(events_I[rows], kind="stable")]
        # Rounded up, so that the most popular of a few items is in the tenth.
        deciles_I[ranked] = -(-np.arange(1, len(rows) + 1) * DECILES // max(len(rows), 1))
    return deciles_I
