"""Columns of items and users that rules and figures look at: each value becomes a code.

In: the files of `data.items` or `data.users`. Out: a code for each item or user, equal where their
values are, and the values; what has none, and what the table lacks, is NO_VALUE.

    for table in read_tables(source, ["item_id", "domain", "brand"]): ...
    brands = item_values(source, index, ["brand"], where)["brand"]
    brands.codes, brands.names          # (I,) int32, ["acme", ...]
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crossrec.data.events import ItemIndex, find_rows
from crossrec.data.hashing import Array
from crossrec.data.inputs import Input, open_parquet, read_footers
from crossrec.errors import ConfigError, explain
from crossrec.schema import DOMAIN, ITEM_ID, USER_ID

ROWS = 65_536
"""Items that are looked at together."""

USERS_AT_ONCE = 2**20
"""Users that are looked at together: those who are sought are hashed anew each time."""

NO_VALUE = -1
"""Code of what has no value in a column."""


@dataclass(frozen=True)
class Values:
    """The values of a column: codes (N,) int32, names by code."""

    codes: Array
    names: Sequence[str]


def item_values(
    source: Input, index: ItemIndex, columns: Sequence[str], where: str
) -> dict[str, Values]:
    """Return the values of columns of the items, by catalogue row.

    Args:
        source: the items' files.
        index: of the catalogue.
        columns: their names.
        where: the config's key that names them.

    Raises:
        ConfigError: a column is not there, or holds what is no text and no number.
        InputError: a file cannot be read.
    """
    check_names(source, columns, where)
    size = int(index.starts[-1])
    codes = {name: np.full(size, NO_VALUE, np.int32) for name in columns}
    values: dict[str, dict[str, int]] = {name: {} for name in columns}
    known = np.zeros(size, bool)
    for table in read_tables(source, list(dict.fromkeys([ITEM_ID, DOMAIN, *columns]))):
        rows = rows_of(table, index)
        places = first_places(rows, known)
        for name in columns:
            column = table.column(name).take(pa.array(places))
            codes[name][rows[places]] = code_values(column, values[name], f"{where}.{name}")
    return {name: Values(codes[name], list(values[name])) for name in columns}


def user_values(
    source: Input, user_ids: pa.Array, columns: Sequence[str], where: str
) -> dict[str, Values]:
    """Return the values of columns of the users, in the order of `user_ids` (U,), none twice.

    Memory grows with these users, not with those of the table. Raises what `item_values` does.
    """
    check_names(source, columns, where)
    size = len(user_ids)
    codes = {name: np.full(size, NO_VALUE, np.int32) for name in columns}
    values: dict[str, dict[str, int]] = {name: {} for name in columns}
    known, sought = np.zeros(size, bool), user_ids.cast(pa.large_string())
    wanted = list(dict.fromkeys([USER_ID, *columns]))
    for table in read_tables(source, wanted, USERS_AT_ONCE):
        rows = pc.index_in(table.column(USER_ID), value_set=sought).fill_null(-1).to_numpy()
        places = first_places(rows, known)
        for name in columns:
            column = table.column(name).take(pa.array(places))
            codes[name][rows[places]] = code_values(column, values[name], f"{where}.{name}")
    return {name: Values(codes[name], list(values[name])) for name in columns}


def check_names(source: Input, columns: Sequence[str], where: str) -> None:
    """Raise ConfigError where no file of a table has a column that the config names."""
    there = {name for footer in read_footers(source, columns) for name in footer.types}
    for name in columns:
        if name not in there:
            expected = f"a column of data.{source.table} ({source.store.uri()})"
            raise ConfigError(explain(where, expected, name, "check the name"))


def fulfils(table: pa.Table, condition: pc.Expression, where: str) -> Array:
    """Return which rows of items fulfil a condition, (N,) bool; a null fulfils none.

    Raises:
        ConfigError: the columns cannot be held against it; where: the config's key that has it.
    """
    found = np.zeros(len(table), bool)
    places = table.append_column("", pa.array(np.arange(len(table))))
    try:
        kept = places.filter(condition).column("").to_numpy()
    except (pa.ArrowException, TypeError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        expected = "conditions that the columns of data.items can be held against"
        mend = "give values of the column's type"
        raise ConfigError(explain(where, expected, said, mend)) from error
    found[kept] = True
    return found


def first_places(rows: Array, known: Array) -> Array:
    """Return where rows (N,) stand for the first time, -1 left out; marks them in `known`.

    >>> first_places(np.array([2, -1, 0, 2, 1]), np.array([False, True, False])).tolist()
    [0, 2]
    """
    places = np.flatnonzero(rows >= 0)
    places = places[np.unique(rows[places], return_index=True)[1]]
    places = np.sort(places[~known[rows[places]]])
    known[rows[places]] = True
    found: Array = places
    return found


def code_values(column: pa.ChunkedArray, values: dict[str, int], where: str) -> Array:
    """Return the code of each row's value, (N,) int32; new values are added."""
    try:
        texts = column.cast(pa.large_string()).combine_chunks()
    except pa.ArrowException as error:
        expected = "a column of texts or numbers"
        mend = "choose another column"
        raise ConfigError(explain(where, expected, str(column.type), mend)) from error
    coded = texts.dictionary_encode()
    of_dictionary = [values.setdefault(text, len(values)) for text in coded.dictionary.to_pylist()]
    lookup = np.array([*of_dictionary, NO_VALUE], np.int32)
    found: Array = lookup[coded.indices.fill_null(len(of_dictionary)).to_numpy()]
    return found


def rows_of(table: pa.Table, index: ItemIndex) -> Array:
    """Return the catalogue row of each key of a table, -1 where the catalogue lacks it."""
    keys = (table.column(name).fill_null("").combine_chunks() for name in (DOMAIN, ITEM_ID))
    return find_rows(index, *keys)


def read_tables(source: Input, columns: Sequence[str], rows: int = ROWS) -> Iterator[pa.Table]:
    """Read some columns of all files a part at a time; what a file lacks is null.

    Of the type that it has in others: conditions are not held against nulls without one.
    """
    kinds: dict[str, pa.DataType] | None = None
    for file in source.files:
        with open_parquet(source, file) as parquet:
            there = [name for name in columns if name in parquet.schema_arrow.names]
            if len(there) < len(columns) and kinds is None:
                footers = read_footers(source, columns)
                kinds = {name: kind for footer in footers for name, kind in footer.types.items()}
            for batch in parquet.iter_batches(rows, columns=there):
                table = pa.table(batch)
                for name in columns:
                    if name not in there:
                        nothing = pa.nulls(len(table), (kinds or {}).get(name, pa.null()))
                        table = table.append_column(name, nothing)
                yield table.cast(pa.schema([_plain(field) for field in table.schema]))


def _plain(field: pa.Field) -> pa.Field:
    """Return a field without a dictionary, and with large strings."""
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if pa.types.is_string(kind) or pa.types.is_string_view(kind):
        kind = pa.large_string()
    return pa.field(field.name, kind)
