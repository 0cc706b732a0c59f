"""Shortlists of a past moment: what the fusion learns from.

At a moment, a sample of the users who did something new in the days after it, and for each of them
the candidates that any simple weighing of the parts would put on top, with all that was known then.

    lists = gather(GatherJob(...), moment)      # one Ray task a moment

Tensor suffixes: B users of a block, C items of the domain, S shortlist, P parts, G item features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from crossrec.data.cooccurrence import KINDS, count_neighbours
from crossrec.data.histories import Prepared, read_catalogue
from crossrec.data.itemstate import STATE_NAMES, EventStates, states_on_day
from crossrec.data.replay import Activity, Histories, before, new_events, select_users
from crossrec.encode import read_vectors
from crossrec.model.checkpoint import Model, load_model
from crossrec.model.fusion import PARTS, Shortlists, join
from crossrec.model.inference import (
    ItemState,
    UserState,
    item_state,
    user_overlaps,
    user_state,
)
from crossrec.model.overlap import NeighbourTable
from crossrec.storage import Store

SHORTLIST = 320
"""Candidates of a list; the probes rarely find more."""

PROBE_DEPTH = 40
POPULAR_DEPTH = 50
PROBES: tuple[Mapping[str, float], ...] = (
    {"text": 1.0},
    {"text": 1.0, "log_popularity_3d": 0.1},
    {"text": 1.0, "log_popularity_24d": 0.1},
    {"text_domain": 1.0, "log_popularity_6d": 0.1},
    {"ever": 0.15},
    {"ever": 0.15, "log_popularity_6d": 0.1},
    {"ever": 0.15, "log_popularity_24d": 0.1},
    {"ever": 0.1, "text": 1.0, "log_popularity_6d": 0.1},
    {"ever": 0.1, "text": 1.0, "log_popularity_96d": 0.1},
    {"recent": 0.15, "log_popularity_24d": 0.05},
    {"lately": 0.15, "text": 0.05},
    {"lately": 0.15, "log_popularity_6d": 0.1},
)
SEQUENCE_PROBES: tuple[Mapping[str, float], ...] = (
    {"sequence": 1.0},
    {"sequence": 1.0, "log_popularity_6d": 0.05},
    {"sequence": 1.0, "log_popularity_48d": 0.05},
)
POPULAR = ("log_popularity_1.5d", "log_popularity_6d", "log_popularity_24d", "log_popularity_96d")
"""Whose PROBE_DEPTH best unseen items of a user are on the list, and whose POPULAR_DEPTH best items
of all."""

SCORES_A_BLOCK = 2**21
"""Users of a block times items of the domain; a dozen matrices of 8 MB are held."""


@dataclass(frozen=True)
class GatherJob:
    """What all moments share.

    store, prepared: the input. model, vectors: folders of a model and of the text vectors of its
    backbone. pairs: users of a domain and moment at most. seed: of their sample.
    """

    store: Store
    prepared: Prepared
    model: str
    vectors: str
    pairs: int
    seed: int

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """(start, stop) of the catalogue rows of each domain."""
        return [(domain.start, domain.stop) for domain in self.prepared.domains]


@dataclass(frozen=True)
class Moment:
    """Events of days before `start` are known, those of start..stop-1 are what came next.

    with_sequence: whether the model has seen nothing of `start` and later, so that its queries say
    something.
    """

    start: int
    stop: int
    with_sequence: bool


def gather(
    job: GatherJob, moment: Moment, histories: Histories, activity: Activity, events: EventStates
) -> Shortlists | None:
    """Return the shortlists of a moment in which something was chosen; None if there are none.

    Args:
        job: shared by all moments.
        moment: the moment.
        histories: of a sample of users, with all their events.
        activity: of the whole input.
        events: `EventStates.of(activity)`.
    """
    known = before(histories, moment.start)
    users, rows = new_events(histories, moment.start, moment.stop)
    if not len(users):
        return None
    neighbours = count_neighbours(known, moment.start, job.prepared.items, job.bounds)
    states_IG = torch.from_numpy(states_on_day(activity, moment.start))
    model = load_model(job.store, job.model)
    items = _items(job, model)
    found = []
    for index, (start, stop) in enumerate(job.bounds):
        inside = (rows >= start) & (rows < stop)
        asked = _sample(np.unique(users[inside]), job.pairs, job.seed + moment.start)
        place = np.full(len(histories.lengths), -1)
        place[asked] = np.arange(len(asked))
        tables = {kind: NeighbourTable.of(neighbours[kind][index]) for kind in KINDS}
        block = max(1, SCORES_A_BLOCK // max(stop - start, 1))
        for first in range(0, len(asked), block):
            chosen = np.zeros(len(histories.lengths), bool)
            chosen[asked[first : first + block]] = True
            part = select_users(known, chosen)
            state = user_state(model.recommender, items, part, events, job.bounds, moment.start)
            parts = _parts(state, items, tables, index, (start, stop), moment.with_sequence)
            next_ = inside & chosen[users]
            pairs = (place[users[next_]] - first, rows[next_].astype(np.int64) - start)
            short = _shorten(parts, states_IG[start:stop], _seen(part, start, stop), pairs)
            found.append(_describe(short, state, index))
    lists = join(found) if found else None
    if lists is None or not lists.is_next_BS.any():
        return None
    return lists.take(torch.nonzero(lists.is_next_BS.any(1)).squeeze(1))


def _items(job: GatherJob, model: Model) -> ItemState:
    """Return the vectors of the whole catalogue."""
    parts = []
    for domain in job.prepared.domains:
        ids, counts = model.id_rows(read_catalogue(job.store, job.prepared, domain.name))
        text_IT = torch.from_numpy(read_vectors(job.store, job.vectors, domain.name))
        ids_I, counts_I = torch.from_numpy(ids), torch.from_numpy(counts)
        parts.append(item_state(model.recommender, text_IT, ids_I, counts_I))
    return ItemState(
        torch.cat([part.texts_IW for part in parts]), torch.cat([part.vectors_IW for part in parts])
    )


def _sample(users: np.ndarray, size: int, seed: int) -> np.ndarray:
    if len(users) <= size:
        return users
    return np.sort(np.random.default_rng(seed).choice(users, size, replace=False))


@torch.inference_mode()
def _parts(
    state: UserState,
    items: ItemState,
    tables: Mapping[str, NeighbourTable],
    index: int,
    bounds: tuple[int, int],
    with_sequence: bool,
) -> dict[str, Tensor]:
    """Return every part of the score as a matrix (B, C)."""
    rows = slice(*bounds)
    texts_CW = items.texts_IW[rows]
    parts = {
        "text": state.profile_BW @ texts_CW.T,
        "text_domain": state.domain_profile_BDW[:, index] @ texts_CW.T,
    }
    for part, overlap in user_overlaps(state, tables).items():
        parts[part] = torch.zeros_like(parts["text"])
        parts[part][overlap.users_N, overlap.items_N] = overlap.values_N
    if with_sequence:
        parts["sequence"] = state.queries_BDW[:, index] @ items.vectors_IW[rows].T
    return parts


def _seen(histories: Histories, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    inside = (histories.rows >= start) & (histories.rows < stop)
    return histories.owners[inside], histories.rows[inside].astype(np.int64) - start


@dataclass(frozen=True)
class _Shortened:
    """Parts (B, S) by name, item features (B, S, G), what is next and what is real (B, S)."""

    parts: Mapping[str, Tensor]
    items_BSG: Tensor
    is_next_BS: Tensor
    is_real_BS: Tensor


@torch.inference_mode()
def _shorten(
    parts: Mapping[str, Tensor],
    states_CG: Tensor,
    seen: tuple[np.ndarray, np.ndarray],
    following: tuple[np.ndarray, np.ndarray],
) -> _Shortened:
    """Keep the candidates that any probe puts on top."""
    shape = parts["text"].shape
    states = dict(zip(STATE_NAMES, states_CG.unbind(1), strict=True))
    is_next_BC = torch.zeros(shape, dtype=torch.bool)
    is_next_BC[following] = True
    is_seen_BC = torch.zeros(shape, dtype=torch.bool)
    is_seen_BC[seen] = True
    depth = min(PROBE_DEPTH, shape[1])
    tops = []
    for probe in PROBES + (SEQUENCE_PROBES if "sequence" in parts else ()):
        scores_BC = sum(
            weight * (parts[name] if name in parts else states[name])
            for name, weight in probe.items()
        )
        assert isinstance(scores_BC, Tensor)
        tops.append(scores_BC.masked_fill(is_seen_BC, -torch.inf).topk(depth, dim=1).indices)
    for name in POPULAR:
        popular_S = states[name].topk(min(POPULAR_DEPTH, shape[1])).indices
        tops.append(popular_S.expand(shape[0], -1))
    columns_BS, is_real_BS = _merge(tops)
    is_real_BS &= ~is_seen_BC.gather(1, columns_BS)
    return _Shortened(
        {name: part.gather(1, columns_BS) for name, part in parts.items()},
        states_CG[columns_BS],
        is_next_BC.gather(1, columns_BS) & is_real_BS,
        is_real_BS,
    )


def _merge(tops: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Merge lists of columns, best ranks first, each column once.

    Returns:
        Columns (B, S), and which of them are no padding.
    """
    longest = max(top.shape[1] for top in tops)
    padded = [torch.nn.functional.pad(top, (0, longest - top.shape[1]), value=-1) for top in tops]
    columns_BN = torch.stack(padded, 2).flatten(1)
    sorted_BN, order_BN = columns_BN.sort(dim=1, stable=True)
    is_first_BN = torch.ones_like(sorted_BN, dtype=torch.bool)
    is_first_BN[:, 1:] = sorted_BN[:, 1:] != sorted_BN[:, :-1]
    is_real_BN = torch.zeros_like(is_first_BN).scatter(1, order_BN, is_first_BN & (sorted_BN >= 0))
    kept_BS = is_real_BN.byte().argsort(dim=1, descending=True, stable=True)[:, :SHORTLIST]
    columns_BS, is_real_BS = columns_BN.gather(1, kept_BS), is_real_BN.gather(1, kept_BS)
    missing = SHORTLIST - columns_BS.shape[1]
    columns_BS = torch.nn.functional.pad(columns_BS, (0, missing))
    return columns_BS.clamp(min=0), torch.nn.functional.pad(is_real_BS, (0, missing))


def _describe(short: _Shortened, state: UserState, index: int) -> Shortlists:
    """Put a block's candidates and users together; half precision is plenty for learning."""
    features_BF, domain_BD = state.asked(index)
    parts_BSP = torch.stack([short.parts[part] for part in PARTS], -1)
    sequence_BS = short.parts.get("sequence", torch.zeros_like(parts_BSP[..., 0]))
    return Shortlists(
        parts_BSP.half(),
        sequence_BS.half(),
        short.items_BSG.half(),
        short.is_next_BS,
        short.is_real_BS,
        features_BF,
        domain_BD,
    )
