"""The item side of all scores: every candidate's vectors and columns, computed once a run.

    runs/<run_id>/items/<name>/domain=<d>.safetensors
        texts, vectors (items, W), columns_<system> (items, R)   float32
        <kind>.offsets, <kind>.columns, <kind>.weights            neighbours, as CSR
        new                                                       items without any event
    runs/<run_id>/items/<name>/event_states.safetensors           data.itemstate.EventStates

    build_items(store, prepared, model_folder, day, NIGHT, folder)
    items = load_items(store, prepared, folder)

A *system* is one way to weigh the parts of the score: the model itself, the model without a part,
the untrained backbone, a popularity window. The hold-out judges them all with the code that scores
the night.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from crossrec.data.cooccurrence import KINDS, count_neighbours
from crossrec.data.histories import Prepared, read_catalogue
from crossrec.data.itemstate import STATE_NAMES, EventStates, states_on_day
from crossrec.data.replay import Activity, before, load_activity, sample_histories
from crossrec.encode import encode_catalogue
from crossrec.model.checkpoint import (
    load_fusions,
    load_model,
    tensors_from_bytes,
    tensors_to_bytes,
)
from crossrec.model.fusion import VARIANTS, Fusion
from crossrec.model.inference import ItemState, item_state
from crossrec.model.overlap import NeighbourTable
from crossrec.model.source import BackboneSource
from crossrec.schema import domain_folder
from crossrec.storage import Store
from crossrec.vectorcache import read_vectors

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
        folder: where to; `systems.json` is written last.
    """
    model = load_model(store, model_folder)
    fusions = load_fusions(store, model_folder)
    vectors = encode_catalogue(store, prepared, BackboneSource(store, model.settings, model_folder))
    activity = load_activity(store, prepared)
    states_IG = torch.from_numpy(states_on_day(activity, day))
    events = EventStates.of(activity)
    parts = {name: torch.from_numpy(part) for name, part in vars(events).items()}
    store.write_bytes(f"{folder}/event_states.safetensors", tensors_to_bytes(parts))
    bounds = [(domain.start, domain.stop) for domain in prepared.domains]
    sample = before(sample_histories(store, prepared), day)
    neighbours = count_neighbours(sample, day, prepared.items, bounds)
    columns = {system: _columns(system, fusions, states_IG, activity, day) for system in systems}
    for index, domain in enumerate(prepared.domains):
        ids, counts = model.id_rows(read_catalogue(store, prepared, domain.name))
        text_IT = torch.from_numpy(read_vectors(store, vectors, domain.name))
        state = item_state(
            model.recommender, text_IT, torch.from_numpy(ids), torch.from_numpy(counts)
        )
        tensors = {"texts": state.texts_IW, "vectors": state.vectors_IW}
        tensors |= {
            f"columns_{system}": part[domain.start : domain.stop].contiguous()
            for system, part in columns.items()
        }
        is_new_I = states_IG[domain.start : domain.stop, STATE_NAMES.index("is_new")] > 0
        tensors["new"] = torch.nonzero(is_new_I).squeeze(1)
        for kind, found in neighbours.items():
            tensors |= {
                f"{kind}.{name}": torch.from_numpy(part)
                for name, part in vars(found[index]).items()
            }
        path = f"{folder}/{domain_folder(domain.name)}.safetensors"
        store.write_bytes(path, tensors_to_bytes(tensors))
    store.write_json(f"{folder}/systems.json", {"systems": list(systems), "model": model_folder})


@torch.inference_mode()
def _columns(
    system: str, fusions: Mapping[str, Fusion], states_IG: Tensor, activity: Activity, day: int
) -> Tensor:
    """Return what a system knows of every item beside its vectors, (I, R)."""
    if system in fusions:
        return fusions[system].item_side(states_IG)
    if system not in WINDOWS_DAYS:
        return torch.zeros(len(states_IG), 1)
    window = WINDOWS_DAYS[system]
    counts = activity.counts(-(2**31) if window is None else day - window, day)
    return torch.from_numpy(counts).float().unsqueeze(1)


def load_items(store: Store, prepared: Prepared, folder: str) -> Items:
    """Read what `build_items` wrote."""
    built = store.read_json(f"{folder}/systems.json")
    columns: dict[str, dict[str, Tensor]] = {name: {} for name in built["systems"]}
    neighbours: dict[str, dict[str, NeighbourTable]] = {kind: {} for kind in KINDS}
    new: dict[str, Tensor] = {}
    texts, vectors = [], []
    for domain in prepared.domains:
        path = f"{folder}/{domain_folder(domain.name)}.safetensors"
        tensors = tensors_from_bytes(store.read_bytes(path))
        texts.append(tensors["texts"])
        vectors.append(tensors["vectors"])
        new[domain.name] = tensors["new"]
        for name in columns:
            columns[name][domain.name] = tensors[f"columns_{name}"]
        for kind in KINDS:
            table = (tensors[f"{kind}.{name}"] for name in ("offsets", "columns", "weights"))
            neighbours[kind][domain.name] = NeighbourTable(*table)
    fusions = {
        name: fusion
        for name, fusion in load_fusions(store, built["model"]).items()
        if name in columns
    }
    parts = tensors_from_bytes(store.read_bytes(f"{folder}/event_states.safetensors"))
    events = EventStates(parts["keys"].numpy(), parts["cells"].numpy())
    state = ItemState(torch.cat(texts), torch.cat(vectors))
    return Items(state, columns, neighbours, fusions, events, new)
