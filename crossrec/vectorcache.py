"""The vectors of texts and images in the store, by a hash of what they were made from; made on Ray.

cache/vectors/<weights digest>/part-<digest>.parquet       <key>, vector; a night adds what is new

new = wanted.join(cached_hashes(store, cache, KEY), on=KEY, how="anti")
encode_parts(Work(parts, EncodeTexts, (source, cache), ...))
with new_matrix(store, matrix_path(folder, "shop"), (len(hashed), width)) as matrix:
    assemble(store, cache, hashed, matrix)
"""

import hashlib
import io
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy

from crossrec.nodes import count_cpus_and_gpus, largest_node_cpus
from crossrec.runlog import log
from crossrec.schema import domain_folder
from crossrec.storage import Store

CPUS_AN_ACTOR = 4
"""At most, and no more than a node has."""

RETRIES = 2
"""Times that an actor is restarted, and a part tried again, before the job fails."""


@dataclass(frozen=True)
class Work:
    """What is to be encoded.

    parts: tables of `batch_rows` rows, each a unit of work. encoder: Ray Data actor that stores the
    vectors of a unit and returns a table with how many there are, `encoded`. arguments: of its
    constructor. count: vectors in all. an_actor: vectors for which another actor is worth its
    start. what: they are made from, for the log.
    """

    parts: Sequence[pa.Table]
    batch_rows: int
    encoder: type
    arguments: tuple[Any, ...]
    count: int
    an_actor: int
    what: str


def encode_parts(work: Work) -> None:
    """Encode all parts on an initialised Ray.

    Raises:
        RayError: an actor cannot start, or a part fails time and again.
    """
    cpus, gpus = count_cpus_and_gpus()
    actors = max(1, min(gpus or cpus // 2, -(-work.count // work.an_actor)))
    threads = max(1, min(cpus // 2 // actors, CPUS_AN_ACTOR, largest_node_cpus()))
    encoded = ray.data.from_arrow(list(work.parts)).map_batches(
        work.encoder,
        batch_size=work.batch_rows,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=actors),
        fn_constructor_args=work.arguments,
        # Half of the CPUs, as in training: Ray Data needs some beside its actors.
        num_cpus=1 if gpus else threads,
        num_gpus=1 if gpus else 0,
        max_restarts=RETRIES,
        max_task_retries=RETRIES,
    )
    done = 0
    for batch in encoded.iter_batches(batch_size=None, batch_format="numpy"):
        done += int(batch["encoded"].sum())
        log.info("encode: %s of %s new %s", f"{done:,}", f"{work.count:,}", work.what)


def write_vectors(
    store: Store, cache: str, key: str, hashes: pa.Array, vectors: np.ndarray
) -> None:
    """Store vectors (N, width) float32 as one cache file; written again it is the same file."""
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    name = hashlib.sha256("".join(hashes.to_pylist()).encode()).hexdigest()[:16]
    store.write_parquet(f"{cache}/part-{name}.parquet", pa.table({key: hashes, "vector": column}))


def cached_hashes(store: Store, cache: str, key: str) -> pl.DataFrame:
    """Return the hashes that have a vector."""
    parts = [store.read_parquet(f"{cache}/{name}", [key]) for name in store.list(cache)]
    if not parts:
        return pl.DataFrame(schema={key: pl.String})
    return pl.DataFrame(pl.from_arrow(pa.concat_tables(parts)))


def cached_width(store: Store, cache: str) -> int | None:
    """Return the width of the cached vectors; None where there is none."""
    for name in store.list(cache)[:1]:
        return int(store.read_parquet(f"{cache}/{name}", ["vector"]).schema.types[0].list_size)
    return None


def assemble(store: Store, cache: str, hashed: pl.DataFrame, matrix: np.ndarray) -> None:
    """Lay the cached vectors into the order of one column of hashes, one cache file at a time.

    Args:
        store: where they are.
        cache: their folder.
        hashed: one column, a row an item.
        matrix: (rows, width) float32 zeros, to fill; a row stays zero where the hash is null.
    """
    (key,) = hashed.columns
    width = matrix.shape[1]
    places = hashed.with_row_index("place").filter(pl.col(key).is_not_null())
    for name in store.list(cache):
        part = store.read_parquet(f"{cache}/{name}")
        vectors = part["vector"].combine_chunks().flatten().to_numpy().reshape(-1, width)
        rows = pl.DataFrame(pl.from_arrow(part.select([key]))).with_row_index("row")
        found = places.join(rows, on=key)
        matrix[found["place"].to_numpy()] = vectors[found["row"].to_numpy()]


def matrix_path(folder: str, domain: str) -> str:
    """Return where a domain's matrix is."""
    return f"{folder}/{domain_folder(domain)}.npy"


@contextmanager
def new_matrix(store: Store, path: str, shape: tuple[int, int]) -> Iterator[np.memmap]:
    """Yield a float32 matrix of zeros to fill, on this node's disk; stored when the block ends.

    So the largest matrix takes the memory of the rows in work.
    """
    with tempfile.TemporaryDirectory(prefix="crossrec-") as scratch:
        file = Path(scratch) / "matrix.npy"
        matrix = np.lib.format.open_memmap(file, "w+", np.float32, shape=shape)
        yield matrix
        matrix.flush()
        store.put_file(file, path)


def read_vectors(store: Store, folder: str, domain: str) -> np.ndarray:
    """Return a domain's vectors, (items, width) float32; zero where an item has nothing to read."""
    path = matrix_path(folder, domain)
    if store.is_local:
        return map_matrix(Path(store.full_path(path)))
    matrix: np.ndarray = np.load(io.BytesIO(store.read_bytes(path)), allow_pickle=False)
    return matrix


def map_matrix(path: Path) -> np.ndarray:
    """Return a matrix whose pages all processes of the node share."""
    matrix: np.ndarray = np.load(path, mmap_mode="c", allow_pickle=False)
    return matrix
