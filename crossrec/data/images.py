"""The images of items: the column, and where prepare keeps what of it can be decoded.

In: the `image` column of items, encoded pictures (JPEG, PNG, ...) as bytes. Out, in the prepared
folder:

    images/rows-<part>.parquet     domain, place (row within the domain), image_hash
    images/bytes-<part>.parquet    image_hash, image: each of the part's images once

    counts = store_images(job, number, chunk)      # a Ray task, once a chunk of the input

A part holds 16 MiB of images, so that neither a task nor who reads them ever holds more than a few
parts. An item whose image is missing, damaged or too large is kept, without an image, and counted.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa

from crossrec.data.hashing import Array
from crossrec.data.inputs import ORIGIN, Footer, Input, Segment, open_parquet
from crossrec.data.kinds import is_bytes
from crossrec.data.picture import TOO_LARGE, UNDECODABLE, BadImage, decode_image
from crossrec.errors import ConfigError, explain
from crossrec.schema import DOMAIN
from crossrec.storage import Store

if TYPE_CHECKING:
    from crossrec.data.tasks import Job

IMAGE = "image"

PART_BYTES = 16 * 2**20
BATCH_ROWS = 64
"""Images that are read at once. Parquet itself holds a page of them, which Arrow writes with 1,024:
100 MB of usual ones."""

CHUNK_ROWS = 20_000
"""Items whose images one task looks at, where the input's row groups allow."""


def check_images(source: Input, footers: Sequence[Footer], backbone: str) -> None:
    """Check that the items have images.

    Args:
        source: the items.
        footers: of its files, with the column's type; some may lack it.
        backbone: `model.image_backbone`.

    Raises:
        ConfigError: no file has the column, or one has something else in it.
    """
    where = f"model.image_backbone={backbone}"
    expected = f"a column {IMAGE} of bytes in data.items"
    mend = "add the column, or leave model.image_backbone out"
    for file, footer in zip(source.files, footers, strict=True):
        kind = footer.types.get(IMAGE)
        if kind is not None and not (is_bytes(kind) or pa.types.is_null(kind)):
            found = f"{IMAGE} of type {kind} in {file.uri}"
            raise ConfigError(explain(where, expected, found, mend))
    if not any(IMAGE in footer.types for footer in footers):
        raise ConfigError(explain(where, expected, "no such column", mend))


def hash_image(data: bytes) -> str:
    """Return what names an image's bytes."""
    return hashlib.sha256(data).hexdigest()[:32]


def origins_path(folder: str) -> str:
    """Return where prepare keeps, while it works, which input row each item came from."""
    return f"{folder}/pieces/item-origins.parquet"


def item_places(catalogue: pa.Table, starts: Array) -> pa.Table:
    """Return domain and place of each item by `origin`, its number in the input, ascending.

    Args:
        catalogue: all items, with `origin`.
        starts: (domains + 1,) rows at which the domains begin.
    """
    rows = np.arange(len(catalogue))
    places = rows - starts[np.searchsorted(starts, rows, side="right") - 1]
    table = catalogue.select([DOMAIN, ORIGIN]).append_column("place", pa.array(places, pa.int32()))
    return table.sort_by(ORIGIN)


def store_images(job: "Job", number: int, chunk: Sequence[Segment]) -> Counter[str]:
    """Keep the images of a chunk of items; return how many are kept, or why they are not."""
    known = job.store.read_parquet(origins_path(job.folder))
    origins = known[ORIGIN].to_numpy()
    counts: Counter[str] = Counter()
    held: list[dict[str, Any]] = []
    size = part = 0
    for origin, data in _read_images(job.inputs["items"], chunk):
        place = int(np.searchsorted(origins, origin))
        if place == len(origins) or origins[place] != origin:
            continue  # a rejected item
        try:
            decode_image(data, quickly=True)
        except BadImage as error:
            counts[str(error)] += 1
            continue
        counts["kept"] += 1
        owner = {name: known[name][place].as_py() for name in (DOMAIN, "place")}
        held.append({**owner, "image_hash": hash_image(data), IMAGE: data})
        size += len(data)
        if size >= PART_BYTES:
            _write_part(job.store, job.folder, f"{number:06d}-{part:04d}", held)
            held, size, part = [], 0, part + 1
    if held:
        _write_part(job.store, job.folder, f"{number:06d}-{part:04d}", held)
    return counts


def _read_images(source: Input, chunk: Sequence[Segment]) -> Iterator[tuple[int, bytes]]:
    """Yield number and bytes of each item that has an image, a few read at once."""
    for segment in chunk:
        origin = segment.origin
        with open_parquet(source, source.files[segment.file], whole_groups=False) as parquet:
            if IMAGE not in parquet.schema_arrow.names:
                continue
            groups = list(range(segment.start, segment.stop))
            for batch in parquet.iter_batches(BATCH_ROWS, row_groups=groups, columns=[IMAGE]):
                for row, value in enumerate(batch.column(0)):
                    data = value.as_py()
                    if data:
                        yield origin + row, data
                origin += len(batch)


def _write_part(store: Store, folder: str, label: str, held: list[dict[str, Any]]) -> None:
    rows = [{name: entry[name] for name in ROWS.names} for entry in held]
    images = {entry["image_hash"]: entry[IMAGE] for entry in held}
    table = pa.table([list(images), list(images.values())], schema=BYTES)
    store.write_parquet(bytes_path(folder, label), table)
    store.write_parquet(f"{folder}/images/rows-{label}.parquet", pa.Table.from_pylist(rows, ROWS))


ROWS = pa.schema(
    [
        pa.field(DOMAIN, pa.string(), nullable=False),
        pa.field("place", pa.int32(), nullable=False),
        pa.field("image_hash", pa.string(), nullable=False),
    ]
)
BYTES = pa.schema(
    [
        pa.field("image_hash", pa.string(), nullable=False),
        pa.field(IMAGE, pa.large_binary(), nullable=False),
    ]
)


def bytes_path(folder: str, label: str) -> str:
    """Return where the images of a part are."""
    return f"{folder}/images/bytes-{label}.parquet"


def image_rows(store: Store, folder: str) -> pl.DataFrame:
    """Return which item has which image: the columns of ROWS, and `part`, where its bytes are."""
    empty: dict[str, Any] = {DOMAIN: [], "place": [], "image_hash": [], "part": []}
    frames = [
        pl.DataFrame(
            empty,
            {DOMAIN: pl.String, "place": pl.Int32, "image_hash": pl.String, "part": pl.String},
        )
    ]
    for name in store.list(f"{folder}/images"):
        if name.startswith("rows-"):
            label = name.removeprefix("rows-").removesuffix(".parquet")
            rows = pl.DataFrame(pl.from_arrow(store.read_parquet(f"{folder}/images/{name}")))
            frames.append(rows.with_columns(part=pl.lit(label)))
    return pl.concat(frames)


def summarise_images(counts: Sequence[Counter[str]], items: int) -> dict[str, int]:
    """Return how many items have an image, and how many have none for which reason.

    >>> summarise_images([Counter(kept=3), Counter({"kept": 1, "undecodable": 1})], items=7)
    {'kept': 4, 'undecodable': 1, 'too large': 0, 'missing': 2}
    """
    total = sum(counts, Counter())
    found = {name: total[name] for name in ("kept", UNDECODABLE, TOO_LARGE)}
    return found | {"missing": items - sum(found.values())}
