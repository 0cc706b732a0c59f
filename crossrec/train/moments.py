"""Past moments: what was known of a sample of users, of all items, and what the users did next.

    for block in look_at(GatherJob(...), moment, histories, activity, events): ...

Tensor suffixes: B users of a block, C items of the domain, G item features.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from crossrec.data.cooccurrence import count_neighbours
from crossrec.data.histories import Prepared, read_catalogue
from crossrec.data.itemstate import EventStates, states_on_day
from crossrec.data.relations import related_neighbours
from crossrec.data.replay import (
    Activity,
    Histories,
    before,
    new_events,
    newest_events,
    select_users,
)
from crossrec.model.checkpoint import Model, load_model
from crossrec.model.fusion import RELATED
from crossrec.model.inference import (
    ItemState,
    UserState,
    item_state,
    user_overlaps,
    user_state,
)
from crossrec.model.overlap import NeighbourTable
from crossrec.schema import ITEM_KEY
from crossrec.storage import Store
from crossrec.vectorcache import read_vectors

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
    something. is_newest: leave-one-out's moment: what came next is each user's newest event, where
    it lies in those days, all events before it are known, and it is looked at from day `stop`.
    """

    start: int
    stop: int
    with_sequence: bool
    is_newest: bool = False

    @property
    def day(self) -> int:
        """The day that is predicted from."""
        return self.stop if self.is_newest else self.start

    def cut(self, histories: Histories) -> tuple[Histories, tuple[np.ndarray, np.ndarray]]:
        """Return what was known, and users and catalogue rows of what came next."""
        if self.is_newest:
            return newest_events(histories, self.start, self.stop)
        return before(histories, self.start), new_events(histories, self.start, self.stop)


@dataclass(frozen=True)
class Block:
    """Some users and all candidates of a domain at a moment.

    index: of the domain. users: their numbers (B,) among the histories. parts: of the score, (B, C)
    by name. states_CG: of the items. seen, following: pairs of user and candidate, what the users
    had and what they did next.
    """

    index: int
    users: np.ndarray
    state: UserState
    parts: Mapping[str, Tensor]
    states_CG: Tensor
    seen: tuple[np.ndarray, np.ndarray]
    following: tuple[np.ndarray, np.ndarray]


def look_at(
    job: GatherJob,
    moment: Moment,
    histories: Histories,
    activity: Activity,
    events: EventStates,
    everyone: bool = False,
) -> Iterator[Block]:
    """Yield blocks of the users of each domain at a moment; nothing where nobody did anything new.

    Args:
        job: shared by all moments.
        moment: the moment.
        histories: of a sample of users, with all their events.
        activity: of the whole input; at leave-one-out's moment without the newest events.
        events: `EventStates.of(activity)`.
        everyone: sample from all users that had an event, not only from those who do something new
            in the domain.
    """
    known, (users, rows) = moment.cut(histories)
    if not len(users):
        return
    neighbours = count_neighbours(known, moment.day, job.prepared.items, job.bounds)
    if job.prepared.with_relations:
        neighbours[RELATED] = related_neighbours(job.store, job.prepared)
    states_IG = torch.from_numpy(states_on_day(activity, moment.day))
    model = load_model(job.store, job.model)
    items = whole_catalogue(job.store, job.prepared, job.vectors, model)
    for index, (start, stop) in enumerate(job.bounds):
        inside = (rows >= start) & (rows < stop)
        candidates = np.flatnonzero(known.lengths) if everyone else np.unique(users[inside])
        asked = _sample(candidates, job.pairs, job.seed + moment.start)
        place = np.full(len(histories.lengths), -1)
        place[asked] = np.arange(len(asked))
        tables = {kind: NeighbourTable.of(found[index]) for kind, found in neighbours.items()}
        size = max(1, SCORES_A_BLOCK // max(stop - start, 1))
        for first in range(0, len(asked), size):
            chosen = np.zeros(len(histories.lengths), bool)
            whom = asked[first : first + size]
            chosen[whom] = True
            part = select_users(known, chosen)
            state = user_state(model.recommender, items, part, events, job.bounds, moment.day)
            parts = _parts(state, items, tables, index, (start, stop), moment.with_sequence)
            next_ = inside & chosen[users]
            pairs = (place[users[next_]] - first, rows[next_].astype(np.int64) - start)
            seen = _seen(part, start, stop)
            yield Block(index, whom, state, parts, states_IG[start:stop], seen, pairs)


def whole_catalogue(store: Store, prepared: Prepared, vectors: str, model: Model) -> ItemState:
    """Return the vectors of all items; `vectors`: folder of those of their texts."""
    parts = []
    for domain in prepared.domains:
        ids, counts = model.id_rows(read_catalogue(store, prepared, domain.name, ITEM_KEY))
        text_IT = torch.from_numpy(read_vectors(store, vectors, domain.name))
        ids_I, counts_I = torch.from_numpy(ids), torch.from_numpy(counts)
        parts.append(item_state(model.recommender, text_IT, ids_I, counts_I))
    return ItemState.joined(parts)


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
