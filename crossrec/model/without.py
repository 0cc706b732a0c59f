"""Users as they are, and without each one of their newest events: what leave-one-out asks for.

    without = users_without(recommender, items, histories, states, bounds, day)
    without.profile_BVW[:, 0]     # of all events, as `inference.user_state` has it
    without.profile_BVW[:, 3]     # the same without the third newest event

Sums over events are products with a matrix of weights by age, a row for each event that is left
out; all that is older is then one event younger. So all but the sequence (`model.leave_out`) is
exactly what `user_state` says of the shorter history. By what a user's parts are weighed
(`features_BF`, `counts_BD`) is that of all events in every version: those weights move all items
alike.

Tensor suffixes: B users, A events by age (0 is the newest), V versions of a user (0: all events,
1 + a: without that of age a), D domains, F features, W width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from crossrec.data.itemstate import EventStates
from crossrec.data.replay import Histories, pad
from crossrec.data.userstate import domain_counts, user_features
from crossrec.model.inference import (
    LONG_DECAY,
    LONG_EVENTS,
    ItemState,
    asked_of,
    domain_of_rows,
    to_batch,
)
from crossrec.model.leave_out import hidden_without
from crossrec.model.recommender import RECENT_DECAY, RECENT_EVENTS, HistoryBatch, Recommender

Bounds = Sequence[tuple[int, int]]
Array = np.ndarray


@dataclass(frozen=True)
class UsersWithout:
    """What `inference.UserState` holds, of all versions of B users.

    rows_BA: catalogue rows of the newest events, int64, -1 past the end. queries_BDVW, offsets_BDV:
    zeros without the sequence. lasting_VA, recent_VA: weights of events in overlaps.
    """

    rows_BA: Tensor
    profile_BVW: Tensor
    domain_profile_BDVW: Tensor
    queries_BDVW: Tensor
    offsets_BDV: Tensor
    features_BF: Tensor
    counts_BD: Tensor
    lasting_VA: Tensor
    recent_VA: Tensor

    @cached_property
    def same(self) -> tuple[Tensor, Tensor] | None:
        """Which events are of the same item, (B, A, A), and which of one that a newer event is of.

        None where no user has an item twice.
        """
        is_event_B1A = (self.rows_BA >= 0).unsqueeze(1)
        is_same_BAA = (self.rows_BA.unsqueeze(1) == self.rows_BA.unsqueeze(2)) & is_event_B1A
        is_again_BA = is_same_BAA.tril(-1).any(2)
        return (is_same_BAA, is_again_BA) if is_again_BA.any() else None

    def asked(self, domain: int) -> tuple[Tensor, Tensor]:
        """Return what a fusion asks for, as `UserState.asked`."""
        return asked_of(self.features_BF, self.counts_BD, domain)


def weights_without(ages: int, most: int, decay: float) -> Tensor:
    """Return decay ** age of the `most` newest events, (A + 1, A): row 1 + a without age a.

    >>> weights_without(3, most=2, decay=0.5)
    tensor([[1.0000, 0.5000, 0.0000],
            [0.0000, 1.0000, 0.5000],
            [1.0000, 0.0000, 0.5000],
            [1.0000, 0.5000, 0.0000]])
    """
    ages_A = torch.arange(ages)
    left_out_V1 = torch.arange(-1, ages).unsqueeze(1)
    ages_VA = ages_A - ((left_out_V1 >= 0) & (ages_A > left_out_V1)).long()
    weights_VA = torch.where(ages_VA < most, decay ** ages_VA.float(), 0.0)
    return weights_VA.masked_fill(ages_A == left_out_V1, 0.0)


@dataclass(frozen=True)
class _Newest:
    """The newest events of B users by age, int64 each.

    rows_BA: -1 past the end. days_BA: of the events. since_BV: days from the newest event of each
    version to the day that is predicted, 0 for a user who is left without one.
    """

    rows_BA: Array
    days_BA: Array
    since_BV: Array

    @classmethod
    def of(cls, histories: Histories, day: int) -> "_Newest":
        # One more than weighs anything: it moves up where one is left out.
        newest = pad(histories, LONG_EVENTS + 1)
        ages = newest.rows.shape[1] - 1
        places_BA = np.maximum(newest.lengths[:, None] - np.arange(ages), 0)
        rows_BA, days_BA = (
            np.take_along_axis(part, places_BA, 1).astype(np.int64)
            for part in (newest.rows, newest.days)
        )
        since_BV = np.repeat(day - days_BA[:, :1], 1 + ages, 1)
        second_B = day - days_BA[:, min(1, ages - 1)]
        since_BV[:, 1] = np.where(histories.lengths > 1, second_B, 0)
        return cls(rows_BA, days_BA, since_BV)


@torch.inference_mode()
def users_without(
    recommender: Recommender,
    items: ItemState,
    histories: Histories,
    states: EventStates,
    bounds: Bounds,
    day: int,
    with_sequence: bool = True,
) -> UsersWithout:
    """Return the versions of B users; arguments as in `inference.user_state`.

    Each user has an event. Of more than LONG_EVENTS + 1 the older ones are in every version.
    """
    device, newest = items.vectors_IW.device, _Newest.of(histories, day)
    users, ages = newest.rows_BA.shape
    domains_BA = domain_of_rows(newest.rows_BA, bounds)
    is_in_BDA = np.stack([domains_BA == domain for domain in range(len(bounds))], 1)
    rows_BA = torch.from_numpy(newest.rows_BA).to(device)
    read = min(RECENT_EVENTS, recommender.settings.max_history)
    read_VA = weights_without(ages, read, RECENT_DECAY).to(device)
    lasting_VA = weights_without(ages, LONG_EVENTS, LONG_DECAY).to(device)
    texts_BAW = _of_events(items.texts_IW, rows_BA)
    texts_BDAW = texts_BAW.unsqueeze(1) * torch.from_numpy(is_in_BDA).to(device).unsqueeze(3)
    if with_sequence:
        learned_BVW = functional.normalize(read_VA @ _of_events(items.vectors_IW, rows_BA), dim=-1)
        since_BV = torch.from_numpy(newest.since_BV).to(device)
        asked = _questions(recommender, items, histories, bounds, learned_BVW, since_BV)
    else:
        nothing = items.vectors_IW.new_zeros(users, len(bounds), 1 + ages, 1)
        asked = nothing, nothing.squeeze(3)
    return UsersWithout(
        rows_BA,
        functional.normalize(read_VA @ texts_BAW, dim=-1),
        functional.normalize(lasting_VA @ texts_BDAW, dim=-1),
        *asked,
        torch.from_numpy(user_features(histories, states, day)).to(device),
        torch.from_numpy(domain_counts(histories, bounds)).to(device),
        lasting_VA,
        weights_without(ages, RECENT_EVENTS, RECENT_DECAY).to(device),
    )


def _of_events(items_IW: Tensor, rows_BA: Tensor) -> Tensor:
    """Return the vectors of events, (B, A, W); zeros where there is none."""
    return take_rows(items_IW, rows_BA.clamp(min=0)) * (rows_BA >= 0).unsqueeze(2)


def take_rows(items_IW: Tensor, rows_BN: Tensor) -> Tensor:
    """Return items_IW[rows_BN], (B, N, W); on a CPU four times as fast."""
    return items_IW.index_select(0, rows_BN.flatten()).view(*rows_BN.shape, -1)


def _questions(
    recommender: Recommender,
    items: ItemState,
    histories: Histories,
    bounds: Bounds,
    learned_BVW: Tensor,
    since_BV: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return what each version asks every domain for: queries (B, D, V, W), offsets (B, D, V)."""
    padded = pad(histories, recommender.settings.max_history)
    batch = to_batch(padded, bounds).to(learned_BVW.device)
    lengths_B = torch.from_numpy(padded.lengths).to(learned_BVW.device)
    history_BLW = take_rows(items.vectors_IW, batch.rows_BL.clamp(min=0))
    hidden_BPW = hidden_without(recommender, history_BLW, batch, lengths_B)
    ages_V = torch.arange(-1, since_BV.shape[1] - 1, device=lengths_B.device)
    places_BV = (lengths_B.unsqueeze(1) - ages_V).clamp(min=0)
    # Of all events, and of all that are read: nothing is left out.
    places_BV[:, 0] = 0
    hidden_BVW = hidden_BPW.gather(1, places_BV.unsqueeze(2).expand_as(learned_BVW))
    shape = len(bounds), *learned_BVW.shape
    domains = torch.arange(shape[0], device=lengths_B.device).repeat_interleave(since_BV.numel())
    hidden, learned = (part.expand(shape).flatten(0, 2) for part in (hidden_BVW, learned_BVW))
    since = since_BV.expand(shape[:3]).flatten()
    queries, offsets = recommender.questions(hidden, learned, domains, since)
    offsets_BDV = offsets.view(shape[:3]).transpose(0, 1)
    levels_BV = _levels(recommender, items, batch, places_BV)
    if levels_BV is not None:
        offsets_BDV = offsets_BDV + levels_BV.unsqueeze(1)
    return queries.view(shape).transpose(0, 1), offsets_BDV


def _levels(
    recommender: Recommender, items: ItemState, batch: HistoryBatch, places_BV: Tensor
) -> Tensor | None:
    """Return what users add to ratings without the event at a place (0: with all), (B, V)."""
    head, ratings_BL, levels_I = recommender.rating, batch.ratings_BL, items.levels_I
    if head is None or ratings_BL is None or levels_I is None:
        return None
    levels_BL = levels_I[batch.rows_BL.clamp(min=0)]
    left_BL, known_BL = head.left_over(ratings_BL, batch.domains_BL, levels_BL)
    left_BV = left_BL.sum(1, keepdim=True) - left_BL.gather(1, places_BV)
    known_BV = known_BL.sum(1, keepdim=True) - known_BL.long().gather(1, places_BV)
    return left_BV / (known_BV + head.shrinkage)
