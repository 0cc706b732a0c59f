"""Traits: the columns of `data.users` that `score.candidates.requires` names, beside histories.

    <folder>/bucket-*.parquet    user_id, and trait.<column> float64 or string, null where unknown

In: what `traitfiles.write_traits` wrote. Out: a bucket's histories with the columns behind them.

    histories = with_traits(store, "runs/2014-06-08/traits", 3, histories)
    traits_of(histories)["age"]          # (U,), in the order of the users
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crossrec.data.hashing import buckets_of
from crossrec.schema import USER_ID, bucket_name
from crossrec.storage import Store

TRAIT = "trait."
"""Before a column's name: another table has columns of its own."""


def traits_path(folder: str, bucket: int) -> str:
    """Return where the traits of a bucket's users are."""
    return f"{folder}/{bucket_name(bucket)}.parquet"


def traits_of(table: pa.Table) -> dict[str, pa.Array]:
    """Return the traits among a table's columns, by the names that `data.users` has for them."""
    return {
        name.removeprefix(TRAIT): table.column(name).combine_chunks()
        for name in table.column_names
        if name.startswith(TRAIT)
    }


def with_traits(store: Store, folder: str | None, bucket: int, histories: pa.Table) -> pa.Table:
    """Return a table with `user_id` of a bucket with traits behind it; folder None: as it is."""
    if folder is None:
        return histories
    found = store.read_parquet(traits_path(folder, bucket))
    places = pc.index_in(histories.column(USER_ID), value_set=found.column(USER_ID))
    for name in found.column_names[1:]:
        column = found.column(name).combine_chunks().take(places.combine_chunks())
        histories = histories.append_column(name, column)
    return histories


def read_traits(
    store: Store, folder: str | None, user_ids: pa.Array, buckets: int
) -> dict[str, pa.Array]:
    """Return the traits of some users of few buckets, in their order."""
    if folder is None:
        return {}
    homes = np.unique(buckets_of(user_ids.cast(pa.large_string()), buckets)).tolist()
    if not homes:
        return {}
    tables = [store.read_parquet(traits_path(folder, bucket)) for bucket in homes]
    whole = pa.concat_tables(tables).combine_chunks()
    places = pc.index_in(user_ids, value_set=whole.column(USER_ID))
    return traits_of(whole.take(places))
