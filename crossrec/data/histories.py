"""Histories: the events of each user in the order of time, kept in buckets of whole users.

What prepare wrote is read back here by every later stage:

    prepared = open_prepared(store, "prepared/3f2a...")
    for bucket in range(prepared.buckets):
        table = read_histories(store, prepared, bucket)      # schema.HISTORIES
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crossrec.data.events import CHECKED, LISTED
from crossrec.data.hashing import Array
from crossrec.data.inputs import ORIGIN
from crossrec.errors import InputError, explain
from crossrec.schema import (
    ACTIVITY,
    CATALOGUE,
    HISTORIES,
    TIMESTAMP,
    US_PER_DAY,
    USER_ID,
    bucket_name,
    domain_folder,
)
from crossrec.storage import Store

FORMAT = 1
"""Of the prepared folder; a change of what it holds, or of the hash, is a new number."""

SUMMARY = "summary.json"


@dataclass(frozen=True)
class DomainRange:
    """A domain's catalogue rows start..stop-1, and how many accepted events it has."""

    name: str
    start: int
    stop: int
    events: int


@dataclass(frozen=True)
class Prepared:
    """A finished prepared folder; domains are in catalogue order."""

    folder: str
    digest: str
    domains: tuple[DomainRange, ...]
    buckets: int
    users: int
    events: int
    items: int
    as_of_us: int


def open_prepared(store: Store, folder: str) -> Prepared:
    """Read what a prepared folder holds.

    Raises:
        StorageError: the folder is not there or not finished.
        InputError: another version of crossrec wrote it.
    """
    summary = store.read_json(f"{folder}/{SUMMARY}")
    if summary["format"] != FORMAT:
        where, found = store.uri(f"{folder}/{SUMMARY}"), f"format {summary['format']}"
        raise InputError(explain(where, f"format {FORMAT}", found, "run the stage prepare again"))
    domains = tuple(
        DomainRange(entry["name"], entry["start"], entry["stop"], entry["events"])
        for entry in summary["domains"]
    )
    counts = {name: summary[name] for name in ("buckets", "users", "events", "items", "as_of_us")}
    return Prepared(folder, summary["digest"], domains, **counts)


def read_histories(store: Store, prepared: Prepared, bucket: int) -> pa.Table:
    """Return a bucket's users with their histories, schema.HISTORIES.

    Raises:
        InputError: there is no such bucket.
    """
    if not 0 <= bucket < prepared.buckets:
        expected = f"a bucket from 0 to {prepared.buckets - 1}"
        where = store.uri(prepared.folder)
        raise InputError(explain(where, expected, str(bucket), "ask for one that exists"))
    path = histories_path(prepared.folder, bucket)
    return store.read_parquet(path).cast(HISTORIES)


def read_catalogue(store: Store, prepared: Prepared, domain: str) -> pa.Table:
    """Return the items of a domain in the order of their rows, schema.CATALOGUE.

    Raises:
        InputError: the catalogue has no such domain.
    """
    names = [entry.name for entry in prepared.domains]
    if domain not in names:
        expected = f"one of the domains {', '.join(map(repr, names))}"
        where = store.uri(prepared.folder)
        raise InputError(explain(where, expected, repr(domain), "ask for one that exists"))
    return store.read_parquet(catalogue_path(prepared.folder, domain)).cast(CATALOGUE)


def histories_path(folder: str, bucket: int) -> str:
    """Return where a bucket's histories are."""
    return f"{folder}/histories/{bucket_name(bucket)}.parquet"


def activity_path(folder: str, bucket: int) -> str:
    """Return where the activity of a bucket's events is."""
    return f"{folder}/activity/{bucket_name(bucket)}.parquet"


def catalogue_path(folder: str, domain: str) -> str:
    """Return where a domain's items are."""
    return f"{folder}/catalogue/{domain_folder(domain)}/items.parquet"


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
        events: of whole users, schema events.CHECKED.
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
    histories = _histories(users.filter(pa.array(is_user)), lengths[is_user], rows_kept, times_kept)
    activity = _activity(rows_kept, times_kept // US_PER_DAY)
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
    column = events.cast(CHECKED).column(USER_ID).combine_chunks()
    encoded = column.dictionary_encode()
    order = pc.sort_indices(encoded.dictionary).to_numpy()
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order))
    return encoded.dictionary.take(pa.array(order)), ranks[encoded.indices.to_numpy()]


def _histories(users: pa.Array, lengths: Array, rows: Array, times: Array) -> pa.Table:
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    lists = [pa.ListArray.from_arrays(offsets, pa.array(values)) for values in (rows, times)]
    return pa.table([users.cast(pa.string()), *lists], schema=HISTORIES)


def _activity(rows: Array, days: Array) -> pa.Table:
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
