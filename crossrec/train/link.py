"""From scores to probabilities: how often users did what a score said, at an unseen moment.

    learn_link(job, moment, fusion, histories, activity, events)      # sets fusion.link_D2

By domain p = sigmoid(slope * score + level) is fitted to whether a user had the item's first event
within the moment's days (Platt 1999), over all pairs of a sample of all users: what they did and
the top of their lists in full, of the rest a sample that stands for all of it.

Tensor suffixes: B users, C candidates, S pairs.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from crossrec.data.itemstate import EventStates
from crossrec.data.replay import Activity, Histories
from crossrec.model.fusion import IS_NEW, PARTS, RELATED, Fusion
from crossrec.train.moments import Block, GatherJob, Moment, look_at

TOP = 50
REST = 150
"""Pairs a user: the best ones, and a sample of the others."""

FEWEST_EVENTS = 20
"""With fewer in a domain the link is that of all domains."""

LOWEST_SLOPE = 1e-3
"""A link never turns the order round."""

NEWTON_STEPS = 50


def learn_link(
    job: GatherJob,
    moment: Moment,
    fusion: Fusion,
    histories: Histories,
    activity: Activity,
    events: EventStates,
) -> None:
    """Fit the fusion's link at a moment; arguments as for `moments.look_at`.

    Where nobody does anything new the link stays as it is.
    """
    draw = torch.Generator().manual_seed(job.seed)
    found: dict[int, list[Tensor]] = defaultdict(list)
    for block in look_at(job, moment, histories, activity, events, everyone=True):
        found[block.index].append(_pairs(fusion, block, draw))
    if not found:
        return
    by_domain = {index: torch.cat(parts, 1).numpy() for index, parts in found.items()}
    pooled = np.concatenate(list(by_domain.values()), 1)
    for index in range(len(job.bounds)):
        own = by_domain.get(index, pooled)
        link = fit_platt(*(own if own[1].sum() >= FEWEST_EVENTS else pooled))
        fusion.link_D2[index] = torch.tensor(link)


@torch.inference_mode()
def _pairs(fusion: Fusion, block: Block, draw: torch.Generator) -> Tensor:
    """Return (3, S): scores, whether it came to be, and how many pairs each stands for."""
    scores_BC = _scores(fusion, block)
    size = scores_BC.shape[1]
    is_next_BC = torch.zeros(scores_BC.shape, dtype=torch.bool)
    is_next_BC[block.following] = True
    scores_BC[block.seen] = -torch.inf
    top_BC = torch.zeros_like(is_next_BC)
    top_BC.scatter_(1, scores_BC.topk(min(TOP, size), dim=1).indices, True)
    is_real_BC = scores_BC > -torch.inf
    is_kept_BC = is_real_BC & (top_BC | is_next_BC)
    chance = min(1.0, REST / max(size, 1))
    is_drawn_BC = torch.rand(scores_BC.shape, generator=draw) < chance
    is_drawn_BC &= is_real_BC & ~is_kept_BC
    chosen_BC = is_kept_BC | is_drawn_BC
    weights_BC = torch.where(is_kept_BC, 1.0, 1 / chance)
    columns = (scores_BC, is_next_BC.float(), weights_BC)
    return torch.stack([column[chosen_BC] for column in columns])


def _scores(fusion: Fusion, block: Block) -> Tensor:
    """Return the scores (B, C) of all candidates, as `score.scorer` adds them up."""
    side = fusion.user_side(*block.state.asked(block.index))
    scores_BC = side.columns_BR @ fusion.item_side(block.states_CG).T
    for number, part in enumerate(PARTS):
        scores_BC += side.weights_BP[:, number : number + 1] * block.parts[part]
    if fusion.related is not None:
        is_new_C = block.states_CG[:, IS_NEW] > 0
        scores_BC += fusion.related_weights(is_new_C) * block.parts[RELATED]
    if "sequence" in block.parts:
        scores_BC += side.sequence_B.unsqueeze(1) * block.parts["sequence"]
    return scores_BC


def fit_platt(
    scores_S: np.ndarray, outcomes_S: np.ndarray, weights_S: np.ndarray
) -> tuple[float, float]:
    """Return slope and level that make sigmoid(slope * score + level) most likely.

    By Newton's method in float64, with half a success and half a failure added so that a level
    exists whatever was seen (Platt 1999).

    >>> scores = np.array([0.0, 0.0, 1.0, 1.0])
    >>> slope, level = fit_platt(scores, np.array([1, 0, 1, 0]), np.array([1e4, 3e4, 3e4, 1e4]))
    >>> round(slope, 2), round(level, 2)
    (2.2, -1.1)
    """
    scores, outcomes, weights = (
        np.asarray(part, np.float64) for part in (scores_S, outcomes_S, weights_S)
    )
    centre, scale = np.average(scores, weights=weights), max(scores.std(), 1e-9)
    columns = np.stack([(scores - centre) / scale, np.ones_like(scores)], 1)
    rate = (outcomes @ weights + 0.5) / (weights.sum() + 1)
    fitted = np.array([0.0, np.log(rate / (1 - rate))])
    # Holds a slope back that separates all successes from all failures.
    ridge = np.diag([1e-3, 1e-9])
    for _ in range(NEWTON_STEPS):
        chances = 1 / (1 + np.exp(-columns @ fitted))
        gradient = columns.T @ (weights * (outcomes - chances)) - ridge @ fitted
        curvature = (columns * (weights * chances * (1 - chances))[:, None]).T @ columns + ridge
        step = np.linalg.solve(curvature, gradient)
        # Far steps overshoot where all chances are near 0.
        fitted += step / max(1.0, np.abs(step).max())
        if np.abs(step).max() < 1e-9:
            break
    slope = max(fitted[0] / scale, LOWEST_SLOPE)
    return float(slope), float(fitted[1] - slope * centre)


def describe_links(fusion: Fusion, domains: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return slope and level by domain, for finetune.json."""
    links = zip(domains, fusion.link_D2.tolist(), strict=True)
    return {name: {"slope": slope, "level": level} for name, (slope, level) in links}
