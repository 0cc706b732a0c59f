"""Item texts to vectors, on Ray, each text once: cached by a hash of text and weights.

In: the prepared catalogue and a backbone. Out, in the store:

    cache/vectors/<weights digest>/part-<digest>.parquet       text_hash, vector; a night adds what
    is new prepared/<digest>/vectors/<weights digest>/domain=<d>.npy  (items, width) float32, rows
    as in the catalogue

    folder = encode_catalogue(store, prepared, BackboneSource(store, config.model))
    vectors = read_vectors(store, folder, "shop")
"""

import contextlib
import hashlib
import io
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy

from crossrec.config import ModelConfig
from crossrec.data.histories import Prepared, read_catalogue
from crossrec.model.adapters import check_trainable
from crossrec.model.backbone import TextBackbone, encode_texts, load_backbone, weights_digest
from crossrec.model.checkpoint import load_model_backbone
from crossrec.model.weights import (
    BackboneFolder,
    copy_folder,
    folder_digest,
    locate_weights,
    named_pooling,
)
from crossrec.runlog import log
from crossrec.schema import domain_folder
from crossrec.storage import Store

TEXTS_A_PART = 2_048
"""Texts a unit of work and cache file: about 10 s of MiniLM on a core, 3 MB."""

TEXTS_AN_ACTOR = 8_192
"""New texts for which another actor is worth its start (10 s of CPU)."""

CPUS_AN_ACTOR = 4
"""At most: an actor must fit on one node."""

RETRIES = 2
"""Times that an actor is restarted, and a part tried again, before the job fails."""


@dataclass(frozen=True)
class BackboneSource:
    """Where workers find the backbone: in a model folder of the store, or by `model.backbone`."""

    store: Store
    settings: ModelConfig
    model_folder: str | None = None

    @contextlib.contextmanager
    def located(self) -> Iterator[str]:
        """Yield the local folder, or hub id, of `model.backbone`."""
        with tempfile.TemporaryDirectory() as scratch:
            yield locate_weights(self.settings.backbone, dict(self.store.options), Path(scratch))

    def load(self) -> TextBackbone:
        """Return the backbone, on the CPU."""
        if self.model_folder:
            return load_model_backbone(self.store, self.model_folder, self.settings)
        with self.located() as place:
            return load_backbone(
                place,
                self.settings.text_tokens,
                self.settings.trust_remote_code,
                self.settings.pooling,
            )

    def check(self) -> None:
        """Find the backbone, and try what is to learn of it, so that mistakes fail before any work.

        Raises:
            ConfigError: there is no such folder or package, it holds no weights, or no such layers
                and maps as the settings name.
        """
        with self.located() as place:
            if self.settings.backbone_learns:
                check_trainable(place, self.settings)

    def digest(self) -> str:
        """Return what names the vectors of this backbone; loads only one of a hub.

        A model folder says which vectors its backbone gives: where it was not trained, those of
        the backbone that the model started from, which are there already.
        """
        if self.model_folder:
            known: str | None = self.store.read_json(f"{self.model_folder}/config.json").get(
                "text_digest"
            )
            return known or weights_digest(self.load())
        with self.located() as place:
            if Path(place).is_dir():
                return folder_digest(Path(place), self.settings.text_tokens, self.settings.pooling)
        return weights_digest(self.load())

    @contextlib.contextmanager
    def untrained(self, width: int) -> Iterator[TextBackbone | BackboneFolder]:
        """Yield what `save_model` writes where the backbone was not trained."""
        if self.model_folder:
            # Its own, which need not be that of the settings: it may have been adapted.
            pooling = self.store.read_json(f"{self.model_folder}/config.json")["pooling"]
            with tempfile.TemporaryDirectory() as scratch:
                copy_folder(self.store, f"{self.model_folder}/backbone", Path(scratch))
                yield BackboneFolder(Path(scratch), width, self.digest(), pooling)
            return
        with self.located() as place:
            if Path(place).is_dir():
                digest = self.digest()
                pooling = named_pooling(Path(place), self.settings.pooling)
                yield BackboneFolder(Path(place), width, digest, pooling)
            else:
                yield self.load()


class EncodeTexts:
    """Ray Data actor: encodes a batch of texts and stores it as one cache file."""

    def __init__(self, source: BackboneSource, folder: str) -> None:
        self.store = source.store
        self.folder = folder
        self.backbone = source.load().to("cuda" if torch.cuda.is_available() else "cpu")

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return a table of one row, the number of texts; the vectors go to the store."""
        vectors = encode_texts(self.backbone, batch["text"].to_pylist())
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
        table = pa.table({"text_hash": batch["text_hash"], "vector": column})
        name = hashlib.sha256("".join(table["text_hash"].to_pylist()).encode()).hexdigest()[:16]
        self.store.write_parquet(f"{self.folder}/part-{name}.parquet", table)
        return pa.table({"texts": [batch.num_rows]})


def encode_catalogue(store: Store, prepared: Prepared, source: BackboneSource) -> str:
    """Encode what is not cached, assemble a matrix a domain, and return their folder."""
    digest = source.digest()[:16]
    folder = f"{prepared.folder}/vectors/{digest}"
    missing = [
        domain.name
        for domain in prepared.domains
        if not store.exists(_matrix_path(folder, domain.name))
    ]
    if not missing:
        return folder
    cache = f"cache/vectors/{digest}"
    texts = {name: _hashed_texts(store, prepared, name) for name in missing}
    wanted = (
        pl.concat(list(texts.values()))
        .drop_nulls("text_hash")
        .unique("text_hash", maintain_order=True)
    )
    new = wanted.join(_cached_hashes(store, cache), on="text_hash", how="anti")
    if len(new):
        _encode(new, source, cache)
    log.info("encode: %s of %s texts are new", f"{len(new):,}", f"{len(wanted):,}")
    width = _width(store, cache, source)
    for name, hashed in texts.items():
        matrix = _assemble(store, cache, hashed, width)
        sink = io.BytesIO()
        np.save(sink, matrix)
        store.write_bytes(_matrix_path(folder, name), sink.getvalue())
    return folder


def read_vectors(store: Store, folder: str, domain: str) -> np.ndarray:
    """Return a domain's text vectors, (items, width) float32; zero where there is no text."""
    matrix: np.ndarray = np.load(
        io.BytesIO(store.read_bytes(_matrix_path(folder, domain))), allow_pickle=False
    )
    return matrix


def _matrix_path(folder: str, domain: str) -> str:
    return f"{folder}/{domain_folder(domain)}.npy"


def _hashed_texts(store: Store, prepared: Prepared, domain: str) -> pl.DataFrame:
    """Return the text of each item and its hash; null where there is no text."""
    texts = read_catalogue(store, prepared, domain)["text"].to_pylist()
    hashes = [hashlib.sha256(text.encode()).hexdigest()[:32] if text else None for text in texts]
    return pl.DataFrame(
        {"text_hash": hashes, "text": texts}, schema={"text_hash": pl.String, "text": pl.String}
    )


def _cached_hashes(store: Store, cache: str) -> pl.DataFrame:
    parts = [store.read_parquet(f"{cache}/{name}", ["text_hash"]) for name in store.list(cache)]
    if not parts:
        return pl.DataFrame(schema={"text_hash": pl.String})
    return pl.DataFrame(pl.from_arrow(pa.concat_tables(parts)))


def _encode(new: pl.DataFrame, source: BackboneSource, cache: str) -> None:
    resources = ray.cluster_resources()
    cpus, gpus = int(resources["CPU"]), int(resources.get("GPU", 0))
    actors = max(1, min(gpus or cpus // 2, -(-len(new) // TEXTS_AN_ACTOR)))
    parts = [
        new.slice(start, TEXTS_A_PART).to_arrow() for start in range(0, len(new), TEXTS_A_PART)
    ]
    encoded = ray.data.from_arrow(parts).map_batches(
        EncodeTexts,
        batch_size=TEXTS_A_PART,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=actors),
        fn_constructor_args=(source, cache),
        # Half of the CPUs, as in training: Ray Data needs some beside its actors.
        num_cpus=1 if gpus else max(1, min(cpus // 2 // actors, CPUS_AN_ACTOR)),
        num_gpus=1 if gpus else 0,
        max_restarts=RETRIES,
        max_task_retries=RETRIES,
    )
    done = 0
    try:
        for batch in encoded.iter_batches(batch_size=None, batch_format="numpy"):
            done += int(batch["texts"].sum())
            log.info("encode: %s of %s new texts", f"{done:,}", f"{len(new):,}")
    except ray.exceptions.RayError:
        # An actor that cannot start takes its error along; a backbone that cannot be loaded is the
        # user's mistake, and is told here.
        source.load()
        raise


def _width(store: Store, cache: str, source: BackboneSource) -> int:
    """Return the width of the cached vectors; of the backbone's where there is no text at all."""
    for name in store.list(cache)[:1]:
        return int(store.read_parquet(f"{cache}/{name}", ["vector"]).schema.types[0].list_size)
    return source.load().width


def _assemble(store: Store, cache: str, hashed: pl.DataFrame, width: int) -> np.ndarray:
    """Lay the cached vectors into catalogue order, one cache file at a time."""
    matrix = np.zeros((len(hashed), width), np.float32)
    places = (
        hashed.select("text_hash").with_row_index("place").filter(pl.col("text_hash").is_not_null())
    )
    for name in store.list(cache):
        part = store.read_parquet(f"{cache}/{name}")
        vectors = part["vector"].combine_chunks().flatten().to_numpy().reshape(-1, width)
        rows = pl.DataFrame(pl.from_arrow(part.select(["text_hash"]))).with_row_index("row")
        found = places.join(rows, on="text_hash")
        matrix[found["place"].to_numpy()] = vectors[found["row"].to_numpy()]
    return matrix
