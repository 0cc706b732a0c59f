"""The words of crossrec, as columns, Arrow schemas and paths; used by every other module.

- user: someone who acts; known by `user_id`.
- domain: a part of the business with items of its own (shop, video, social).
- item: something that can be recommended; its key is (domain, item_id).
- event: one user-item action at a `timestamp` (UTC).
- history: a user's events, oldest first, across all domains.
- catalogue: the items. An item's *row* is its place in the catalogue sorted by (domain, item_id),
so that every
  domain is one contiguous range of rows.
- candidate: an item of the target domain that may be shown.
- score: float32, higher is better. rank: from 1.
- day: whole days since 1970-01-01 UTC; all that is known of an item at a moment is known by day.
"""

from collections.abc import Collection
from urllib.parse import quote, unquote

import pyarrow as pa

USER_ID = "user_id"
ITEM_ID = "item_id"
DOMAIN = "domain"
TIMESTAMP = "timestamp"
RATING = "rating"
WEIGHT = "weight"

US_PER_DAY = 86_400_000_000
"""Microseconds in a day: timestamps are int64 microseconds, days are int32."""

HISTORIES = pa.schema(
    [
        pa.field(USER_ID, pa.string(), nullable=False),
        pa.field("rows", pa.list_(pa.int32()), nullable=False),
        pa.field("timestamps", pa.list_(pa.int64()), nullable=False),
    ]
)
"""One row a user, sorted by user_id: catalogue rows and microseconds since 1970 UTC, oldest first;
ties by row."""

EVENT_VALUES = {RATING: "ratings", WEIGHT: "weights"}
"""What an event may carry beside its key, and its name in histories: lists of float32 as long as
`rows`; a rating that is not given is NaN, a weight that is not given 1."""


def histories_schema(values: Collection[str] = ()) -> pa.Schema:
    """Return HISTORIES with the columns of these EVENT_VALUES behind it.

    >>> histories_schema(["rating"]).names
    ['user_id', 'rows', 'timestamps', 'ratings']
    """
    more = [name for value, name in EVENT_VALUES.items() if value in values]
    fields = [pa.field(name, pa.list_(pa.float32()), nullable=False) for name in more]
    return pa.schema([*HISTORIES, *fields])


ITEM_KEY = (DOMAIN, ITEM_ID)
"""Ids of items may be the same in two domains."""

CATALOGUE = pa.schema(
    [
        pa.field(DOMAIN, pa.string(), nullable=False),
        pa.field(ITEM_ID, pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("category", pa.string()),
        pa.field("available_day", pa.int32()),
    ]
)
"""One row an item, sorted by (domain, item_id); `text` joins the configured text columns, empty
where all are null; `available_day` is the day from which it could be had, null where unknown."""

ACTIVITY = pa.schema(
    [
        pa.field("row", pa.int32(), nullable=False),
        pa.field("day", pa.int32(), nullable=False),
        pa.field("events", pa.int32(), nullable=False),
    ]
)
"""Events an item had on a day, sorted by (row, day): all that popularity and age are computed
from."""

REJECTS = pa.schema(
    [
        pa.field("table", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("file_row", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field(USER_ID, pa.string()),
        pa.field(ITEM_ID, pa.string()),
        pa.field(DOMAIN, pa.string()),
        pa.field(TIMESTAMP, pa.string()),
    ]
)
"""One row a rejected input row: where it stood (row from 0 in its file), why it was refused, and
what it said."""

SCORES = pa.schema(
    [
        pa.field(USER_ID, pa.string(), nullable=False),
        pa.field("item_ids", pa.list_(pa.string()), nullable=False),
        pa.field("scores", pa.list_(pa.float32()), nullable=False),
    ]
)
"""One row a (user, domain), sorted by user_id, best item first; the domain is the Hive partition of
the path."""

BECAUSE = "because"
REASON = pa.struct([pa.field(DOMAIN, pa.string()), pa.field(ITEM_ID, pa.string())])
"""The column of `score.explain`: for each item of a list the items of its user's history, of any
domain, that raised its score most, best reason first."""


def scores_schema(explain: int) -> pa.Schema:
    """Return SCORES, with the column BECAUSE behind it where lists are explained.

    >>> scores_schema(3).names
    ['user_id', 'item_ids', 'scores', 'because']
    """
    reasons = pa.field(BECAUSE, pa.list_(pa.list_(REASON)), nullable=False)
    return SCORES.append(reasons) if explain else SCORES


DEFAULTS = pa.schema(
    [
        pa.field(DOMAIN, pa.string(), nullable=False),
        pa.field("item_ids", pa.list_(pa.string()), nullable=False),
        pa.field("scores", pa.list_(pa.float32()), nullable=False),
    ]
)
"""One row a domain: the list for users whom the input does not know."""


NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
"""Hive's word for a partition without a value."""

MOST_FOLDER_BYTES = 255 - len(".safetensors")
"""Of `domain_folder`: disks take names of 255 bytes, and some files are named after it."""


def domain_folder(domain: str) -> str:
    """Return the Hive folder of a domain; no domain can leave it.

    >>> domain_folder("a/b"), domain_folder(".."), domain_folder("")
    ('domain=a%2Fb', 'domain=%2E%2E', 'domain=__HIVE_DEFAULT_PARTITION__')
    """
    if not domain:
        return f"{DOMAIN}={NO_VALUE}"
    if domain == NO_VALUE:
        return f"{DOMAIN}=%5F{NO_VALUE[1:]}"
    return f"{DOMAIN}=" + quote(domain, safe="").replace(".", "%2E")


def domain_of_folder(folder: str) -> str:
    """Return the domain that `domain_folder` encoded.

    >>> domain_of_folder(domain_folder("día 1.b"))
    'día 1.b'
    """
    value = folder.removeprefix(f"{DOMAIN}=")
    return "" if value == NO_VALUE else unquote(value)


def bucket_name(bucket: int) -> str:
    """Return the name that a bucket's files and records carry.

    >>> bucket_name(17)
    'bucket-00017'
    """
    return f"bucket-{bucket:05d}"
