"""What reasons must say: a few items of the user's own history for each item of a list.

    reasons = Reasons(read_keys(store, prepared), most=3, top_k=50)
    check_because(parquet, histories, reasons)              # raises WrongLists

In: a Parquet file with the column `because`, and the histories of its bucket. Out: nothing, or the
first thing that is wrong. Reasons are of any domain, so they are told by a hash of (domain,
item_id): 8 bytes an item of the whole catalogue.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crossrec.data.hashing import GOLDEN, hash_strings, mix
from crossrec.data.histories import Prepared, read_item_ids
from crossrec.schema import BECAUSE, USER_ID
from crossrec.storage import Store
from crossrec.verify_lists import ENTRIES_AT_ONCE, refuse

Array = np.ndarray


@dataclass(frozen=True)
class ItemKeys:
    """The key of every catalogue row, (I,) uint64, and the names of the domains."""

    domains: tuple[str, ...]
    keys_I: Array


@dataclass(frozen=True)
class Reasons:
    """What reasons may name, how many an item has at most, and items a list at most."""

    items: ItemKeys
    most: int
    top_k: int


def read_keys(store: Store, prepared: Prepared) -> ItemKeys:
    """Return the keys of a catalogue; the ids of a domain at a time are in memory."""
    names = tuple(domain.name for domain in prepared.domains)
    parts = [
        _keys(
            np.full(domain.stop - domain.start, index), read_item_ids(store, prepared, domain.name)
        )
        for index, domain in enumerate(prepared.domains)
    ]
    return ItemKeys(names, np.concatenate(parts))


def _keys(domains: Array, item_ids: pa.Array) -> Array:
    hashes = hash_strings(item_ids.cast(pa.large_string()))
    keys: Array = mix(hashes + domains.astype(np.uint64) * GOLDEN)
    return keys


def check_because(parquet: pq.ParquetFile, histories: pa.Table, reasons: Reasons) -> None:
    """Look that each listed item has its reasons, all of them from its user's history.

    Args:
        parquet: lists that `verify_lists.check_lists` found good, in the order of the histories.
        histories: columns `user_id` and `rows` of schema.HISTORIES.
        reasons: what they may be.

    Raises:
        WrongLists: the first thing that is not so.
    """
    first = 0
    batches: Iterator[pa.RecordBatch] = parquet.iter_batches(
        batch_size=max(1, ENTRIES_AT_ONCE // (reasons.top_k * reasons.most)),
        columns=["item_ids", BECAUSE],
        use_threads=False,
    )
    for batch in batches:
        _check_batch(batch, histories.slice(first, len(batch)).combine_chunks(), reasons)
        first += len(batch)


def _check_batch(batch: pa.RecordBatch, histories: pa.Table, reasons: Reasons) -> None:
    item_ids, because = batch.columns
    whose, rows = (histories.column(name).combine_chunks() for name in (USER_ID, "rows"))
    each = np.arange(len(whose))
    refuse(_nulls(because), (f"a list in {BECAUSE}", "null"), whose, each)
    lengths = item_ids.value_lengths().to_numpy()
    differ = because.value_lengths().to_numpy() != lengths
    refuse(differ, ("reasons for each item", "lists of two lengths"), whose, each)
    of_items, owners_M = because.flatten(), np.repeat(each, lengths)
    refuse(_nulls(of_items), ("a list of reasons for each item", "null"), whose, owners_M)
    counts_M = of_items.value_lengths().to_numpy()
    too_many = (f"at most {reasons.most} reasons an item", "more")
    refuse(counts_M > reasons.most, too_many, whose, owners_M)
    items_N = np.repeat(np.arange(len(counts_M)), counts_M)
    owners_N, named = owners_M[items_N], of_items.flatten()
    domains, ids = named.flatten()
    refuse(_nulls(domains) | _nulls(ids), ("a domain and an item", "null"), whose, owners_N)
    places = pc.index_in(domains, pa.array(reasons.items.domains)).fill_null(-1).to_numpy()
    keys_N = _keys(places, ids)
    had = np.repeat(each, rows.value_lengths().to_numpy())
    had_keys = _of_user(reasons.items.keys_I[rows.flatten().to_numpy()], had)
    is_strange = (places < 0) | ~np.isin(_of_user(keys_N, owners_N), had_keys)
    if is_strange.any():
        found = repr(named[int(np.argmax(is_strange))].as_py())
        refuse(is_strange, ("reasons from the user's own history", found), whose, owners_N)
    is_again = np.ones(len(keys_N), bool)
    is_again[np.unique(_of_user(keys_N, items_N), return_index=True)[1]] = False
    refuse(is_again, ("no reason twice for an item", "one"), whose, owners_N)


def _of_user(keys: Array, owners: Array) -> Array:
    """Return keys that are the same only for the same owner, (N,) uint64."""
    owned: Array = mix(keys ^ mix(owners.astype(np.uint64)))
    return owned


def _nulls(array: pa.Array) -> Array:
    found: Array = array.is_null().to_numpy(zero_copy_only=False)
    return found
