"""From histories to queries: what validation, hold-out and the night all run.

    items = item_state(recommender, text_vectors, ids, counts)
    asked = user_queries(recommender, items, histories, bounds, day)
    users = user_state(recommender, items, histories, states, bounds, day)

Tensor suffixes: B users, D domains, E events, F features, I items, W model width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from crossrec.data.itemstate import EventStates
from crossrec.data.replay import Histories, PaddedHistories, pad
from crossrec.data.userstate import domain_counts, event_ages, user_features
from crossrec.model.fusion import RELATED
from crossrec.model.newest import encode_newest
from crossrec.model.overlap import NeighbourTable, Overlap, PastEvents, find_overlap
from crossrec.model.recommender import (
    RECENT_DECAY,
    RECENT_EVENTS,
    HistoryBatch,
    Recommender,
)
from crossrec.schema import RATING

LONG_EVENTS, LONG_DECAY = 200, 0.98
"""What a user is like in the long run: the newest 200 events, weighted 0.98 ** age in events."""

ITEMS_A_BLOCK = 65_536
"""Items whose vectors are computed at once."""


@dataclass(frozen=True)
class ItemState:
    """Both vectors of every catalogue item: untrained text and learned, (I, W) float32 each.

    levels_I: what each adds to a rating, in a model of ratings.
    """

    texts_IW: Tensor
    vectors_IW: Tensor
    levels_I: Tensor | None = None

    @classmethod
    def joined(cls, parts: Sequence["ItemState"]) -> "ItemState":
        """Return the items of one part after those of another."""
        levels = [part.levels_I for part in parts if part.levels_I is not None]
        return cls(
            torch.cat([part.texts_IW for part in parts]),
            torch.cat([part.vectors_IW for part in parts]),
            torch.cat(levels) if levels else None,
        )

    def to(self, device: torch.device) -> "ItemState":
        """Return the state on another device."""
        levels_I = None if self.levels_I is None else self.levels_I.to(device)
        return ItemState(self.texts_IW.to(device), self.vectors_IW.to(device), levels_I)


def domain_of_rows(rows: np.ndarray, bounds: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return the domain index of each catalogue row; the number of domains for row -1."""
    starts = np.array([start for start, _ in bounds])
    return np.where(rows >= 0, np.searchsorted(starts, rows, side="right") - 1, len(bounds))


def to_batch(padded: PaddedHistories, bounds: Sequence[tuple[int, int]]) -> HistoryBatch:
    """Return padded histories as tensors."""
    domains = domain_of_rows(padded.rows, bounds)
    ratings = padded.values.get(RATING)
    return HistoryBatch(
        torch.from_numpy(padded.rows),
        torch.from_numpy(domains),
        torch.from_numpy(padded.days),
        None if ratings is None else torch.from_numpy(ratings),
    )


@torch.inference_mode()
def item_state(
    recommender: Recommender, text_IT: Tensor, ids_I: Tensor, counts_I: Tensor
) -> ItemState:
    """Compute the vectors of all items, in blocks.

    Args:
        recommender: in evaluation mode.
        text_IT: text vectors, zero where an item has no text.
        ids_I: row in the id embedding, -1 for a new item.
        counts_I: float32 events in training.
    """
    texts, vectors = [], []
    for start in range(0, len(text_IT), ITEMS_A_BLOCK):
        rows = slice(start, start + ITEMS_A_BLOCK)
        texts.append(recommender.text_vectors(text_IT[rows]))
        vectors.append(
            recommender.item_vectors(text_IT[rows], ids_I[rows], torch.log1p(counts_I[rows]))
        )
    head = recommender.rating
    levels_I = None if head is None else head.item_levels(ids_I)
    return ItemState(torch.cat(texts), torch.cat(vectors), levels_I)


@dataclass(frozen=True)
class UserQueries:
    """What users ask every domain for.

    profile_BW: untrained. queries_BDW: learned; offsets_BD: added to their products with item
    vectors, as in `Recommender.questions`.
    """

    profile_BW: Tensor
    queries_BDW: Tensor
    offsets_BD: Tensor


@torch.inference_mode()
def user_queries(
    recommender: Recommender,
    items: ItemState,
    histories: Histories,
    bounds: Sequence[tuple[int, int]],
    day: int,
    with_sequence: bool = True,
) -> UserQueries:
    """Return what B users ask every domain for.

    Args:
        recommender: in evaluation mode.
        items: state of the whole catalogue, on the recommender's device.
        histories: B users; only events before `day` may be in it.
        bounds: (start, stop) of each domain's catalogue rows.
        day: the day that is predicted.
        with_sequence: without it, what is learned is zero and costs nothing.
    """
    device, max_history = items.vectors_IW.device, recommender.settings.max_history
    users = len(histories.lengths)
    newest = _newest(histories, min(RECENT_EVENTS, max_history), RECENT_DECAY, device)
    profile_BW = _mean_of_events(items.texts_IW, newest, users)
    if not with_sequence:
        nothing_BDW = profile_BW.new_zeros(users, len(bounds), items.vectors_IW.shape[1])
        return UserQueries(profile_BW, nothing_BDW, nothing_BDW.sum(2))
    padded = pad(histories, max_history)
    batch = to_batch(padded, bounds).to(device)
    lengths_B = torch.from_numpy(padded.lengths).to(device)
    users_B = torch.arange(users, device=device)
    hidden_BW = encode_newest(recommender, items.vectors_IW, batch, lengths_B)
    learned_BW = _mean_of_events(items.vectors_IW, newest, users)
    elapsed_B = torch.where(lengths_B > 0, day - batch.days_BL[users_B, lengths_B], 0)
    found = [
        recommender.questions(hidden_BW, learned_BW, torch.full_like(users_B, domain), elapsed_B)
        for domain in range(len(bounds))
    ]
    queries_BDW, offsets_BD = (torch.stack(parts, 1) for parts in zip(*found, strict=True))
    levels_BL = user_levels(recommender, items, batch)
    if levels_BL is not None:
        offsets_BD = offsets_BD + levels_BL[users_B, lengths_B].unsqueeze(1)
    return UserQueries(profile_BW, queries_BDW, offsets_BD)


def user_levels(recommender: Recommender, items: ItemState, batch: HistoryBatch) -> Tensor | None:
    """Return what users add to ratings after each event, (B, L); None where nothing is rated."""
    head, ratings_BL, levels_I = recommender.rating, batch.ratings_BL, items.levels_I
    if head is None or ratings_BL is None or levels_I is None:
        return None
    levels_BL = levels_I[batch.rows_BL.clamp(min=0)]
    return head.user_levels(ratings_BL, batch.domains_BL, levels_BL)


@dataclass(frozen=True)
class UserState:
    """What the fusion needs to know of B users on a day.

    profile_BW: untrained mean of the texts of recent events. domain_profile_BDW: the same of the
    events in each domain, over a longer time. queries_BDW, offsets_BD: as in UserQueries.
    features_BF: `data.userstate.user_features`. counts_BD: log(1 + events in the domain).
    lasting, recent: the events of all domains over a longer time, and the newest.
    """

    profile_BW: Tensor
    domain_profile_BDW: Tensor
    queries_BDW: Tensor
    offsets_BD: Tensor
    features_BF: Tensor
    counts_BD: Tensor
    lasting: PastEvents
    recent: PastEvents

    def asked(self, domain: int) -> tuple[Tensor, Tensor]:
        """Return the features (B, F + 1) and one-hot domain (B, D) that a fusion asks for."""
        return asked_of(self.features_BF, self.counts_BD, domain)


def asked_of(features_BF: Tensor, counts_BD: Tensor, domain: int) -> tuple[Tensor, Tensor]:
    """Return what `UserState.asked` does, of its features and counts."""
    one_hot_BD = torch.zeros_like(counts_BD)
    one_hot_BD[:, domain] = 1.0
    return torch.cat([features_BF, counts_BD[:, domain : domain + 1]], 1), one_hot_BD


@torch.inference_mode()
def user_state(
    recommender: Recommender,
    items: ItemState,
    histories: Histories,
    states: EventStates,
    bounds: Sequence[tuple[int, int]],
    day: int,
    with_sequence: bool = True,
) -> UserState:
    """Return the state of B users; arguments as in `user_queries`, `states` those of the input."""
    device = items.vectors_IW.device
    asked = user_queries(recommender, items, histories, bounds, day, with_sequence)
    lasting = _newest(histories, LONG_EVENTS, LONG_DECAY, device)
    recent = _newest(histories, RECENT_EVENTS, RECENT_DECAY, device)
    users = len(histories.lengths)
    profiles = []
    for start, stop in bounds:
        inside_E = (lasting.rows_E >= start) & (lasting.rows_E < stop)
        parts = lasting.owners_E, lasting.rows_E, lasting.weights_E
        inside = PastEvents(*(part[inside_E] for part in parts))
        profiles.append(_mean_of_events(items.texts_IW, inside, users))
    features_BF = torch.from_numpy(user_features(histories, states, day)).to(device)
    counts_BD = torch.from_numpy(domain_counts(histories, bounds)).to(device)
    return UserState(
        asked.profile_BW,
        torch.stack(profiles, 1),
        asked.queries_BDW,
        asked.offsets_BD,
        features_BF,
        counts_BD,
        lasting,
        recent,
    )


def user_overlaps(users: UserState, tables: Mapping[str, NeighbourTable]) -> dict[str, Overlap]:
    """Return how much each item of a domain overlaps with the users' events, by part of the score.

    Args:
        users: a batch.
        tables: neighbours in the domain, by kind.
    """
    asked = {
        "ever": (tables["ever"], users.lasting),
        "recent": (tables["ever"], users.recent),
        "lately": (tables["lately"], users.lasting),
    }
    if RELATED in tables:
        asked[RELATED] = tables[RELATED], users.lasting
    size = len(users.features_BF)
    return {part: find_overlap(table, past, size) for part, (table, past) in asked.items()}


def _mean_of_events(vectors_IW: Tensor, past: PastEvents, users: int) -> Tensor:
    """Return the unit mean (B, W) of the vectors of users' events; zeros for a user without any."""
    users_B = torch.arange(users, device=past.owners_E.device)
    summed_BW = functional.embedding_bag(
        past.rows_E,
        vectors_IW,
        torch.searchsorted(past.owners_E, users_B),
        mode="sum",
        per_sample_weights=past.weights_E,
    )
    return functional.normalize(summed_BW, dim=-1)


def _newest(histories: Histories, events: int, decay: float, device: torch.device) -> PastEvents:
    """Return each user's newest events, weighted by decay ** age in events."""
    ages = event_ages(histories)
    kept = ages < events
    weights = (decay ** ages[kept]).astype(np.float32)
    parts = (histories.owners[kept], histories.rows[kept].astype(np.int64), weights)
    return PastEvents(*(torch.from_numpy(part).to(device) for part in parts))
