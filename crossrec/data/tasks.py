"""The two steps of prepare as Ray tasks: chunks of the input become pieces, pieces buckets.

Step 1, `split_chunk`, once a chunk: read, check, find items, hash users, write a piece sorted by
bucket. Step 2, `group_buckets`, once a few buckets: read their ranges of all pieces, group, write.
A task returns counts only; a task holds a bounded number of rows, however many the input has.

    for counts in run_tasks(split_chunk, calls, "chunks"): ...
"""

import contextlib
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from crossrec.data.events import (
    EVENT_COLUMNS,
    Checked,
    ItemIndex,
    TimeLimits,
    check_events,
    check_users,
    checked_schema,
    index_items,
)
from crossrec.data.forget import without
from crossrec.data.grouping import group_users
from crossrec.data.hashing import Array, buckets_of
from crossrec.data.histories import activity_path, catalogue_path, histories_path
from crossrec.data.images import item_places, origins_path
from crossrec.data.inputs import ORIGIN, Input, Segment, read_chunk
from crossrec.data.items import build_catalogue, domain_ranges
from crossrec.data.pieces import encode_piece, read_buckets
from crossrec.data.rejects import DUPLICATE, Origins, count_reasons, reject_table
from crossrec.data.strangers import Strangers, add_up
from crossrec.errors import CrossrecError
from crossrec.runlog import log
from crossrec.schema import CATALOGUE, DOMAIN, ITEM_ID, USER_ID, bucket_name
from crossrec.storage import Store

PROGRESS_S = 5.0
CAST_ROWS = 1_000_000
"""Items whose texts are cast at once: an Arrow string column holds 2 GiB a piece."""


@dataclass(frozen=True)
class Job:
    """What the tasks share; inputs and origins are by table.

    available_from: column of items with the day from which they can be had. values: columns of
    schema.EVENT_VALUES that events are read with. with_images: whether those of items are kept.
    """

    store: Store
    folder: str
    buckets: int
    inputs: Mapping[str, Input]
    origins: Mapping[str, Origins]
    limits: TimeLimits
    available_from: str
    values: tuple[str, ...] = ()
    with_images: bool = False


@dataclass(frozen=True)
class CatalogueCounts:
    """What step 0 found: domains, where each starts (domains + 1,), rejects by reason."""

    domains: tuple[str, ...] = ()
    starts: Array = field(default_factory=lambda: np.zeros(1, np.int64))
    reasons: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class ChunkCounts:
    """What a chunk had: pieces written, rejects by reason, accepted and ignored events.

    forgotten: rows of users of `data.forget`, of which nothing else is told. strangers: domains
    that the catalogue lacks.
    """

    table: str
    pieces: tuple[str, ...]
    reasons: Counter[str]
    accepted: int
    ignored: int
    newest_us: int | None
    forgotten: int = 0
    strangers: Strangers = field(default_factory=dict)


@dataclass(frozen=True)
class BucketCounts:
    """What buckets had; see histories.Grouped."""

    users: int
    unheard: int
    duplicates: int
    domain_events: Array
    domain_users: Array
    weeks: Array


def write_catalogue(
    job: Job, chunk: Sequence[Segment], columns: Sequence[str], text_columns: Sequence[str]
) -> tuple[ItemIndex, CatalogueCounts]:
    """Write the catalogue; its memory grows with the items, not with users or events."""
    origins = job.origins["items"]
    parts = list(read_chunk(job.inputs["items"], chunk, columns))
    if not parts:
        return index_items((), np.zeros(1, np.int64), _no_strings()), CatalogueCounts()
    table = pa.concat_tables(parts, promote_options="default")
    catalogue, rejects = build_catalogue(table, text_columns, origins, job.available_from)
    if len(rejects):
        job.store.write_parquet(f"{job.folder}/rejects/items.parquet", rejects)
    domains, starts = domain_ranges(catalogue)
    if job.with_images:
        job.store.write_parquet(origins_path(job.folder), item_places(catalogue, starts))
    catalogue = catalogue.drop_columns(ORIGIN)
    for domain, (start, stop) in zip(domains, itertools.pairwise(starts.tolist()), strict=True):
        parts = [
            catalogue.slice(first, min(CAST_ROWS, stop - first)).cast(CATALOGUE)
            for first in range(start, stop, CAST_ROWS)
        ]
        job.store.write_parquet(catalogue_path(job.folder, domain), pa.concat_tables(parts))
    item_ids = pa.concat_arrays([_no_strings(), *catalogue.column(ITEM_ID).chunks])
    counts = CatalogueCounts(domains, starts, count_reasons(rejects))
    return index_items(domains, starts, item_ids), counts


def adopt_catalogue(
    job: Job, folder: str, domains: tuple[str, ...], starts: Array
) -> tuple[ItemIndex, CatalogueCounts]:
    """Take over the catalogue of another prepared folder, with the rows that its items have."""
    parts = []
    for domain in domains:
        data = job.store.read_bytes(catalogue_path(folder, domain))
        job.store.write_bytes(catalogue_path(job.folder, domain), data)
        ids = job.store.read_parquet(catalogue_path(folder, domain), [ITEM_ID]).column(ITEM_ID)
        parts += ids.cast(pa.large_string()).chunks
    item_ids = pa.concat_arrays([_no_strings(), *parts])
    return index_items(domains, starts, item_ids), CatalogueCounts(domains, starts)


def _no_strings() -> pa.LargeStringArray:
    return pa.array([], pa.large_string())


def split_chunk(
    job: Job,
    index: ItemIndex,
    forgotten: pa.LargeStringArray,
    name: str,
    number: int,
    chunk: Sequence[Segment],
) -> ChunkCounts:
    """Check a chunk of events or users and write its pieces and rejects.

    A chunk of one row group that is too large is read, and written, in parts.
    """
    pieces: list[str] = []
    reasons: Counter[str] = Counter()
    accepted = ignored = left_out = 0
    newest: list[int] = []
    strangers: list[Strangers] = []
    columns = [*EVENT_COLUMNS, *job.values] if name == "events" else [USER_ID]
    for part, whole in enumerate(read_chunk(job.inputs[name], chunk, columns)):
        # Before any check: what is rejected is kept.
        table = without(whole, forgotten)
        left_out += len(whole) - len(table)
        checked = _check(job, index, name, table)
        label = f"{name}-{number:06d}-{part}"
        if len(checked.rejects):
            job.store.write_parquet(f"{job.folder}/rejects/{label}.parquet", checked.rejects)
        rows = checked.accepted.column("row").to_numpy()
        buckets = buckets_of(checked.accepted.column(USER_ID).combine_chunks(), job.buckets)
        pieces.append(f"{job.folder}/pieces/{label}.bin")
        job.store.write_bytes(pieces[-1], encode_piece(checked.accepted, buckets, job.buckets))
        reasons += count_reasons(checked.rejects)
        accepted += int((rows >= 0).sum())
        ignored += checked.ignored
        newest += [] if checked.newest_us is None else [checked.newest_us]
        strangers.append(checked.strangers)
    return ChunkCounts(
        name,
        tuple(pieces),
        reasons,
        accepted,
        ignored,
        max(newest, default=None),
        left_out,
        add_up(strangers),
    )


def _check(job: Job, index: ItemIndex, name: str, table: pa.Table) -> Checked:
    if name != "events":
        return check_users(table, job.origins[name], job.values)
    for value in set(job.values) - set(table.column_names):
        # None of the chunk's files has it.
        table = table.append_column(value, pa.nulls(len(table), pa.float32()))
    return check_events(table, index, job.limits, job.origins[name])


def group_buckets(
    job: Job, index: ItemIndex, pieces: Sequence[str], wanted: range
) -> list[BucketCounts]:
    """Write histories, activity and duplicates of buckets."""
    found = []
    for bucket, events in read_buckets(job.store, pieces, wanted, checked_schema(job.values)):
        grouped = group_users(events, index.starts)
        job.store.write_parquet(histories_path(job.folder, bucket), grouped.histories)
        job.store.write_parquet(activity_path(job.folder, bucket), grouped.activity)
        copies = grouped.duplicates
        if len(copies):
            path = f"{job.folder}/rejects/duplicates-{bucket_name(bucket)}.parquet"
            job.store.write_parquet(path, _duplicates(copies, index, job.origins["events"]))
        found.append(
            BucketCounts(
                len(grouped.histories),
                grouped.unheard,
                len(copies),
                grouped.domain_events,
                grouped.domain_users,
                grouped.weeks,
            )
        )
    return found


def _duplicates(events: pa.Table, index: ItemIndex, origins: Origins) -> pa.Table:
    rows = events.column("row").to_numpy()
    owners = np.searchsorted(index.starts, rows, side="right") - 1
    keys = {
        ITEM_ID: index.item_ids.take(pa.array(rows)),
        DOMAIN: pa.array(index.domains, pa.string()).take(pa.array(owners)),
    }
    table = events.drop_columns("row")
    for name, values in keys.items():
        table = table.append_column(name, values)
    return reject_table(origins, table, np.ones(len(rows), np.int8), ("", DUPLICATE))


def run_tasks(
    function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], what: str
) -> Iterator[Any]:
    """Run a task for each call, one a CPU, and yield what they return as they finish.

    Raises:
        CrossrecError: what a task raised; the others are given up.
    """
    task = ray.remote(num_cpus=1)(function)
    # Two a CPU, so that none waits for the driver.
    resources: dict[str, float] = ray.cluster_resources()
    window = max(2, int(2 * resources.get("CPU", 1)))
    left = iter(calls)
    running = [task.remote(*call) for call in itertools.islice(left, window)]
    said, done = time.monotonic(), 0
    try:
        while running:
            ready, running = ray.wait(running, num_returns=1)
            with plain_errors():
                result = ray.get(ready[0])
            running += [task.remote(*call) for call in itertools.islice(left, 1)]
            done += 1
            if time.monotonic() - said > PROGRESS_S:
                said = time.monotonic()
                log.info("prepare: %d of %d %s", done, len(calls), what)
            yield result
    finally:
        for reference in running:
            ray.cancel(reference)


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Raise the CrossrecError of a task as it was, without Ray's wrapping."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, CrossrecError):
            raise error.cause from None
        raise
