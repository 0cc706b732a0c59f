"""What lists must say, held against the prepared input: which users, which items, in which order.

    items = ItemIndex(store.read_parquet(path, ["item_id"])["item_id"])
    users = bucket_users(histories, domain.start, domain.stop)
    check_lists(parquet, users, Allowed(items, candidates, top_k=50))         # raises WrongLists

In: a Parquet file with the columns of schema.SCORES, the histories of its bucket, the items of its
domain and which of them are candidates.
Out: nothing, or the first thing that is wrong. A part of the file at a time is in memory, and
nothing is done user by user.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crossrec.data.attributes import NO_VALUE
from crossrec.data.candidates import Candidates
from crossrec.data.hashing import hash_strings
from crossrec.data.texts import is_on_trial
from crossrec.data.traits import traits_of
from crossrec.schema import SCORES, USER_ID

Array = np.ndarray

ENTRIES_AT_ONCE = 2**18
"""Places of lists that are decoded together."""

BATCH_BYTES = 32 * 2**20
"""What so many places take at most while they are checked, ids of some 30 bytes."""

IDS_A_PIECE = 2**20
"""Ids that are hashed together, to bound what the hash holds meanwhile."""

NOT_AN_ITEM = -1


class WrongLists(Exception):
    """What was expected of lists, and what was found."""

    def __init__(self, expected: str, found: str) -> None:
        super().__init__(f"expected {expected}, found {found}")
        self.expected = expected
        self.found = found


@dataclass(frozen=True)
class BucketUsers:
    """The users of a bucket in their order, and the rows that each has seen within a domain.

    user_ids: (U,) strings. offsets: (U + 1,) int64. rows: (S,) int64, from 0 for the domain's
    first item; user u has seen rows[offsets[u]:offsets[u + 1]]. traits: (U,) each, what rules look
    at of the users.
    """

    user_ids: pa.Array
    offsets: Array
    rows: Array
    traits: Mapping[str, pa.Array] = field(default_factory=dict)

    def part(self, first: int, last: int) -> "BucketUsers":
        """Return users first..last-1."""
        offsets = self.offsets[first : last + 1]
        return BucketUsers(
            self.user_ids.slice(first, last - first),
            offsets - offsets[0],
            self.rows[offsets[0] : offsets[-1]],
            {name: trait.slice(first, last - first) for name, trait in self.traits.items()},
        )


def bucket_users(histories: pa.Table, start: int, stop: int) -> BucketUsers:
    """Return who is in a bucket, and what they have seen of catalogue rows start..stop-1.

    Args:
        histories: at least columns `user_id` and `rows` of schema.HISTORIES, and traits.
        start: the domain's first row.
        stop: the row after its last.
    """
    lists = histories.column("rows").combine_chunks()
    rows = lists.flatten().to_numpy()
    ends = np.concatenate([[0], np.cumsum(lists.value_lengths().to_numpy(), dtype=np.int64)])
    inside = (rows >= start) & (rows < stop)
    inside_before = np.concatenate([[0], np.cumsum(inside, dtype=np.int64)])
    user_ids = histories.column(USER_ID).combine_chunks()
    seen = rows[inside].astype(np.int64) - start
    return BucketUsers(user_ids, inside_before[ends], seen, traits_of(histories))


class ItemIndex:
    """Finds the row of an item id within its domain; 24 bytes an item beside the ids.

    Threads may share it. A set that Arrow or Polars looks up in would be hashed anew at every call,
    20 s for 10 million items.
    """

    def __init__(self, item_ids: pa.ChunkedArray) -> None:
        self.ids = item_ids.cast(pa.large_string()).combine_chunks()
        pieces = [
            hash_strings(self.ids.slice(first, IDS_A_PIECE))
            for first in range(0, len(self.ids), IDS_A_PIECE)
        ]
        hashes = np.concatenate([np.zeros(0, np.uint64), *pieces])
        order = np.argsort(hashes)
        # One more, so that a search that runs past the end finds something that it is not behind.
        self._hashes = np.append(hashes[order], np.uint64(2**64 - 1))
        self._rows = np.append(order, 0)
        bits = max(1, int(np.log2(max(len(self.ids), 1))))
        self._shift = np.uint64(64 - bits)
        # Hashes are even: where those with given first bits begin is where one is, or near it.
        heads = np.arange(2**bits, dtype=np.uint64) << self._shift
        self._begins = np.searchsorted(self._hashes[:-1], heads)

    def __len__(self) -> int:
        return len(self.ids)

    def rows_of(self, ids: pa.Array) -> Array:
        """Return the row of each id, (N,) int64; NOT_AN_ITEM where the domain has no such item."""
        coded = ids.dictionary_encode()
        rows: Array = self._find(coded.dictionary.cast(pa.large_string()))[coded.indices.to_numpy()]
        return rows

    def _find(self, ids: pa.LargeStringArray) -> Array:
        if not len(self.ids):
            return np.full(len(ids), NOT_AN_ITEM)
        hashes = hash_strings(ids)
        places = self._begins[hashes >> self._shift]
        behind = np.flatnonzero(self._hashes[places] < hashes)
        while len(behind):
            places[behind] += 1
            behind = behind[self._hashes[places[behind]] < hashes[behind]]
        rows: Array = self._rows[places]
        other = np.flatnonzero(~pc.equal(self.ids.take(pa.array(rows)), ids).to_numpy(False))
        if len(other):
            # No item, or one of two with the same hash.
            sought = pc.index_in(ids.take(pa.array(other)), value_set=self.ids)
            rows[other] = sought.fill_null(NOT_AN_ITEM).to_numpy()
        return rows


@dataclass(frozen=True)
class Allowed:
    """What the lists of a domain may hold: its items, which of them, and how many a list."""

    items: ItemIndex
    candidates: Candidates
    top_k: int


def check_lists(parquet: pq.ParquetFile, users: BucketUsers, allowed: Allowed) -> None:
    """Look that a file has one good list for each user of the bucket, in the bucket's order.

    Raises:
        WrongLists: the first thing that is not so.
    """
    found = parquet.metadata.num_rows
    if found != len(users.user_ids):
        expected = f"one row for each of the {len(users.user_ids)} users of the bucket"
        raise WrongLists(expected, f"{found} rows")
    first = 0
    batches: Iterator[pa.RecordBatch] = parquet.iter_batches(
        batch_size=max(1, ENTRIES_AT_ONCE // allowed.top_k),
        columns=SCORES.names,
        use_threads=False,
    )
    for batch in batches:
        last = first + len(batch)
        check_batch(batch, users.part(first, last), allowed)
        first = last


def check_batch(batch: pa.RecordBatch, users: BucketUsers, allowed: Allowed) -> None:
    """Do what `check_lists` does with columns of (whose, item_ids, scores).

    Raises:
        WrongLists: the first thing that is wrong.
    """
    whose, id_lists, score_lists = batch.columns
    same = pc.equal(whose, users.user_ids.cast(whose.type)).fill_null(False).to_numpy(False)
    if not same.all():
        place = int(np.argmin(same))
        expected = f"the users of the bucket in their order, next {users.user_ids[place].as_py()!r}"
        raise WrongLists(expected, repr(whose[place].as_py()))
    lengths = _check_shape(id_lists, score_lists, whose, allowed.top_k)
    owners = np.repeat(np.arange(len(lengths)), lengths)
    _check_scores(score_lists.flatten(), owners, whose)
    rows = _check_items(id_lists.flatten(), owners, users, allowed.items)
    _check_rules(rows, owners, whose, allowed)
    _check_requires(rows, owners, users, allowed)


def _check_shape(id_lists: pa.Array, score_lists: pa.Array, whose: pa.Array, top_k: int) -> Array:
    """Look that lists are there and of equal lengths; return the lengths, (B,) int32."""
    each = np.arange(len(whose))
    for name, lists in (("item_ids", id_lists), ("scores", score_lists)):
        refuse(lists.is_null().to_numpy(False), (f"a list in {name}", "null"), whose, each)
    lengths: Array = id_lists.value_lengths().to_numpy()
    differ = lengths != score_lists.value_lengths().to_numpy()
    refuse(differ, ("a score for each item", "lists of two lengths"), whose, each)
    refuse(lengths > top_k, (f"at most {top_k} items a list", "more"), whose, each)
    return lengths


def _check_scores(scores: pa.Array, owners: Array, whose: pa.Array) -> None:
    refuse(scores.is_null().to_numpy(False), ("a score in every place", "null"), whose, owners)
    values = scores.to_numpy()
    refuse(~np.isfinite(values), ("finite scores", "one that is not"), whose, owners)
    rising = (np.diff(values) > 0) & (owners[1:] == owners[:-1])
    refuse(rising, ("scores that never rise", "one that does"), whose, owners)


def _check_rules(rows: Array, owners: Array, whose: pa.Array, allowed: Allowed) -> None:
    """Look that rows (N,) are candidates, and that no list has too many of one value."""
    ids, found = allowed.items.ids, allowed.candidates
    refused = ~found.allowed[rows]
    if refused.any():
        said = repr(ids[int(rows[np.argmax(refused)])].as_py())
        refuse(refused, ("only candidates, by score.candidates", said), whose, owners)
    for column, codes in found.groups.items():
        keys = owners * (np.int64(codes.max(initial=0)) + 1) + codes[rows]
        has_value = np.flatnonzero(codes[rows] != NO_VALUE)
        values, counts = np.unique(keys[has_value], return_counts=True)
        most = found.most[column]
        too_many = np.isin(keys, values[counts > most]) & (codes[rows] != NO_VALUE)
        refuse(too_many, (f"at most {most} items of one {column} a list", "more"), whose, owners)


def _check_requires(rows: Array, owners: Array, users: BucketUsers, allowed: Allowed) -> None:
    """Look that users may have the items in rows (N,), by what these require and by their texts."""
    for said, refused in refused_to(users, owners, rows, allowed):
        if refused.any():
            found = repr(allowed.items.ids[int(rows[np.argmax(refused)])].as_py())
            refuse(refused, (said, found), users.user_ids, owners)


def refused_to(
    users: BucketUsers, owners: Array, rows: Array, allowed: Allowed
) -> Iterator[tuple[str, Array]]:
    """Yield what a rule expects, and which rows it keeps from which users, for each such rule.

    Args:
        users: of whom `owners` are.
        owners: int64, places of users.
        rows: int64, of items; broadcast against owners, as the result is.
        allowed: the rules.
    """
    requires, limited = allowed.candidates.requires, allowed.candidates.limited
    if requires is not None and requires.codes.any():
        by_kind = requires.refused(users.traits, len(users.user_ids))
        said = "only items whose score.candidates.requires the user fulfils"
        yield said, by_kind[owners, requires.codes[rows]]
    if limited is not None and limited.any():
        said = "no item that score.candidates.check_texts keeps from most users"
        yield said, limited[rows] & ~is_on_trial(users.user_ids)[owners]


def _check_items(ids: pa.Array, owners: Array, users: BucketUsers, items: ItemIndex) -> Array:
    """Look that all are items of the domain, none twice and none seen; return their rows."""
    whose = users.user_ids
    refuse(ids.is_null().to_numpy(False), ("an item id in every place", "null"), whose, owners)
    rows = items.rows_of(ids)
    unknown = rows == NOT_AN_ITEM
    if unknown.any():
        found = repr(ids[int(np.argmax(unknown))].as_py())
        refuse(unknown, ("items of the domain", found), whose, owners)
    keys = np.sort(owners * len(items) + rows)
    seen = np.repeat(np.arange(len(whose)), np.diff(users.offsets)) * len(items) + users.rows
    is_listed = np.append(keys, -1)[np.searchsorted(keys, seen)] == seen
    for expected, wrong in (
        ("no item twice in a list", keys[1:][keys[1:] == keys[:-1]]),
        ("no item that the user has seen", seen[is_listed]),
    ):
        if len(wrong):
            user, row = divmod(int(wrong[0]), len(items))
            found = f"{items.ids[row].as_py()!r} for {whose[user].as_py()!r}"
            raise WrongLists(expected, found)
    return rows


def refuse(wrong: Array, said: tuple[str, str], whose: pa.Array, owners: Array) -> None:
    """Raise for the first place that is wrong, if there is one.

    Args:
        wrong: (N,) bool.
        said: what was expected and found.
        whose: (B,) strings.
        owners: (N,) at least: the list that each place is in.
    """
    if wrong.any():
        user = whose[int(owners[np.argmax(wrong)])].as_py()
        raise WrongLists(said[0], f"{said[1]} for {user!r}")
