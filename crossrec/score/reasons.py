"""Why an item is in a list: the items of its user's own history that raised its score most.

    reasons = find_reasons(scorer, histories, day, lists_by_domain, n=3)
    reasons["shop"]        # (B, K, n) catalogue rows of any domain, best reason first, -1 for none

What an event did to a score is the score minus that without the event (`model.without`): text,
neighbours and sequence, at the weights that the user has with all events. That the weights would
be others, too, moves all items of a list alike and says nothing of why one is in it. Only the
listed items are looked at, after top-K: (events + 1) x K scores a list. An item that a user had
several times counts with all of its events together.

Tensor suffixes: B users, A events by age, V versions of a user, D domains, K list length, I items
of the domain, W width, R columns, N reasons.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from crossrec.data.replay import Histories, select_users
from crossrec.model.fusion import OVERLAP_FLOOR, PARTS, RELATED
from crossrec.model.inference import LONG_EVENTS
from crossrec.model.overlap import neighbour_weights
from crossrec.model.without import UsersWithout, take_rows, users_without
from crossrec.score.lists import Lists
from crossrec.score.scorer import Scorer

USERS_AT_ONCE = 32
"""Users of about the same number of events. Of buckets of 125 users, twice as many were padded more
than they saved, half as many were slower, too (2026-11-27)."""

NUMBERS_AT_ONCE = 2**23
"""What the largest table of a batch may hold, where that leaves a user."""

LEAST = 1e-4
"""What moves a score by less is rounding."""

EXPLAINED = "model"
"""The system whose lists are explained."""


@torch.inference_mode()
def find_reasons(
    scorer: Scorer, histories: Histories, day: int, lists: Mapping[str, Lists], n: int
) -> dict[str, np.ndarray]:
    """Return the n best reasons of every listed item, by domain.

    Args:
        scorer: that made the lists.
        histories: B users; only events before `day`.
        day: the day that is predicted.
        lists: of the model, by domain.
        n: reasons an item at most, at least 1.

    Returns:
        Catalogue rows (B, K, N) int64, -1 past the end: an item that did not raise a score is no
        reason.
    """
    reasons = {name: np.full((*of.rows.shape, n), -1) for name, of in lists.items()}
    longest = max((of.rows.shape[1] for of in lists.values()), default=0)
    for chosen_B in _alike(scorer, histories.lengths, longest):
        users = versions_of(scorer, histories, chosen_B, day)
        for name, of in lists.items():
            rows_BK = torch.from_numpy(of.rows[chosen_B]).to(scorer.device)
            moved_BAK = moved(scorer, users, name, rows_BK)
            reasons[name][chosen_B] = _best(moved_BAK, users.rows_BA, n).cpu().numpy()
        for name, of in lists.items():
            reasons[name][of.rows < 0] = -1
    return reasons


def _alike(scorer: Scorer, lengths: np.ndarray, longest: int) -> Iterator[np.ndarray]:
    """Yield users who have events, of about as many events together."""
    of_version = max(longest, len(scorer.domains) * scorer.state.vectors_IW.shape[1])
    of_user = max(domain.stop - domain.start for domain in scorer.domains) // 2
    order = np.argsort(-lengths, kind="stable")[: np.count_nonzero(lengths)]
    while len(order):
        versions = 1 + min(int(lengths[order[0]]), LONG_EVENTS + 1)
        fitting = NUMBERS_AT_ONCE // max(versions * of_version, of_user)
        size = max(1, min(USERS_AT_ONCE, fitting))
        yield np.sort(order[:size])
        order = order[size:]


def versions_of(
    scorer: Scorer, histories: Histories, chosen_B: np.ndarray, day: int
) -> UsersWithout:
    """Return some users with and without each of their events; `chosen_B` ascends."""
    is_chosen = np.zeros(len(histories.lengths), bool)
    is_chosen[chosen_B] = True
    return users_without(
        scorer.recommender,
        scorer.state,
        select_users(histories, is_chosen),
        scorer.events,
        scorer.bounds,
        day,
        scorer.has_sequence(EXPLAINED),
    )


def moved(scorer: Scorer, users: UsersWithout, name: str, rows_BK: Tensor) -> Tensor:
    """Return by how much events raised the scores of listed items, (B, A, K).

    Of several events of one item the newest has what all of them did, the others nothing.
    """
    scores_BVK = version_scores(scorer, users, name, rows_BK)
    moved_BAK: Tensor = scores_BVK[:, :1] - scores_BVK[:, 1:]
    moved_BAK.masked_fill_((users.rows_BA < 0).unsqueeze(2), 0.0)
    if users.same is not None:
        is_same_BAA, is_again_BA = users.same
        moved_BAK = is_same_BAA.float() @ moved_BAK
        moved_BAK.masked_fill_(is_again_BA.unsqueeze(2), 0.0)
    return moved_BAK


def _best(moved_BAK: Tensor, rows_BA: Tensor, n: int) -> Tensor:
    """Return the catalogue rows of the n events that raised each score most, (B, K, N)."""
    best = []
    for _ in range(n):
        highest_B1K, ages_B1K = moved_BAK.max(1, keepdim=True)
        rows_BK = rows_BA.gather(1, ages_B1K.squeeze(1))
        best.append(torch.where(highest_B1K.squeeze(1) >= LEAST, rows_BK, -1))
        moved_BAK.scatter_(1, ages_B1K, 0.0)
    return torch.stack(best, 2)


@torch.inference_mode()
def version_scores(scorer: Scorer, users: UsersWithout, name: str, rows_BK: Tensor) -> Tensor:
    """Return the scores (B, V, K) of listed items by each version of their users.

    Those of version 0 are what `Scorer.score` gives. What stands for -1 says nothing.
    """
    index = scorer.index[name]
    domain = scorer.domains[index]
    inside_BK = rows_BK.clamp(min=0)
    queries_BVW, offsets_BV = users.queries_BDVW[:, index], users.offsets_BDV[:, index]
    rows_of_BK = domain.start + inside_BK
    vectors_BWK = take_rows(scorer.state.vectors_IW, rows_of_BK).transpose(1, 2)
    if scorer.recommender.rating is not None:
        scores_BVK: Tensor = queries_BVW @ vectors_BWK + offsets_BV.unsqueeze(2)
        levels_I = scorer.state.levels_I
        return scores_BVK if levels_I is None else scores_BVK + levels_I[rows_of_BK].unsqueeze(1)
    side = scorer.fusions[EXPLAINED].user_side(*users.asked(index))
    weights_PB11 = side.weights_BP.T[..., None, None]
    weights = dict(zip(PARTS, weights_PB11, strict=True))
    text_BVW = weights["text"] * users.profile_BVW
    text_BVW += weights["text_domain"] * users.domain_profile_BDVW[:, index]
    texts_BWK = take_rows(scorer.state.texts_IW, rows_of_BK).transpose(1, 2)
    scores_BVK = text_BVW @ texts_BWK
    columns_BKR = take_rows(scorer.columns[EXPLAINED][name], inside_BK)
    scores_BVK += side.columns_BR.unsqueeze(1) @ columns_BKR.transpose(1, 2)
    if scorer.has_sequence(EXPLAINED):
        scores_BVK += (side.sequence_B[:, None, None] * queries_BVW) @ vectors_BWK
    near = {
        kind: neighbour_weights(table[name], users.rows_BA, rows_BK, domain.stop - domain.start)
        for kind, table in scorer.neighbours.items()
    }
    asked = [
        ("ever", "ever", users.lasting_VA),
        ("recent", "ever", users.recent_VA),
        ("lately", "lately", users.lasting_VA),
    ]
    fusion = scorer.fusions[EXPLAINED]
    if RELATED in near and fusion.related is not None:
        weights[RELATED] = fusion.related_weights(scorer.is_new[name][inside_BK]).unsqueeze(1)
        asked.append((RELATED, RELATED, users.lasting_VA))
    for part, kind, weights_VA in asked:
        overlap_BVK = (weights_VA / OVERLAP_FLOOR) @ near[kind]
        scores_BVK += weights[part] * overlap_BVK.log1p_()
    return scores_BVK
