"""The item matrix: every candidate's vectors and bias, computed once a run.

    runs/<run_id>/items/<name>/domain=<d>.safetensors
        texts (items, W), vectors (items, W), bias_<system> (items,)   float32

    folder = build_items(store, spec)
    items = load_items(store, folder, domains)

A *system* is one way to weigh the parts of the score: the model itself, the untrained backbone, a
popularity window. The hold-out judges them all with the code that scores the night.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from crossrec.data.histories import Prepared, read_catalogue
from crossrec.data.replay import Activity, load_activity
from crossrec.encode import BackboneSource, encode_catalogue, read_vectors
from crossrec.model.checkpoint import load_model, tensors_from_bytes, tensors_to_bytes
from crossrec.model.inference import ItemState, item_state
from crossrec.model.recommender import POPULARITY_FLOOR, Blend
from crossrec.schema import domain_folder
from crossrec.storage import Store


@dataclass(frozen=True)
class System:
    """How a score is put together: weights of the two vectors, and the bias that is added."""

    text: float
    sequence: float
    bias: np.ndarray


def blend_system(blend: Blend, activity: Activity, day: int) -> System:
    """Return the system of a blend on a day; its bias covers the whole catalogue."""
    popularity = activity.decayed(day, blend.half_life_days)
    bias = blend.popularity * np.log(popularity + POPULARITY_FLOOR)
    return System(blend.text, blend.sequence, bias.astype(np.float32))


def window_system(activity: Activity, day: int, days: int | None) -> System:
    """Return popularity in the newest `days` before a day (None: all of them) as a system."""
    counts = activity.counts(-(2**31) if days is None else day - days, day)
    return System(0.0, 0.0, counts.astype(np.float32))


@dataclass(frozen=True)
class Items:
    """The item matrices of a run in memory.

    state: both vectors of the whole catalogue. weights: (text, sequence) and biases: (items of the
    domain,) by system and domain.
    """

    state: ItemState
    weights: Mapping[str, Mapping[str, tuple[float, float]]]
    biases: Mapping[str, Mapping[str, Tensor]]


def build_items(
    store: Store,
    prepared: Prepared,
    model_folder: str,
    systems: Mapping[str, Mapping[str, System]],
    folder: str,
) -> None:
    """Compute all items' vectors under a model and store them with each system's bias.

    Args:
        store: of the run.
        prepared: the catalogue.
        model_folder: the model that encodes it.
        systems: by name, then domain.
        folder: where to; `systems.json` is written last.
    """
    model = load_model(store, model_folder)
    vectors = encode_catalogue(store, prepared, BackboneSource(store, model.settings, model_folder))
    for domain in prepared.domains:
        ids, counts = model.id_rows(read_catalogue(store, prepared, domain.name))
        text_IT = torch.from_numpy(read_vectors(store, vectors, domain.name))
        state = item_state(
            model.recommender, text_IT, torch.from_numpy(ids), torch.from_numpy(counts)
        )
        tensors = {"texts": state.texts_IW, "vectors": state.vectors_IW}
        for name, by_domain in systems.items():
            bias = by_domain[domain.name].bias[domain.start : domain.stop]
            tensors[f"bias_{name}"] = torch.from_numpy(np.ascontiguousarray(bias))
        store.write_bytes(
            f"{folder}/{domain_folder(domain.name)}.safetensors", tensors_to_bytes(tensors)
        )
    weights = {
        name: {domain: [system.text, system.sequence] for domain, system in by_domain.items()}
        for name, by_domain in systems.items()
    }
    store.write_json(f"{folder}/systems.json", weights)


def load_items(store: Store, prepared: Prepared, folder: str) -> Items:
    """Read what `build_items` wrote."""
    weights = store.read_json(f"{folder}/systems.json")
    biases: dict[str, dict[str, Tensor]] = {name: {} for name in weights}
    texts, vectors = [], []
    for domain in prepared.domains:
        tensors = tensors_from_bytes(
            store.read_bytes(f"{folder}/{domain_folder(domain.name)}.safetensors")
        )
        texts.append(tensors["texts"])
        vectors.append(tensors["vectors"])
        for name in weights:
            biases[name][domain.name] = tensors[f"bias_{name}"]
    return Items(ItemState(torch.cat(texts), torch.cat(vectors)), weights, biases)


def night_systems(
    store: Store, prepared: Prepared, model_folder: str, day: int
) -> dict[str, dict[str, System]]:
    """Return the one system of the night: the model with the blends that validation chose."""
    activity = load_activity(store, prepared)
    blends = load_model(store, model_folder).blends
    return {
        "model": {
            d.name: blend_system(blends.get(d.name, Blend()), activity, day)
            for d in prepared.domains
        }
    }


def holdout_systems(
    store: Store, prepared: Prepared, model_folder: str, day: int
) -> dict[str, dict[str, System]]:
    """Return the model, and what it is judged beside."""
    activity = load_activity(store, prepared)
    model = load_model(store, model_folder)
    names = [domain.name for domain in prepared.domains]
    systems = {
        "model": {
            name: blend_system(model.blends.get(name, Blend()), activity, day) for name in names
        },
        "step0": {
            name: blend_system(model.step0.get(name, Blend()), activity, day) for name in names
        },
        "untrained_backbone": dict.fromkeys(
            names, blend_system(Blend(1.0, 0.0, 0.0), activity, day)
        ),
    }
    for name, days in (("popularity_all", None), ("popularity_30d", 30), ("popularity_7d", 7)):
        systems[name] = dict.fromkeys(names, window_system(activity, day, days))
    return systems
