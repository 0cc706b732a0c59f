"""Item images to vectors, on Ray, each image once: cached by a hash of its bytes and weights.

In: the images that prepare kept, and a model of images. The driver sees hashes alone; a worker
reads one part of the images at a time (data.images).

    images = encode_item_images(store, prepared, source)
    matrix = images.matrix(store, prepared.domains[0])      # (items, width)
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch

from crossrec.data.histories import DomainRange, Prepared
from crossrec.data.images import IMAGE, bytes_path, image_rows
from crossrec.errors import ConfigError, explain
from crossrec.model.source import BackboneSource
from crossrec.model.vision import encode_images
from crossrec.runlog import log
from crossrec.schema import DOMAIN
from crossrec.storage import Store
from crossrec.vectorcache import (
    Work,
    assemble,
    cached_hashes,
    cached_width,
    encode_parts,
    write_vectors,
)

KEY = "image_hash"

IMAGES_AN_ACTOR = 500
"""New images for which another actor is worth its start (10 s of CPU)."""


class EncodeImages:
    """Ray Data actor: encodes the wanted images of a part and stores them as one cache file."""

    def __init__(self, source: BackboneSource, folder: str, cache: str) -> None:
        self.store = source.store
        self.folder = folder
        self.cache = cache
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.backbone = source.load_vision().to(device)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return a table of one row, the number of images; the vectors go to the store."""
        encoded = 0
        for part in batch.to_pylist():
            table = self.store.read_parquet(bytes_path(self.folder, part["part"]))
            table = table.filter(pc.is_in(table[KEY], pa.array(part["hashes"])))
            vectors = encode_images(self.backbone, table[IMAGE].to_pylist())
            write_vectors(self.store, self.cache, KEY, table[KEY], vectors)
            encoded += len(table)
        return pa.table({"encoded": [encoded]})


@dataclass(frozen=True)
class ImageVectors:
    """Where the vectors of a catalogue's images are; rows: of `image_rows`."""

    cache: str
    width: int
    rows: pl.DataFrame

    def fill(self, store: Store, domain: DomainRange, matrix: np.ndarray) -> None:
        """Write a domain's vectors into zeros (items, width) float32; where none is, they stay."""
        places = pl.DataFrame({"place": range(domain.stop - domain.start)})
        own = self.rows.filter(pl.col(DOMAIN) == domain.name)
        own = own.with_columns(pl.col("place").cast(pl.Int64))
        hashed = places.join(own, on="place", how="left", maintain_order="left").select(KEY)
        assemble(store, self.cache, hashed, matrix)


def check_has_images(store: Store, prepared: Prepared, source: BackboneSource) -> None:
    """Check that prepare kept the images that a source reads.

    Raises:
        ConfigError: it did not.
    """
    if source.has_images and not prepared.with_images:
        where = f"model.image_backbone={source.settings.image_backbone}"
        found = f"{store.uri(prepared.folder)}, prepared without them"
        mend = "run the stage prepare again with model.image_backbone set"
        raise ConfigError(explain(where, "the items' images", found, mend))


def encode_item_images(store: Store, prepared: Prepared, source: BackboneSource) -> ImageVectors:
    """Encode the images that have no vector yet."""
    cache = f"cache/vectors/{source.image_digest()[:16]}"
    rows = image_rows(store, prepared.folder)
    wanted = rows.unique(KEY, keep="first", maintain_order=True)
    new = wanted.join(cached_hashes(store, cache, KEY), on=KEY, how="anti")
    if len(new):
        _encode(new, source, prepared.folder, cache)
    log.info("encode: %s of %s images are new", f"{len(new):,}", f"{len(wanted):,}")
    width = cached_width(store, cache) or source.load_vision().width
    return ImageVectors(cache, width, rows)


def _encode(new: pl.DataFrame, source: BackboneSource, folder: str, cache: str) -> None:
    parts = new.group_by("part", maintain_order=True).agg(pl.col(KEY).alias("hashes"))
    units = [parts.slice(start, 1).to_arrow() for start in range(len(parts))]
    arguments = (source, folder, cache)
    work = Work(units, 1, EncodeImages, arguments, len(new), IMAGES_AN_ACTOR, "images")
    try:
        encode_parts(work)
    except ray.exceptions.RayError:
        source.load_vision()  # a mistake of the user's is told here, as for texts
        raise
