"""Checks of events and users: which rows count, which are rejected and why, which item each names.

In: tables as inputs.read_chunk yields them. Out: accepted rows with their catalogue row, rejects.

    checked = check_events(table, index, TimeLimits(future_us, as_of_us), origins)

The first fault of a row is its reason: ids and timestamp before the item, so that "unknown item"
means a whole key that the catalogue lacks, of a domain that it has. Duplicates are found later,
where all events of a user are together (histories.py).
"""

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crossrec.data.hashing import GOLDEN, Array, hash_strings, mix
from crossrec.data.inputs import ORIGIN
from crossrec.data.rejects import Origins, reject_table
from crossrec.data.strangers import UNKNOWN_DOMAIN, Strangers, find_strangers
from crossrec.schema import (
    DOMAIN,
    EVENT_VALUES,
    ITEM_ID,
    RATING,
    TIMESTAMP,
    USER_ID,
    WEIGHT,
)

EVENT_COLUMNS = {USER_ID: "string", ITEM_ID: "string", DOMAIN: "string", TIMESTAMP: "timestamp"}

UNKNOWN_ITEM = "unknown item"

REASONS = (
    "",
    "null user_id",
    "empty user_id",
    "null item_id",
    "empty item_id",
    "null domain",
    "empty domain",
    "null timestamp",
    "timestamp in the future",
    "timestamp before year 1",
    UNKNOWN_DOMAIN,
    UNKNOWN_ITEM,
    "rating not finite",
    "weight below 0 or not finite",
)
"""Why an event is rejected, in the order of the checks."""

YEAR_1_US = -62_135_596_800_000_000

NO_EVENT, LISTED = -1, -2
"""In place of a catalogue row: a user of a rejected event; a user of `data.users`."""

CHECKED = pa.schema(
    [
        pa.field(USER_ID, pa.large_string()),
        pa.field("row", pa.int32()),
        pa.field(TIMESTAMP, pa.int64()),
        pa.field(ORIGIN, pa.int64()),
    ]
)
"""An accepted event; or a user without one, with NO_EVENT or LISTED as row."""


def checked_schema(values: Collection[str] = ()) -> pa.Schema:
    """Return CHECKED with the columns of these schema.EVENT_VALUES behind it, as float32."""
    fields = [pa.field(name, pa.float32()) for name in EVENT_VALUES if name in values]
    return pa.schema([*CHECKED, *fields])


@dataclass(frozen=True)
class ItemIndex:
    """Finds the catalogue row of (domain, item_id); all arrays, so that tasks share one copy.

    domains: names in catalogue order. starts: (domains + 1,) int64 rows. item_ids: of each row.
    hashes: (items,) uint64 of each key, ascending. rows: (items,) int32 of each hash.
    """

    domains: tuple[str, ...]
    starts: Array
    item_ids: pa.LargeStringArray
    hashes: Array
    rows: Array


def index_items(
    domains: tuple[str, ...], starts: Array, item_ids: pa.LargeStringArray
) -> ItemIndex:
    """Build the index of a catalogue sorted by (domain, item_id)."""
    owners = np.repeat(np.arange(len(domains)), np.diff(starts))
    hashes = _key_hashes(owners, item_ids)
    rows = np.argsort(hashes, kind="stable").astype(np.int32)
    return ItemIndex(domains, starts, item_ids, hashes[rows], rows)


def _key_hashes(domains: Array, item_ids: pa.LargeStringArray) -> Array:
    return mix(hash_strings(item_ids) + domains.astype(np.uint64) * GOLDEN)


def find_rows(
    index: ItemIndex, domains: pa.LargeStringArray, item_ids: pa.LargeStringArray
) -> Array:
    """Return the catalogue row of each key, (N,) int32; -1 where the catalogue lacks it.

    The hash only says where to look: an item is found where its id is equal.
    """
    names = pc.index_in(domains, pa.array(index.domains, pa.large_string())).fill_null(-1)
    owners = names.to_numpy()
    keys = _key_hashes(owners, item_ids)
    places = np.searchsorted(index.hashes, keys)
    found = np.full(len(keys), -1, np.int32)
    open_keys = np.flatnonzero(owners >= 0)
    while len(open_keys):
        open_keys = open_keys[places[open_keys] < len(index.hashes)]
        open_keys = open_keys[index.hashes[places[open_keys]] == keys[open_keys]]
        candidates = index.rows[places[open_keys]]
        is_same = _equal_ids(index.item_ids, candidates, item_ids, open_keys)
        is_same &= candidates >= index.starts[owners[open_keys]]
        is_same &= candidates < index.starts[owners[open_keys] + 1]
        found[open_keys[is_same]] = candidates[is_same]
        # Another item with the same hash: look at the next place.
        open_keys = open_keys[~is_same]
        places[open_keys] += 1
    return found


def _equal_ids(left: pa.Array, left_rows: Array, right: pa.Array, right_rows: Array) -> Array:
    pair = left.take(pa.array(left_rows)), right.take(pa.array(right_rows))
    equal: Array = pc.equal(*pair).fill_null(False).to_numpy(zero_copy_only=False)
    return equal


@dataclass(frozen=True)
class TimeLimits:
    """Microseconds since 1970 UTC; timestamps above `future_us` are rejected."""

    future_us: int
    as_of_us: int | None
    """Later events are ignored; None: no event is."""


@dataclass(frozen=True)
class Checked:
    """What became of a table's rows.

    accepted: schema CHECKED. rejects: schema.REJECTS.
    ignored: events after as_of. newest_us: the newest accepted timestamp, None without events.
    strangers: domains that the catalogue lacks.
    """

    accepted: pa.Table
    rejects: pa.Table
    ignored: int = 0
    newest_us: int | None = None
    strangers: Strangers = field(default_factory=dict)


def check_events(
    table: pa.Table, index: ItemIndex, limits: TimeLimits, origins: Origins
) -> Checked:
    """Sort events into accepted, rejected and ignored ones.

    Columns of schema.EVENT_VALUES that the table has go along with what is accepted.
    """
    codes = id_faults(table, (USER_ID, ITEM_ID, DOMAIN), REASONS)
    timestamps = table.column(TIMESTAMP)
    times = timestamps.fill_null(0).to_numpy()
    _mark(codes, timestamps.is_null().to_numpy(), "null timestamp")
    _mark(codes, times > limits.future_us, "timestamp in the future")
    _mark(codes, times < YEAR_1_US, "timestamp before year 1")
    item_ids, domains = (_one_chunk(table, name) for name in (ITEM_ID, DOMAIN))
    rows = find_rows(index, domains, item_ids)
    is_known = pc.is_in(domains, pa.array(index.domains, pa.large_string()))
    _mark(codes, ~is_known.to_numpy(zero_copy_only=False), UNKNOWN_DOMAIN)
    is_strange = codes == REASONS.index(UNKNOWN_DOMAIN)
    _mark(codes, rows < 0, UNKNOWN_ITEM)
    values = _event_values(table, codes)
    is_good = codes == 0
    if limits.as_of_us is not None:
        is_good &= times <= limits.as_of_us
    rejected_users = table.column(USER_ID).filter(pa.array(codes > 0))
    kept = pa.array(np.flatnonzero(is_good))
    events = pa.table(
        [
            table.column(USER_ID).take(kept),
            pa.array(rows[is_good]),
            pa.array(times[is_good]),
            table.column(ORIGIN).take(kept),
            *(pa.array(value[is_good]) for value in values.values()),
        ],
        schema=checked_schema(values),
    )
    unheard = _without_events(rejected_users, NO_EVENT, tuple(values))
    accepted = pa.concat_tables([events, unheard])
    return Checked(
        accepted.combine_chunks(),
        reject_table(origins, table, codes, REASONS),
        ignored=int((codes == 0).sum() - is_good.sum()),
        newest_us=int(times[is_good].max()) if is_good.any() else None,
        strangers=find_strangers(domains.filter(pa.array(is_strange)), times[is_strange]),
    )


def _event_values(table: pa.Table, codes: Array) -> dict[str, Array]:
    """Return the values of events, (N,) float32 each; mark those that cannot be used."""
    found = {}
    for name, missing in ((RATING, np.nan), (WEIGHT, 1.0)):
        if name in table.column_names:
            column = table.column(name)
            given = column.fill_null(np.nan).to_numpy()
            found[name] = np.where(np.isnan(given), np.float32(missing), given)
    if RATING in found:
        _mark(codes, np.isinf(found[RATING]), "rating not finite")
    if WEIGHT in found:
        is_bad = (found[WEIGHT] < 0) | np.isinf(found[WEIGHT])
        _mark(codes, is_bad, "weight below 0 or not finite")
    return found


def check_users(table: pa.Table, origins: Origins, values: Collection[str] = ()) -> Checked:
    """Sort the ids of `data.users` into users and rejected rows; a user may stand there twice."""
    codes = id_faults(table, (USER_ID,), REASONS)
    users = table.column(USER_ID).filter(pa.array(codes == 0))
    rejects = reject_table(origins, table, codes, REASONS)
    return Checked(_without_events(users, LISTED, values), rejects)


def id_faults(table: pa.Table, names: tuple[str, ...], reasons: tuple[str, ...]) -> Array:
    """Return the code of each row's first null or empty id, (N,) int8; 0 where there is none."""
    codes = np.zeros(len(table), np.int8)
    for name in names:
        lengths = pc.binary_length(table.column(name)).fill_null(-1).to_numpy()
        _mark(codes, lengths < 0, f"null {name}", reasons)
        _mark(codes, lengths == 0, f"empty {name}", reasons)
    return codes


def _mark(codes: Array, is_faulty: Array, reason: str, reasons: tuple[str, ...] = REASONS) -> None:
    codes[is_faulty & (codes == 0)] = reasons.index(reason)


def _without_events(users: pa.ChunkedArray, row: int, values: Collection[str]) -> pa.Table:
    # An empty id is no user.
    distinct = pc.unique(users.filter(pc.greater(pc.binary_length(users), 0)))
    size = len(distinct)
    numbers = (np.full(size, row, np.int32), np.zeros(size, np.int64), np.full(size, -1))
    nothing = [pa.nulls(size, pa.float32())] * len(values)
    return pa.table([distinct, *map(pa.array, numbers), *nothing], schema=checked_schema(values))


def _one_chunk(table: pa.Table, name: str) -> pa.LargeStringArray:
    column = table.column(name).combine_chunks()
    return column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
