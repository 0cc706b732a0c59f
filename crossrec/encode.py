"""Item texts to vectors, on Ray, each text once; with those of their images beside them.

In: the prepared catalogue and a backbone. Out, in the store:

    cache/vectors/<weights digest>/part-<digest>.parquet       text_hash, vector; see vectorcache
    prepared/<digest>/vectors/<weights digest>/domain=<d>.npy  (items, width) float32, rows
    as in the catalogue; under <digest of texts>-<digest of images> both, side by side

    folder = encode_catalogue(store, prepared, BackboneSource(store, config.model))
    vectors = read_vectors(store, folder, "shop")

Texts and images have unit vectors each, so that the cosine of two items with both is the mean of
the two cosines; what an item does not have is zero.
"""

import hashlib
from collections.abc import Sequence

import polars as pl
import pyarrow as pa
import ray
import torch

from crossrec.data.histories import DomainRange, Prepared, read_catalogue
from crossrec.encode_images import check_has_images, encode_item_images
from crossrec.model.backbone import encode_texts
from crossrec.model.source import BackboneSource
from crossrec.runlog import log
from crossrec.storage import Store
from crossrec.vectorcache import (
    Work,
    assemble,
    cached_hashes,
    cached_width,
    encode_parts,
    matrix_path,
    new_matrix,
    read_vectors,
    write_vectors,
)

KEY = "text_hash"

TEXTS_A_PART = 2_048
"""Texts a unit of work and cache file: about 10 s of MiniLM on a core, 3 MB."""

ITEMS_AT_ONCE = 4_000_000
"""Items whose texts are in memory together; a larger domain is alone."""

TEXTS_A_CHUNK = 65_536
"""Texts that are Python strings at once."""

TEXTS_AN_ACTOR = 8_192
"""New texts for which another actor is worth its start (10 s of CPU)."""


class EncodeTexts:
    """Ray Data actor: encodes a batch of texts and stores it as one cache file."""

    def __init__(self, source: BackboneSource, cache: str) -> None:
        self.store = source.store
        self.cache = cache
        self.backbone = source.load().to("cuda" if torch.cuda.is_available() else "cpu")

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return a table of one row, the number of texts; the vectors go to the store."""
        vectors = encode_texts(self.backbone, batch["text"].to_pylist())
        write_vectors(self.store, self.cache, KEY, batch[KEY], vectors)
        return pa.table({"encoded": [batch.num_rows]})


def encode_catalogue(store: Store, prepared: Prepared, source: BackboneSource) -> str:
    """Encode what is not cached, assemble a matrix a domain, and return their folder.

    Raises:
        ConfigError: the source reads images, and prepare kept none.
    """
    check_has_images(store, prepared, source)
    source = source.pinned()
    digest = source.digest()[:16]
    folder = f"{prepared.folder}/vectors/{digest}"
    missing = _missing(store, prepared, folder)
    if missing:
        _encode_domains(store, prepared, source, f"cache/vectors/{digest}", folder, missing)
    if not source.has_images:
        return folder
    both = f"{folder}-{source.image_digest()[:16]}"
    missing = _missing(store, prepared, both)
    if missing:
        images = encode_item_images(store, prepared, source)
        for domain in missing:
            texts = read_vectors(store, folder, domain.name)
            shape = len(texts), texts.shape[1] + images.width
            with new_matrix(store, matrix_path(both, domain.name), shape) as matrix:
                matrix[:, : texts.shape[1]] = texts
                images.fill(store, domain, matrix[:, texts.shape[1] :])
    return both


def _missing(store: Store, prepared: Prepared, folder: str) -> list[DomainRange]:
    """Return the domains that have no matrix in a folder."""
    return [
        domain for domain in prepared.domains if not store.exists(matrix_path(folder, domain.name))
    ]


def _encode_domains(
    store: Store,
    prepared: Prepared,
    source: BackboneSource,
    cache: str,
    folder: str,
    missing: list[DomainRange],
) -> None:
    for group in _groups(missing):
        texts = {domain.name: _hashed_texts(store, prepared, domain.name) for domain in group}
        wanted = pl.concat(list(texts.values())).drop_nulls(KEY).unique(KEY, maintain_order=True)
        new = wanted.join(cached_hashes(store, cache, KEY), on=KEY, how="anti")
        if len(new):
            _encode(new, source, cache)
        log.info("encode: %s of %s texts are new", f"{len(new):,}", f"{len(wanted):,}")
        width = cached_width(store, cache) or source.load().width
        for name, hashed in texts.items():
            with new_matrix(store, matrix_path(folder, name), (len(hashed), width)) as matrix:
                assemble(store, cache, hashed.select(KEY), matrix)


def _groups(domains: Sequence[DomainRange]) -> list[list[DomainRange]]:
    """Return domains whose texts are in memory together: few starts of actors, bounded memory."""
    groups: list[list[DomainRange]] = []
    items = 0
    for domain in domains:
        size = domain.stop - domain.start
        if not groups or items + size > ITEMS_AT_ONCE:
            groups.append([])
            items = 0
        groups[-1].append(domain)
        items += size
    return groups


def _hashed_texts(store: Store, prepared: Prepared, domain: str) -> pl.DataFrame:
    """Return the text of each item and its hash; null where there is no text."""
    texts = read_catalogue(store, prepared, domain, ["text"])["text"]
    hashes = pa.chunked_array(
        [
            pa.array(map(_hash, chunk.slice(start, TEXTS_A_CHUNK).to_pylist()), pa.string())
            for chunk in texts.chunks
            for start in range(0, len(chunk), TEXTS_A_CHUNK)
        ],
        pa.string(),
    )
    return pl.DataFrame(pl.from_arrow(pa.table({KEY: hashes, "text": texts})))


def _hash(text: str) -> str | None:
    return hashlib.sha256(text.encode()).hexdigest()[:32] if text else None


def _encode(new: pl.DataFrame, source: BackboneSource, cache: str) -> None:
    parts = [
        new.slice(start, TEXTS_A_PART).to_arrow() for start in range(0, len(new), TEXTS_A_PART)
    ]
    arguments = (source, cache)
    work = Work(parts, TEXTS_A_PART, EncodeTexts, arguments, len(new), TEXTS_AN_ACTOR, "texts")
    try:
        encode_parts(work)
    except ray.exceptions.RayError:
        # An actor that cannot start takes its error along; a backbone that cannot be loaded is the
        # user's mistake, and is told here.
        source.load()
        raise
