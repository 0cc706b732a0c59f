"""From scores to probabilities: how often users did what a score said, at an unseen moment.

    learn_link(job, moment, fusion, histories, activity, events)      # sets fusion.link_D2

By domain p = sigmoid(slope * score + level) is fitted to whether a user had the item's first event
within the moment's days (Platt 1999), over the first TOP pairs of each user's list: what is
published. Not over all pairs, though these are a fairer sample of them: that an item is among a
user's best says more than its score does, since scores of different users have different levels.
On the demo of README a link over all pairs was right over all (.00058 said, .00058 came true), but
in the first 50 it said .0050 where .0080 came true; over lists it says .0084.

Tensor suffixes: B users, C candidates, K places of a list, S pairs.
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
"""Pairs a user, the best ones: as many as `score.top_k` lists by default."""

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
    found: dict[int, list[Tensor]] = defaultdict(list)
    for block in look_at(job, moment, histories, activity, events, everyone=True):
        found[block.index].append(_pairs(fusion, block))
    if not found:
        return
    by_domain = {index: torch.cat(parts, 1).numpy() for index, parts in found.items()}
    pooled = np.concatenate(list(by_domain.values()), 1)
    for index in range(len(job.bounds)):
        own = by_domain.get(index, pooled)
        link = fit_platt(*(own if own[1].sum() >= FEWEST_EVENTS else pooled))
        fusion.link_D2[index] = torch.tensor(link)


@torch.inference_mode()
def _pairs(fusion: Fusion, block: Block) -> Tensor:
    """Return (2, S): scores of the first places of lists, and whether it came to be."""
    scores_BC = _scores(fusion, block)
    is_next_BC = torch.zeros(scores_BC.shape, dtype=torch.bool)
    is_next_BC[block.following] = True
    scores_BC[block.seen] = -torch.inf
    best_BK, places_BK = scores_BC.topk(min(TOP, scores_BC.shape[1]), dim=1)
    is_real_BK = best_BK > -torch.inf
    columns = (best_BK, is_next_BC.gather(1, places_BK).float())
    return torch.stack([column[is_real_BK] for column in columns])


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


def fit_platt(scores_S: np.ndarray, outcomes_S: np.ndarray) -> tuple[float, float]:
    """Return slope and level that make sigmoid(slope * score + level) most likely.

    By Newton's method in float64, with half a success and half a failure added so that a level
    exists whatever was seen (Platt 1999).

    >>> scores, outcomes = np.repeat([0.0, 1.0], 4), np.array([1, 0, 0, 0, 1, 1, 1, 0])
    >>> slope, level = fit_platt(np.tile(scores, 9_999), np.tile(outcomes, 9_999))
    >>> round(slope, 2), round(level, 2)
    (2.2, -1.1)
    """
    scores, outcomes = (np.asarray(part, np.float64) for part in (scores_S, outcomes_S))
    centre, scale = scores.mean(), max(scores.std(), 1e-9)
    columns = np.stack([(scores - centre) / scale, np.ones_like(scores)], 1)
    rate = (outcomes.sum() + 0.5) / (len(outcomes) + 1)
    fitted = np.array([0.0, np.log(rate / (1 - rate))])
    # Holds a slope back that separates all successes from all failures.
    ridge = np.diag([1e-3, 1e-9])
    for _ in range(NEWTON_STEPS):
        chances = 1 / (1 + np.exp(-columns @ fitted))
        gradient = columns.T @ (outcomes - chances) - ridge @ fitted
        curvature = (columns * (chances * (1 - chances))[:, None]).T @ columns + ridge
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
