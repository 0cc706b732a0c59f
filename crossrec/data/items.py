"""The catalogue: items checked, given their rows, with the one text that the model reads.

In: tables as inputs.read_chunk yields them. Out: a table of schema.CATALOGUE and `origin`, sorted
by (domain, item_id) in the byte order of UTF-8, rejects, and the range of rows of each domain.

    catalogue, rejects = build_catalogue(table, ("title", "brand"), origins)
    domains, starts = domain_ranges(catalogue)
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crossrec.config import DEFAULT_AVAILABLE_FROM, DEFAULT_TEXT_COLUMNS
from crossrec.data.events import id_faults
from crossrec.data.hashing import Array
from crossrec.data.inputs import ORIGIN, Footer, Input, check_column
from crossrec.data.kinds import is_text
from crossrec.data.rejects import DUPLICATE_ITEM, Origins, reject_table
from crossrec.errors import InputError, explain
from crossrec.schema import CATALOGUE, DOMAIN, ITEM_ID, MOST_FOLDER_BYTES, domain_folder

CATEGORY = "category"
REASONS = ("", "null item_id", "empty item_id", "null domain", "empty domain", DUPLICATE_ITEM)

_SPACE = r"[\s\p{Z}\x{85}\x{200b}\x{feff}]+"
"""White space in any script, with the zero-width characters that exports leave behind."""


def wanted_columns(
    text_columns: Sequence[str] | None, available_from: str = DEFAULT_AVAILABLE_FROM
) -> list[str]:
    """Return the columns of items to look for."""
    texts = DEFAULT_TEXT_COLUMNS if text_columns is None else text_columns
    return list(dict.fromkeys([ITEM_ID, DOMAIN, *texts, CATEGORY, available_from]))


def check_item_columns(
    source: Input, footers: Sequence[Footer], text_columns: Sequence[str] | None
) -> tuple[str, ...]:
    """Check the columns of the items' files and return those that make up the text.

    Args:
        source: the items.
        footers: of its files.
        text_columns: `data.text_columns`; None takes those of the default that a file has.

    Raises:
        InputError: a column is missing or cannot be read as text.
    """
    for name in (ITEM_ID, DOMAIN):
        check_column(source, footers, name, "string")
    names = DEFAULT_TEXT_COLUMNS if text_columns is None else tuple(text_columns)
    for name in names:
        for file, footer in zip(source.files, footers, strict=True):
            kind = footer.types.get(name)
            expected, mend = f"a column {name} of text", "change data.text_columns"
            if kind is None and text_columns is not None:
                raise InputError(explain(file.uri, expected, "no such column", mend))
            if kind is not None and not _becomes_text(kind):
                raise InputError(explain(file.uri, expected, f"{name} of type {kind}", mend))
    return tuple(name for name in names if any(name in footer.types for footer in footers))


def _becomes_text(kind: pa.DataType) -> bool:
    types = pa.types
    numeric = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
    return bool(is_text(kind) or types.is_null(kind) or numeric)


def check_available_from(source: Input, footers: Sequence[Footer], name: str) -> None:
    """Check the column of days from which items can be had.

    Args:
        source: the items.
        footers: of its files.
        name: `data.available_from`; only the default may be missing.

    Raises:
        InputError: the column is missing, or holds neither dates nor timestamps nor text.
    """
    expected = f"a column {name} of dates or timestamps"
    for file, footer in zip(source.files, footers, strict=True):
        kind = footer.types.get(name)
        if kind is None and name != DEFAULT_AVAILABLE_FROM:
            mend = "change data.available_from"
            raise InputError(explain(file.uri, expected, "no such column", mend))
        if kind is not None and not (pa.types.is_temporal(kind) or is_text(kind)):
            mend = "export the column as date"
            raise InputError(explain(file.uri, expected, f"{name} of type {kind}", mend))


def has_category(footers: Sequence[Footer]) -> bool:
    """Whether there is a column `category` that can be read as text."""
    kinds = [footer.types[CATEGORY] for footer in footers if CATEGORY in footer.types]
    return bool(kinds) and all(map(_becomes_text, kinds))


def build_catalogue(
    table: pa.Table,
    text_columns: Sequence[str],
    origins: Origins,
    available_from: str = DEFAULT_AVAILABLE_FROM,
) -> tuple[pa.Table, pa.Table]:
    """Return the catalogue, with `origin`, and the rejected rows.

    Of equal keys the first row is kept.

    Args:
        table: all rows of the items, with `origin`; without `category` that of each item is null.
        text_columns: joined by a space in this order, nulls left out; "" where nothing is left.
        origins: of the items' files.
        available_from: column of ISO dates, or moments that begin with one; what is no date counts
            as unknown.

    Raises:
        InputError: the name of a domain is too long for a folder.
    """
    codes = id_faults(table, (ITEM_ID, DOMAIN), REASONS)
    good = np.flatnonzero(codes == 0)
    order = good[_order(table.take(pa.array(good)))]
    is_copy = _repeats(table.select([DOMAIN, ITEM_ID]).take(pa.array(order)))
    codes[order[is_copy]] = REASONS.index(DUPLICATE_ITEM)
    kept = table.take(pa.array(order[~is_copy]))
    columns = {
        DOMAIN: kept.column(DOMAIN),
        ITEM_ID: kept.column(ITEM_ID),
        "text": _join_texts(kept, text_columns),
        CATEGORY: pa.nulls(len(kept), pa.large_string()),
        "available_day": pa.nulls(len(kept), pa.int32()),
    }
    if CATEGORY in kept.column_names:
        columns[CATEGORY] = kept.column(CATEGORY)
    if available_from in kept.column_names:
        columns["available_day"] = first_days(kept.column(available_from))
    catalogue = pa.table(columns).cast(_LARGE_CATALOGUE)
    _check_names(catalogue.column(DOMAIN))
    catalogue = catalogue.append_column(ORIGIN, kept.column(ORIGIN))
    return catalogue, reject_table(origins, table, codes, REASONS)


_LARGE_CATALOGUE = pa.schema(
    [
        pa.field(field.name, pa.large_string(), field.nullable)
        if pa.types.is_string(field.type)
        else field
        for field in CATALOGUE
    ]
)
"""CATALOGUE for as many items as there are: one array of strings holds at most 2 GiB."""


def _check_names(domains: pa.ChunkedArray) -> None:
    before = len(f"{DOMAIN}=")
    most = MOST_FOLDER_BYTES - before
    for name in pc.unique(domains).to_pylist():
        size = len(domain_folder(name)) - before
        if size > most:
            expected = f"a name of at most {most} bytes once URL-encoded, for folders and files"
            found = f"{size} bytes (other than ASCII letters and digits take 3 to 12 each)"
            mend = "give the domain a shorter name in items and events"
            raise InputError(explain(f"data.items, domain {name!r}", expected, found, mend))


def first_days(moments: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the day (int32) that each text begins with, null where it begins with none."""
    dates = pc.utf8_slice_codeunits(moments, 0, 10)
    days = pc.strptime(dates, format="%Y-%m-%d", unit="s", error_is_null=True)
    return days.cast(pa.date32()).cast(pa.int32())


def _order(table: pa.Table) -> Array:
    keys = [(name, "ascending") for name in (DOMAIN, ITEM_ID, ORIGIN)]
    order: Array = pc.sort_indices(table, sort_keys=keys).to_numpy()
    return order


def _repeats(table: pa.Table) -> Array:
    """Return which rows equal the row before, (N,) bool."""
    same = np.zeros(len(table), bool)
    if len(table) > 1:
        pairs = [
            pc.equal(column.slice(1), column.slice(0, len(table) - 1)) for column in table.columns
        ]
        same[1:] = pc.and_(*pairs).to_numpy()
    return same


def _join_texts(table: pa.Table, names: Sequence[str]) -> pa.Array | pa.ChunkedArray:
    # Filled, because Arrow 26 loses a row whose values are all null under null_handling="skip".
    texts = [table.column(name).fill_null("") for name in names if name in table.column_names]
    if not texts:
        return pa.array([""], pa.large_string()).take(pa.array(np.zeros(len(table), np.int64)))
    space = pa.scalar(" ", pa.large_string())
    joined = pc.binary_join_element_wise(*texts, space)
    single = pc.replace_substring_regex(joined, _SPACE, " ")
    return pc.utf8_trim(single, " ")


def domain_ranges(catalogue: pa.Table) -> tuple[tuple[str, ...], Array]:
    """Return the domains in catalogue order and where each starts, (domains + 1,) int64."""
    counts = pc.value_counts(catalogue.column(DOMAIN)).to_pylist()
    sizes = [entry["counts"] for entry in counts]
    names = tuple(str(entry["values"]) for entry in counts)
    return names, np.cumsum([0, *sizes])
