"""The Parquet files of an input table: found, checked by their footers, cut into chunks, read.

In: a file or a folder (local or any fsspec URI). Out: tables of a bounded number of rows, in which
timestamps are int64 microseconds UTC, ratings and weights of events are float32, all else is
large_string, also numbers of items, and `origin` numbers the rows through all files of the table,
in the order of their paths.

    events = list_input("events", "s3://bucket/events", options)
    footers = read_footers(events, EVENT_COLUMNS)
    for chunk in plan_chunks(footers, CHUNK_ROWS):
        for table in read_chunk(events, chunk, list(EVENT_COLUMNS)): ...

Of a folder every `.parquet` (`.pq`, `.parq`) file is read, at any depth; names that begin with a
dot or an underscore are left out, as Spark and Hive do.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crossrec.data.hashing import Array
from crossrec.data.kinds import is_number, is_text
from crossrec.errors import InputError, explain
from crossrec.runlog import log
from crossrec.schema import EVENT_VALUES, TIMESTAMP
from crossrec.storage import Store
from crossrec.storage_errors import MissingObject, explained

CHUNK_ROWS = 1_000_000
"""Rows that a task holds at once: about 150 MB of Arrow with common ids, 300 MB while it works."""

SUFFIXES = (".parquet", ".parq", ".pq")
FOOTERS_AT_ONCE = 16
PAGE_BUFFER = 2**20
ORIGIN = "origin"
_INT64 = np.iinfo(np.int64)


@dataclass(frozen=True)
class InputFile:
    """One file; `path` is for its filesystem, `uri` for people, `version` its ETag or mtime."""

    path: str
    uri: str
    bytes: int
    version: str


@dataclass(frozen=True)
class Input:
    """One table of the input: its files, sorted by path."""

    table: str
    store: Store
    files: tuple[InputFile, ...]


@dataclass(frozen=True)
class Footer:
    """What a footer says: rows of each row group, types of the columns that were asked for."""

    group_rows: tuple[int, ...]
    types: Mapping[str, pa.DataType]

    @property
    def rows(self) -> int:
        """Rows of the file."""
        return sum(self.group_rows)


@dataclass(frozen=True)
class Segment:
    """Row groups start..stop-1 of a file; `origin` numbers their first row in the table."""

    file: int
    start: int
    stop: int
    origin: int


def filesystem(store: Store) -> Any:
    """Return the fsspec filesystem of a store, for what Store has no method for."""
    return store._filesystem


def key_of(table: str) -> str:
    """Return the config's key of a table: one of `data`, or given in full."""
    return table if "." in table else f"data.{table}"


def list_input(table: str, uri: str, options: Mapping[str, Any]) -> Input:
    """Find the Parquet files of a table.

    Raises:
        InputError: there is no file at the path.
        StorageError: the place cannot be read.
    """
    store = Store(uri, {} if uri.startswith("/") else options)
    key = key_of(table)
    where = f"{key}={uri}"
    root = store.full_path()
    found: dict[str, dict[str, Any]] = {}
    with explained(uri, options), contextlib.suppress(FileNotFoundError):
        found = filesystem(store).find(root, detail=True)
    if not found:
        mend = f"check the path in {key}"
        raise InputError(explain(where, "a Parquet file or a folder of them", "no file", mend))
    files, others = [], []
    for path, info in sorted(found.items()):
        inside = path[len(root) :].strip("/")
        if any(part.startswith((".", "_")) for part in inside.split("/")):
            continue
        if inside and not inside.lower().endswith(SUFFIXES):
            others.append(inside)
            continue
        name = f"{store.uri().rstrip('/')}/{inside}" if inside else store.uri()
        files.append(InputFile(path, name, int(info["size"]), file_version(info)))
    if not files:
        mend = f"check {key}; names must end in {SUFFIXES[0]}"
        raise InputError(
            explain(where, "a folder with Parquet files", f"{len(others)} other files", mend)
        )
    if others:
        log.info("%s: skipped %d files that are not Parquet: %s", where, len(others), others[:3])
    return Input(table, store, tuple(files))


def file_version(info: Mapping[str, Any]) -> str:
    """Return what changes with a file, of what a filesystem tells of it; "" where nothing does."""
    names = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated")
    return next((str(info[name]) for name in names if info.get(name)), "")


def read_footers(source: Input, columns: Sequence[str]) -> list[Footer]:
    """Read what the footers say about the files, several at once.

    Raises:
        InputError: a file is empty or not Parquet, or has a column twice.
    """
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as threads:
        return list(threads.map(lambda file: _read_footer(source, file, columns), source.files))


def _read_footer(source: Input, file: InputFile, columns: Sequence[str]) -> Footer:
    if not file.bytes:
        raise InputError(explain(file.uri, "a Parquet file", "0 bytes", "export the file again"))
    with open_parquet(source, file) as parquet:
        metadata, schema = parquet.metadata, parquet.schema_arrow
        groups = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
    for name in columns:
        if schema.names.count(name) > 1:
            raise InputError(explain(file.uri, f"one column {name}", "several", "rename one"))
    types = {name: schema.field(name).type for name in columns if name in schema.names}
    return Footer(groups, types)


@contextlib.contextmanager
def open_parquet(
    source: Input, file: InputFile, whole_groups: bool = True
) -> Iterator[pq.ParquetFile]:
    """Open a file; what goes wrong inside the block is told with the file's name.

    Args:
        source: the table that it belongs to.
        file: to open.
        whole_groups: whether a row group may be in memory at once, as it comes; not of images.

    Raises:
        InputError: the file is corrupt, or gone since it was listed.
    """
    try:
        with explained(file.uri, source.store.options):
            stream = source.store.arrow_filesystem.open_input_file(file.path)
        ahead = whole_groups and not source.store.is_local
        buffer = 0 if whole_groups else PAGE_BUFFER
        with stream, pq.ParquetFile(stream, pre_buffer=ahead, buffer_size=buffer) as parquet:
            yield parquet
    except (MissingObject, FileNotFoundError) as error:
        mend = "do not change the input while the job runs; start it again"
        raise InputError(explain(file.uri, "the file that was listed", "none", mend)) from error
    except (pa.ArrowException, OSError) as error:
        if not isinstance(error, pa.ArrowException) and type(error) is not OSError:
            raise
        # Arrow tells of damaged pages by ArrowInvalid or by a bare OSError.
        found = " ".join(str(error).split())[:200]
        mend = "export the file again"
        raise InputError(explain(file.uri, "a sound Parquet file", found, mend)) from error


def check_column(source: Input, footers: Sequence[Footer], name: str, kind: str) -> None:
    """Check that every file has a column of a kind, "string", "timestamp" or "number".

    Raises:
        InputError: names the file, and the Arrow type that it has.
    """
    expected = f"a column {name} of type {kind}"
    for file, footer in zip(source.files, footers, strict=True):
        if name not in footer.types:
            with open_parquet(source, file) as parquet:
                found = f"columns {', '.join(parquet.schema_arrow.names)}"[:300]
            mend = f"add or rename the column in {key_of(source.table)}"
            raise InputError(explain(file.uri, expected, found, mend))
        found = footer.types[name]
        if not _KINDS[kind](found):
            mend = f"export the column as {kind}"
            raise InputError(explain(file.uri, expected, f"{name} of type {found}", mend))


_KINDS = {"string": is_text, "timestamp": pa.types.is_timestamp, "number": is_number}


def plan_chunks(footers: Sequence[Footer], rows: int) -> list[tuple[Segment, ...]]:
    """Cut a table into chunks of about `rows` rows: small files together, large ones by row groups.

    A row group is never cut, so a chunk can be larger; `read_chunk` reads it in parts.
    """
    chunks: list[tuple[Segment, ...]] = []
    segments: list[Segment] = []
    held = origin = 0
    for file, footer in enumerate(footers):
        start = 0
        first = origin
        for group, group_rows in enumerate(footer.group_rows):
            origin += group_rows
            held += group_rows
            if held >= rows:
                chunks.append((*segments, Segment(file, start, group + 1, first)))
                segments, held, start, first = [], 0, group + 1, origin
        if start < len(footer.group_rows):
            segments.append(Segment(file, start, len(footer.group_rows), first))
    return [*chunks, tuple(segments)] if held else chunks


def read_chunk(
    source: Input, chunk: Sequence[Segment], columns: Sequence[str], rows: int = CHUNK_ROWS
) -> Iterator[pa.Table]:
    """Read a chunk as tables of fewer than 2 x `rows` rows, one chunk of memory a column.

    Columns that no file of the chunk has are missing; those that some have are null elsewhere.
    """
    parts: list[pa.Table] = []
    for segment in chunk:
        file = source.files[segment.file]
        origin = segment.origin
        with open_parquet(source, file) as parquet:
            names = [name for name in columns if name in parquet.schema_arrow.names]
            groups = list(range(segment.start, segment.stop))
            for batch in parquet.iter_batches(rows, row_groups=groups, columns=names):
                parts.append(_normalise(source, file, pa.table(batch), origin))
                origin += len(batch)
                if sum(map(len, parts)) >= rows:
                    yield _concatenate(parts)
                    parts = []
    if parts:
        yield _concatenate(parts)


def _concatenate(parts: list[pa.Table]) -> pa.Table:
    return pa.concat_tables(parts, promote_options="default").combine_chunks()


def _normalise(source: Input, file: InputFile, table: pa.Table, origin: int) -> pa.Table:
    arrays = {ORIGIN: pa.array(np.arange(origin, origin + len(table)))}
    for name in table.column_names:
        column = table.column(name)
        if name == TIMESTAMP:
            arrays[name] = _microseconds(column)
            continue
        if name in EVENT_VALUES and source.table != "items":
            arrays[name] = column.cast(pa.float32(), safe=False)
            continue
        if pa.types.is_dictionary(column.type):
            column = pa.chunked_array(chunk.dictionary_decode() for chunk in column.chunks)
        try:
            column.validate(full=True)
            arrays[name] = column.cast(pa.large_string())
        except pa.ArrowException as error:
            found = " ".join(str(error).split())[:200]
            mend = "export the column as UTF-8 text"
            raise InputError(explain(file.uri, f"text in column {name}", found, mend)) from error
    return pa.table(arrays)


def _microseconds(column: pa.ChunkedArray) -> pa.Array:
    """Return timestamps of any unit as int64 microseconds, rounded down, held within int64."""
    unit = column.type.unit
    values: Array = column.cast(pa.int64()).fill_null(0).to_numpy()
    if unit == "ns":
        values = values // 1000
    elif unit != "us":
        factor = {"s": 1_000_000, "ms": 1_000}[unit]
        limit = _INT64.max // factor
        values = np.clip(values, -limit, limit) * factor
    return pa.array(values, mask=column.is_null().to_numpy())
