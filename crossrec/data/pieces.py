"""Temporary files between the two steps of prepare: what a task read, sorted by bucket.

One piece is one object however many buckets there are: a header of (buckets + 1) int64 offsets,
then an Arrow IPC stream (lz4) for every bucket that has rows. A reader fetches two ranges of it.

    store.write_bytes(path, encode_piece(table, buckets_of(users, 32), 32))
    for bucket, table in read_buckets(store, [path], range(4, 8), 32): ...
"""

import io
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa

from crossrec.data.events import CHECKED
from crossrec.data.hashing import Array
from crossrec.data.inputs import filesystem
from crossrec.storage import Store
from crossrec.storage_errors import explained

_OFFSET_BYTES = 8


def encode_piece(table: pa.Table, bucket_of_row: Array, buckets: int) -> bytes:
    """Return a piece of the rows (schema events.CHECKED); within a bucket they keep their order."""
    # Radix sort where numpy has one, for 16 bits.
    kind = np.uint16 if buckets <= 2**16 else np.uint32
    order = np.argsort(bucket_of_row.astype(kind), kind="stable")
    edges = np.searchsorted(bucket_of_row[order], np.arange(buckets + 1))
    table = table.take(pa.array(order)).combine_chunks()
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    header = _OFFSET_BYTES * (buckets + 1)
    sink, offsets = io.BytesIO(), [header]
    sink.write(bytes(header))
    for start, stop in pairwise(edges.tolist()):
        if stop > start:
            with pa.ipc.new_stream(sink, table.schema, options=options) as stream:
                stream.write_table(table.slice(start, stop - start))
        offsets.append(sink.tell())
    sink.seek(0)
    sink.write(np.array(offsets, "<i8").tobytes())
    return sink.getvalue()


def read_buckets(
    store: Store, paths: Sequence[str], wanted: range, schema: pa.Schema = CHECKED
) -> Iterator[tuple[int, pa.Table]]:
    """Yield each wanted bucket with its rows from all pieces, in the order of the pieces.

    Args:
        store: of the pieces.
        paths: of all pieces.
        wanted: buckets.
        schema: of their rows, `events.checked_schema`.
    """
    first, last = wanted.start, wanted.stop
    header = (first * _OFFSET_BYTES, (last + 1) * _OFFSET_BYTES)
    heads = _read_ranges(store, paths, [header] * len(paths))
    offsets = [np.frombuffer(head, "<i8") for head in heads]
    bodies = _read_ranges(store, paths, [(int(edge[0]), int(edge[-1])) for edge in offsets])
    for place, bucket in enumerate(wanted):
        tables = []
        for edges, body in zip(offsets, bodies, strict=True):
            start, stop = (edges[place : place + 2] - edges[0]).tolist()
            if stop > start:
                view = pa.py_buffer(body).slice(start, stop - start)
                tables.append(pa.ipc.open_stream(view).read_all())
        yield bucket, pa.concat_tables([schema.empty_table(), *tables]).combine_chunks()


def _read_ranges(
    store: Store, paths: Sequence[str], ranges: Sequence[tuple[int, int]]
) -> list[bytes]:
    # An empty range is an error to some stores.
    asked = [place for place, (start, stop) in enumerate(ranges) if stop > start]
    found = [b""] * len(paths)
    with explained(store.uri(paths[0] if paths else ""), store.options):
        read = filesystem(store).cat_ranges(
            [store.full_path(paths[place]) for place in asked],
            [ranges[place][0] for place in asked],
            [ranges[place][1] for place in asked],
            on_error="raise",
        )
    for place, data in zip(asked, read, strict=True):
        found[place] = data
    return found
