"""The traits of a night's users, brought from `data.users` into the buckets of histories, on Ray.

In: the run's pinned `data.users`. Out: files as `crossrec.data.traits` reads them, and TOLD, which
is written last.

    folder = write_traits(store, prepared, users, ["age"], "runs/2014-06-08/traits")

As in prepare, tasks write pieces sorted by bucket, and others make buckets of them: what is held
at once is bounded, however many users there are. Who has no history and is not listed, or asked to
be forgotten, is in no bucket. Of a user who stands there twice the first row counts.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from crossrec.data.attributes import USERS_AT_ONCE, first_places, read_tables
from crossrec.data.hashing import buckets_of
from crossrec.data.histories import Prepared, histories_path
from crossrec.data.inputs import Input
from crossrec.data.pieces import encode_piece, read_buckets
from crossrec.data.requires import WHERE, plain_values
from crossrec.data.tasks import run_tasks
from crossrec.data.traits import TRAIT, traits_path
from crossrec.schema import USER_ID
from crossrec.storage import Store

TOLD = "traits.json"

MOST_READERS = 64
"""Tasks that read the table: each bucket asks every piece for its part."""

BUCKETS_A_TASK = 8


@dataclass(frozen=True)
class TraitsJob:
    """What the tasks share; is_text: by column of users, whether it holds texts."""

    store: Store
    prepared: Prepared
    users: Input
    is_text: dict[str, bool]
    folder: str

    @property
    def schema(self) -> pa.Schema:
        """Of pieces."""
        kinds = {True: pa.large_string(), False: pa.float64()}
        fields = [pa.field(f"{TRAIT}{name}", kinds[text]) for name, text in self.is_text.items()]
        return pa.schema([pa.field(USER_ID, pa.large_string()), *fields])


def write_traits(
    store: Store, prepared: Prepared, users: Input, is_text: dict[str, bool], folder: str
) -> str:
    """Write the traits of all buckets, once, on an initialised Ray; return the folder.

    Args:
        store: of the run.
        prepared: whose users they are.
        users: the files of `data.users`.
        is_text: by column to read, whether it holds texts.
        folder: where to.
    """
    if store.exists(f"{folder}/{TOLD}"):
        return folder
    job = TraitsJob(store, prepared, users, is_text, folder)
    shared = ray.put(job)
    files = np.array_split(np.arange(len(users.files)), min(MOST_READERS, len(users.files)))
    calls = [(shared, number, part.tolist()) for number, part in enumerate(files)]
    pieces = sorted(itertools.chain(*run_tasks(split_users, calls, "parts of data.users")))
    starts = range(0, prepared.buckets, BUCKETS_A_TASK)
    stops = (min(start + BUCKETS_A_TASK, prepared.buckets) for start in starts)
    of_buckets = [(shared, pieces, range(*pair)) for pair in zip(starts, stops, strict=True)]
    known = sum(run_tasks(group_traits, of_buckets, "groups of buckets"))
    store.delete(f"{folder}/pieces")
    store.write_json(f"{folder}/{TOLD}", {"columns": list(is_text), "users": known})
    return folder


def split_users(job: TraitsJob, number: int, files: Sequence[int]) -> list[str]:
    """Write the traits of some files as pieces; return their paths."""
    source = replace(job.users, files=tuple(job.users.files[file] for file in files))
    pieces: list[str] = []
    tables = read_tables(source, [USER_ID, *job.is_text], USERS_AT_ONCE)
    for part in _together(_plain(job, table) for table in tables):
        buckets = buckets_of(part.column(USER_ID).combine_chunks(), job.prepared.buckets)
        pieces.append(f"{job.folder}/pieces/{number:06d}-{len(pieces):06d}.bin")
        job.store.write_bytes(pieces[-1], encode_piece(part, buckets, job.prepared.buckets))
    return pieces


def _plain(job: TraitsJob, table: pa.Table) -> pa.Table:
    columns = [plain_values(table.column(name), WHERE, no_is_null=False) for name in job.is_text]
    plain = pa.table([table.column(USER_ID), *columns], job.schema.names).cast(job.schema)
    return plain.filter(pc.is_valid(plain.column(USER_ID)))


def _together(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Yield small tables as few larger ones."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(map(len, held)) >= USERS_AT_ONCE:
            yield pa.concat_tables(held).combine_chunks()
            held = []
    if held:
        yield pa.concat_tables(held).combine_chunks()


def group_traits(job: TraitsJob, pieces: Sequence[str], wanted: range) -> int:
    """Write the traits of some buckets, in the order of their users; return how many are known."""
    known = 0
    for bucket, table in read_buckets(job.store, pieces, wanted, job.schema):
        path = histories_path(job.prepared.folder, bucket)
        users = job.store.read_parquet(path, [USER_ID]).column(USER_ID).combine_chunks()
        rows = pc.index_in(table.column(USER_ID), value_set=users.cast(pa.large_string()))
        rows = rows.fill_null(-1).to_numpy()
        is_known = np.zeros(len(users), bool)
        places = first_places(rows, is_known)
        where = np.zeros(len(users), np.int64)
        where[rows[places]] = places
        taken = table.drop_columns(USER_ID).take(pa.array(where, mask=~is_known))
        columns = [users.cast(pa.string()), *(_small(column) for column in taken.columns)]
        job.store.write_parquet(
            traits_path(job.folder, bucket), pa.table(columns, table.column_names)
        )
        known += int(is_known.sum())
    return known


def _small(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.string()) if pa.types.is_large_string(column.type) else column
