"""A model as a folder: safetensors, JSON, Parquet and a tokenizer; nothing in it is unpickled.

models/<model_id>/model.safetensors   the recommender
models/<model_id>/config.json         settings, domains, what it was trained on
models/<model_id>/fusion.safetensors  how the parts of a score add up
models/<model_id>/items.parquet       the item of each row of the id embedding, and its events in
training
models/<model_id>/small.safetensors   a shallow encoder of histories, where one was distilled;
small.json has its layers, and how near it comes
models/<model_id>/README.md, checksums.json, metrics.json   beside a published one
models/<model_id>/backbone/           the text backbone, as transformers reads it; bottleneck
adapters, which transformers does not know, lie beside its weights
models/<model_id>/image_backbone/     the model of images, where there is one, in the same form

model = load_model(store, "models/2026-06-30-1f2e3d4c")
"""

import copy
import hashlib
import io
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from crossrec.config import ModelConfig
from crossrec.errors import CrossrecError, explain
from crossrec.model.adapters import merged, put_bottlenecks, take_bottlenecks
from crossrec.model.backbone import TextBackbone, load_backbone, weights_digest
from crossrec.model.fetch import Pin
from crossrec.model.fusion import RELATED, VARIANTS, WITHOUT_RELATIONS, Fusion
from crossrec.model.recommender import Recommender, make_encoder
from crossrec.model.vision import VisionBackbone, vision_digest
from crossrec.model.weights import BackboneFolder, locate_weights
from crossrec.schema import DOMAIN, ITEM_ID
from crossrec.storage import Store

FORMAT = 5
"""Of a model folder; another set of tensors, or another meaning of one, is a new number."""

Encoder = Literal["full", "small"]
"""By which a model reads histories: its own, or the shallow one that was distilled from it."""

BOTTLENECKS = "bottlenecks.safetensors"
"""Beside a backbone's weights: adapters that cannot be added to them."""


@dataclass(frozen=True)
class Model:
    """A trained model in memory.

    items: table of domain, item_id, events; row r belongs to row r of the id embedding. domains:
    those trained on.
    facts: what a person or program may want to know (digests, dates, metrics).
    """

    settings: ModelConfig
    recommender: Recommender
    items: pa.Table
    domains: tuple[str, ...]
    facts: dict[str, Any] = field(default_factory=dict)

    def id_rows(self, catalogue: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        """Return each catalogue row's id-embedding row (-1: new) and events in training."""
        known = pl.DataFrame(pl.from_arrow(self.items)).with_row_index("id")
        wanted = pl.DataFrame(pl.from_arrow(catalogue.select([DOMAIN, ITEM_ID])))
        found = wanted.join(known, on=[DOMAIN, ITEM_ID], how="left", maintain_order="left")
        return (
            found["id"].cast(pl.Int64).fill_null(-1).to_numpy(writable=True),
            found["events"].cast(pl.Float32).fill_null(0.0).to_numpy(writable=True),
        )


def save_model(
    store: Store,
    folder: str,
    model: Model,
    backbone: TextBackbone | BackboneFolder,
    vision: VisionBackbone | BackboneFolder | None = None,
) -> dict[str, Any]:
    """Write a model folder; `config.json` comes last, so that a folder with it is whole."""
    with tempfile.TemporaryDirectory() as scratch:
        if isinstance(backbone, BackboneFolder):
            files, digest = backbone.files, backbone.digest
        else:
            plain = merged(backbone)
            digest = weights_digest(plain)
            bottlenecks = take_bottlenecks(plain.model)
            plain.model.save_pretrained(scratch)
            plain.tokenizer.save_pretrained(scratch)
            if bottlenecks:
                (Path(scratch) / BOTTLENECKS).write_bytes(tensors_to_bytes(bottlenecks))
            files = sorted(Path(scratch).iterdir())
        for path in files:
            store.write_bytes(f"{folder}/backbone/{path.name}", path.read_bytes())
    store.write_bytes(
        f"{folder}/model.safetensors", tensors_to_bytes(model.recommender.state_dict())
    )
    store.write_parquet(f"{folder}/items.parquet", model.items)
    image_digest = None if vision is None else _save_vision(store, folder, vision)
    config = {
        "format": FORMAT,
        "settings": model.settings.model_dump(mode="json"),
        "text_width": model.recommender.adaptor.in_features,
        "text_digest": digest,
        "image_digest": image_digest,
        "pooling": backbone.pooling,
        "items": model.items.num_rows,
        "ratings": model.recommender.rating is not None,
        "domains": list(model.domains),
        "facts": model.facts,
    }
    store.write_json(f"{folder}/config.json", config)
    return config


def _save_vision(store: Store, folder: str, vision: VisionBackbone | BackboneFolder) -> str:
    """Write the model of images; return what names its vectors."""
    with tempfile.TemporaryDirectory() as scratch:
        if isinstance(vision, BackboneFolder):
            files, digest = vision.files, vision.digest
        else:
            # A pooler that is made up would count as one that is not, once it is in the file.
            vision.model.save_pretrained(scratch, state_dict=vision.weights())
            vision.processor.save_pretrained(scratch)
            files, digest = sorted(Path(scratch).iterdir()), vision_digest(vision)
        for path in files:
            store.write_bytes(f"{folder}/image_backbone/{path.name}", path.read_bytes())
    return digest


def load_model(store: Store, folder: str, encoder: Encoder = "full") -> Model:
    """Read a model folder, without its backbone.

    Raises:
        CrossrecError: the folder holds no whole model, one of another version of crossrec, or no
            small encoder where that is asked for.
    """
    if not store.exists(f"{folder}/config.json"):
        mend = "fine-tune again, or name another model in score.model"
        raise CrossrecError(explain(store.uri(folder), "a model folder", "no config.json", mend))
    config = store.read_json(f"{folder}/config.json")
    if config["format"] != FORMAT:
        where, found = store.uri(f"{folder}/config.json"), f"format {config['format']}"
        raise CrossrecError(explain(where, f"format {FORMAT}", found, "fine-tune again"))
    settings = ModelConfig.model_validate(config["settings"])
    domains, ratings = len(config["domains"]), config["ratings"]
    recommender = Recommender(settings, config["text_width"], config["items"], domains, ratings)
    recommender.load_state_dict(load_tensors(store.read_bytes(f"{folder}/model.safetensors")))
    if encoder == "small":
        _put_small(store, folder, recommender)
    return Model(
        settings,
        recommender.eval(),
        store.read_parquet(f"{folder}/items.parquet"),
        tuple(config["domains"]),
        config["facts"],
    )


def save_small(
    store: Store,
    folder: str,
    own: nn.TransformerEncoder,
    small: nn.TransformerEncoder,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Write a small encoder beside the model from whose own it was distilled.

    Returns:
        What small.json, which is written last, says: `facts`, layers, and whose it is.
    """
    store.write_bytes(f"{folder}/small.safetensors", tensors_to_bytes(small.state_dict()))
    said = {**facts, "layers": len(small.layers), "distilled_from": digest_of(own)}
    store.write_json(f"{folder}/small.json", said)
    return said


def small_of(store: Store, folder: str) -> dict[str, Any] | None:
    """Return what small.json says; None where a model has no small encoder."""
    path = f"{folder}/small.json"
    found: dict[str, Any] | None = store.read_json(path) if store.exists(path) else None
    return found


def encoder_of(store: Store, folder: str, wanted: Encoder) -> Encoder:
    """Return the encoder by which a model scores: its own where it has no small one."""
    return wanted if wanted == "full" or small_of(store, folder) is not None else "full"


def digest_of(encoder: nn.Module) -> str:
    """Return 16 hex digits that change with any weight."""
    return hashlib.sha256(tensors_to_bytes(encoder.state_dict())).hexdigest()[:16]


def _put_small(store: Store, folder: str, recommender: Recommender) -> None:
    said = small_of(store, folder)
    if said is None or said["distilled_from"] != digest_of(recommender.encoder):
        expected, found = "a small encoder of this model", "none" if said is None else "another's"
        mend = "fine-tune with score.encoder=small, or score with score.encoder=full"
        raise CrossrecError(explain(store.uri(folder), expected, found, mend))
    recommender.encoder = make_encoder(recommender.settings, said["layers"])
    tensors = load_tensors(store.read_bytes(f"{folder}/small.safetensors"))
    recommender.encoder.load_state_dict(tensors)


def load_model_backbone(
    store: Store, folder: str, settings: ModelConfig, pins: Sequence[Pin] = ()
) -> TextBackbone:
    """Read the backbone that a model folder carries; `pins` as in `locate_weights`."""
    place = locate_weights(store.uri(f"{folder}/backbone"), store.options, folder, pins)
    pooling = store.read_json(f"{folder}/config.json").get("pooling", settings.pooling)
    backbone = load_backbone(place, settings.text_tokens, settings.trust_remote_code, pooling)
    adapters = Path(place) / BOTTLENECKS
    if adapters.exists():
        put_bottlenecks(backbone.model, tensors_from_bytes(adapters.read_bytes()))
    return backbone


def tensors_to_bytes(tensors: dict[str, Tensor]) -> bytes:
    """Return tensors as the bytes of a safetensors file; one with two names is in it twice."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        # safetensors refuses tensors that share memory, as tied weights do.
        found[name] = plain.clone() if plain.data_ptr() in seen else plain
        seen.add(plain.data_ptr())
    return bytes(save_tensors(found))


def tensors_from_bytes(data: bytes) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file."""
    return dict(load_tensors(data))


def tensors_below(start: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin so, by the rest of their names."""
    return {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}


def state_to_bytes(state: Mapping[str, Any]) -> bytes:
    """Return nested tensors, numbers and lists, such as an optimizer's state, as bytes."""
    sink = io.BytesIO()
    torch.save(dict(state), sink)
    return sink.getvalue()


def state_from_bytes(data: bytes, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return what `state_to_bytes` wrote; only tensors, numbers and lists are unpickled."""
    state: dict[str, Any] = torch.load(io.BytesIO(data), weights_only=True, map_location=device)
    return state


def save_fusions(store: Store, folder: str, fusions: Mapping[str, Fusion]) -> None:
    """Write how the parts of a score add up, in each of VARIANTS, beside a model."""
    tensors = {
        f"{variant}.{name}": tensor
        for variant, fusion in fusions.items()
        for name, tensor in fusion.state_dict().items()
    }
    store.write_bytes(f"{folder}/fusion.safetensors", tensors_to_bytes(tensors))


def load_fusions(store: Store, folder: str) -> dict[str, Fusion]:
    """Read what `save_fusions` wrote; WITHOUT_RELATIONS beside it where the model knows some.

    Raises:
        CrossrecError: the folder holds no whole model.
    """
    path = f"{folder}/fusion.safetensors"
    if not store.exists(path):
        mend = "fine-tune again, or name another model in score.model"
        raise CrossrecError(
            explain(store.uri(folder), "a model folder", "no fusion.safetensors", mend)
        )
    config = store.read_json(f"{folder}/config.json")
    domains = len(config["domains"])
    tensors = load_tensors(store.read_bytes(path))
    fusions = {}
    for variant in VARIANTS:
        own = tensors_below(f"{variant}.", tensors)
        fusions[variant] = Fusion(domains, with_relations=RELATED in own)
        fusions[variant].load_state_dict(own)
        fusions[variant].eval()
    if fusions["model"].related is not None and not config.get("ratings"):
        fusions[WITHOUT_RELATIONS] = copy.deepcopy(fusions["model"])
        fusions[WITHOUT_RELATIONS].related = torch.zeros(2)
    return fusions
