"""The item side of all scores: every candidate's vectors and columns, computed once a run.

    runs/<run_id>/items/texts.npy, vectors.npy    (items, W) float32 each, all domains
    runs/<run_id>/items/domain=<d>.safetensors
        columns_<system> (items, R)                               float32
        <kind>.offsets, <kind>.columns, <kind>.weights            neighbours, as CSR
        new                                                       items without any event
    runs/<run_id>/items/event_states.safetensors     data.itemstate.EventStates
    runs/<run_id>/items/items.json                   systems, model, bytes and sha256 of the files

    build_items(store, prepared, model_folder, day, NIGHT, folder)
    items = load_items(store, prepared, folder)

A node has the files once: they are mapped into memory, where all of its processes share their
pages; from a remote store they are fetched to its disk first, once, and checked.

A *system* is one way to weigh the parts of the score: the model itself, the model without a part,
the untrained backbone, a popularity window. The hold-out judges them all with the code that scores
the night.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from crossrec.data.cooccurrence import KINDS, count_neighbours
from crossrec.data.daily import load_activity
from crossrec.data.histories import DomainRange, Prepared, read_catalogue
from crossrec.data.itemstate import STATE_NAMES, EventStates, states_on_day
from crossrec.data.relations import related_neighbours
from crossrec.data.replay import before, sample_histories
from crossrec.encode import encode_catalogue
from crossrec.model.biases import fit_biases
from crossrec.model.checkpoint import (
    Model,
    load_fusions,
    load_model,
    tensors_to_bytes,
)
from crossrec.model.fetch import Pin, fetch_files, node_cache
from crossrec.model.fusion import RELATED, VARIANTS, Fusion
from crossrec.model.inference import ItemState, item_state
from crossrec.model.overlap import NeighbourTable
from crossrec.model.rating import levels_of_items
from crossrec.model.source import BackboneSource
from crossrec.schema import ITEM_KEY, domain_folder
from crossrec.storage import Store
from crossrec.vectorcache import map_matrix, new_matrix, read_vectors

ITEMS = "items.json"
"""Written last: where it is, all is there."""

FORMAT = 2
"""Of the item side; a change of what its files hold is a new number."""

TEXTS, VECTORS, EVENT_STATES = "texts.npy", "vectors.npy", "event_states.safetensors"

ITEMS_A_BLOCK = 65_536
"""Items whose vectors are computed and written together."""

UNUSED_S = 86_400
"""Items that a node has not scored with for so long go when others come."""

NIGHT = ("model",)
WINDOWS_DAYS = {"popularity_all": None, "popularity_30d": 30, "popularity_7d": 7}
HOLDOUT = (*VARIANTS, "untrained_backbone", *WINDOWS_DAYS)
"""Systems of the night, and of the hold-out."""


@dataclass(frozen=True)
class Items:
    """The item side in memory.

    state: both vectors of the whole catalogue. columns: (items of the domain, R) by system and
    domain. neighbours: by kind and domain. fusions: by system; the others have weights of their
    own. events: the state of items on the days of past events. new: by domain, the rows within
    it of items that nobody has touched yet, int64.
    """

    state: ItemState
    columns: Mapping[str, Mapping[str, Tensor]]
    neighbours: Mapping[str, Mapping[str, NeighbourTable]]
    fusions: Mapping[str, Fusion]
    events: EventStates
    new: Mapping[str, Tensor] = field(default_factory=dict)


def build_items(
    store: Store,
    prepared: Prepared,
    model_folder: str,
    day: int,
    systems: Sequence[str],
    folder: str,
) -> None:
    """Compute all items' vectors, columns and neighbours as of a day, and store them.

    Args:
        store: of the run.
        prepared: the input; only what lies before `day` is used.
        model_folder: the model that encodes the items.
        day: the day that is predicted.
        systems: those to be scored.
        folder: where to; ITEMS is written last.
    """
    model = load_model(store, model_folder)
    fusions = load_fusions(store, model_folder)
    vectors = encode_catalogue(store, prepared, BackboneSource(store, model.settings, model_folder))
    activity = load_activity(store, prepared)
    night_IG = states_on_day(activity, day)
    states_IG = torch.from_numpy(night_IG)
    events = EventStates.of(activity)
    arrays = vars(events) | {"night": night_IG}
    parts = {name: torch.from_numpy(part) for name, part in arrays.items()}
    files = [_write(store, folder, EVENT_STATES, parts)]
    bounds = [(domain.start, domain.stop) for domain in prepared.domains]
    sample = before(sample_histories(store, prepared), day)
    neighbours = count_neighbours(sample, day, prepared.items, bounds)
    levels_I = None
    if model.recommender.rating is not None:
        biases = fit_biases(sample, bounds, prepared.items)
        levels_I = levels_of_items(model.recommender.rating, biases, bounds)
    if prepared.with_relations and fusions["model"].related is not None:
        neighbours[RELATED] = related_neighbours(store, prepared)
    counts = {
        system: activity.counts(-(2**31) if days is None else day - days, day)
        for system, days in WINDOWS_DAYS.items()
        if system in systems
    }
    for index, domain in enumerate(prepared.domains):
        rows = slice(domain.start, domain.stop)
        tensors = {
            f"columns_{system}": _columns(fusions.get(system), counts.get(system), states_IG, rows)
            for system in systems
        }
        is_new_I = states_IG[rows, STATE_NAMES.index("is_new")] > 0
        tensors["new"] = torch.nonzero(is_new_I).squeeze(1)
        if levels_I is not None:
            tensors["levels"] = levels_I[domain.start : domain.stop].contiguous()
        for kind, found in neighbours.items():
            tensors |= {
                f"{kind}.{name}": torch.from_numpy(part)
                for name, part in vars(found[index]).items()
            }
        files.append(_write(store, folder, _file_of(domain), tensors))
    files += _write_vectors(store, prepared, model, vectors, folder)
    built = {"format": FORMAT, "systems": list(systems), "model": model_folder, "files": files}
    store.write_json(f"{folder}/{ITEMS}", built)


def has_items(store: Store, folder: str) -> bool:
    """Return whether a folder holds an item side, and not one of another version of crossrec."""
    path = f"{folder}/{ITEMS}"
    return store.exists(path) and store.read_json(path).get("format") == FORMAT


def _write_vectors(
    store: Store, prepared: Prepared, model: Model, vectors: str, folder: str
) -> list[tuple[str, int, str]]:
    """Write both vectors of all items, some items at a time; return what Pins say of the files."""
    shape = prepared.items, model.settings.width
    with (
        new_matrix(store, f"{folder}/{TEXTS}", shape) as texts_IW,
        new_matrix(store, f"{folder}/{VECTORS}", shape) as vectors_IW,
    ):
        for domain in prepared.domains:
            ids_I, counts_I = model.id_rows(read_catalogue(store, prepared, domain.name, ITEM_KEY))
            text_IT = read_vectors(store, vectors, domain.name)
            for first in range(0, len(text_IT), ITEMS_A_BLOCK):
                rows = slice(first, min(first + ITEMS_A_BLOCK, len(text_IT)))
                parts = (torch.from_numpy(part[rows]) for part in (text_IT, ids_I, counts_I))
                state = item_state(model.recommender, *parts)
                there = slice(domain.start + rows.start, domain.start + rows.stop)
                texts_IW[there] = state.texts_IW.numpy()
                vectors_IW[there] = state.vectors_IW.numpy()
        digests = [_digest_of(matrix) for matrix in (texts_IW, vectors_IW)]
    return [(name, *digest) for name, digest in zip((TEXTS, VECTORS), digests, strict=True)]


def _digest_of(matrix: np.memmap) -> tuple[int, str]:
    """Return bytes and sha256 of the file behind a matrix."""
    matrix.flush()
    path = Path(str(matrix.filename))
    with path.open("rb") as source:
        return path.stat().st_size, hashlib.file_digest(source, "sha256").hexdigest()


def _file_of(domain: DomainRange) -> str:
    return f"{domain_folder(domain.name)}.safetensors"


def _write(
    store: Store, folder: str, name: str, tensors: dict[str, Tensor]
) -> tuple[str, int, str]:
    """Write tensors; return what a Pin says of their file."""
    data = tensors_to_bytes(tensors)
    store.write_bytes(f"{folder}/{name}", data)
    return name, len(data), hashlib.sha256(data).hexdigest()


@torch.inference_mode()
def _columns(
    fusion: Fusion | None, counts: np.ndarray | None, states_IG: Tensor, rows: slice
) -> Tensor:
    """Return what a system knows of a domain's items beside their vectors, (I, R)."""
    if fusion is not None:
        # The networks between states and columns are wider than both.
        return torch.cat([fusion.item_side(part) for part in states_IG[rows].split(ITEMS_A_BLOCK)])
    if counts is None:
        return torch.zeros(rows.stop - rows.start, 1)
    return torch.from_numpy(counts[rows]).float().unsqueeze(1)


def load_items(store: Store, prepared: Prepared, folder: str) -> Items:
    """Map what `build_items` wrote into memory."""
    built = store.read_json(f"{folder}/{ITEMS}")
    here = _on_this_node(store, folder, built["files"])
    columns: dict[str, dict[str, Tensor]] = {name: {} for name in built["systems"]}
    neighbours: dict[str, dict[str, NeighbourTable]] = {kind: {} for kind in KINDS}
    new: dict[str, Tensor] = {}
    levels: list[Tensor] = []
    for domain in prepared.domains:
        tensors = load_file(here / _file_of(domain))
        new[domain.name] = tensors["new"]
        levels += [tensors["levels"]] if "levels" in tensors else []
        for name in columns:
            columns[name][domain.name] = tensors[f"columns_{name}"]
        for kind in (*KINDS, *((RELATED,) if f"{RELATED}.offsets" in tensors else ())):
            table = (tensors[f"{kind}.{name}"] for name in ("offsets", "columns", "weights"))
            neighbours.setdefault(kind, {})[domain.name] = NeighbourTable(*table)
    fusions = {
        name: fusion
        for name, fusion in load_fusions(store, built["model"]).items()
        if name in columns
    }
    parts = load_file(here / EVENT_STATES)
    events = EventStates(**{name: part.numpy() for name, part in parts.items()})
    texts_IW, vectors_IW = (torch.from_numpy(map_matrix(here / name)) for name in (TEXTS, VECTORS))
    state = ItemState(texts_IW, vectors_IW, torch.cat(levels) if levels else None)
    return Items(state, columns, neighbours, fusions, events, new)


def _on_this_node(store: Store, folder: str, files: Sequence[tuple[str, int, str]]) -> Path:
    """Return a local folder with the files."""
    if store.is_local:
        return Path(store.full_path(folder))
    pin = Pin(store.uri(folder), tuple((name, size, sha) for name, size, sha in files))
    source = Store(pin.uri, store.options)
    return fetch_files(source, pin, node_cache() / "items", UNUSED_S)
