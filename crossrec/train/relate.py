"""What relations between items count (`data.relations`): the weights that they earn, or none.

    weigh_relations(fusion, lists, seed)      # sets fusion.related, of items with events and of new

A weight is one number, so that all of a grid are tried by the measure itself. New items are ranked
among themselves too, since the last places of a list are theirs, and have a weight of their own:
nothing else but the text tells them apart. What a weight gains is measured on users that did not
choose it, and so much of it is kept as that is sure (`fit.Earned`).

Tensor suffixes: B lists, S items.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from crossrec.model.fusion import IS_NEW, PARTS, Fusion, Shortlists, scores
from crossrec.runlog import log
from crossrec.train.fit import Earned, measure, ndcg_of

STEPS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, -0.05, -0.1, -0.2, -0.4, -0.8)
"""Weights that are tried, in units of how far apart the other parts put the items of a list
(`_spread`), which grows as they learn; of equally good ones the first. One related event is up to
log 2."""

FEWEST_LISTS = 50
"""With fewer nothing is chosen."""


def weigh_relations(fusion: Fusion, lists: Shortlists, seed: int) -> None:
    """Give the fusion the weights of relations that they earn on shortlists of past moments.

    Args:
        fusion: all else learned; knows of relations.
        lists: of moments before what is judged.
        seed: of the halves that users are divided into.
    """
    assert fusion.related is not None
    fusion.related = torch.zeros(2)
    grid = [step * _spread(fusion, lists) for step in STEPS]
    for place, name in enumerate(("items with events", "new items")):
        earned, weight = _earn(fusion, lists, place, seed, grid)
        fusion.related = fusion.related.clone()
        fusion.related[place] = earned.share * weight
        said = name, weight, 100 * earned.share, earned.gain, earned.error
        log.info("finetune: relations of %s: weight %.2f, kept %.0f %%, gain %.4f (%.4f)", *said)


def _earn(
    fusion: Fusion, lists: Shortlists, place: int, seed: int, grid: Sequence[float]
) -> tuple[Earned, float]:
    """Return what a weight gains for users who did not choose it, and the one that all choose."""
    measured, whose_B = _measured(fusion, lists, place)
    if len(whose_B) < FEWEST_LISTS:
        return Earned(0.0, 0.0), 0.0
    gains_NB = torch.stack([measured(weight) for weight in grid])
    gains_NB = gains_NB - gains_NB[0]
    users, whose_B = whose_B.unique(return_inverse=True)
    order = torch.randperm(len(users), generator=torch.Generator().manual_seed(seed))
    is_first_B = (order < len(users) // 2)[whose_B]
    gain_B = torch.zeros(len(whose_B))
    for half_B in (is_first_B, ~is_first_B):
        chosen = int(gains_NB[:, half_B].sum(1).argmax())
        gain_B[~half_B] = gains_NB[chosen, ~half_B]
    return measure(gain_B, whose_B), grid[int(gains_NB.sum(1).argmax())]


@torch.no_grad()
def _spread(fusion: Fusion, lists: Shortlists) -> float:
    """Return the standard deviation of a list's scores, its median over lists."""
    base_BS = scores(fusion, lists)
    is_real_BS = base_BS > -torch.inf
    count_B = is_real_BS.sum(1).clamp(min=1)
    base_BS = base_BS.masked_fill(~is_real_BS, 0.0)
    mean_B1 = (base_BS.sum(1) / count_B).unsqueeze(1)
    squares_BS = (base_BS - mean_B1).square().masked_fill(~is_real_BS, 0.0)
    return float((squares_BS.sum(1) / count_B).sqrt().median())


def _measured(
    fusion: Fusion, lists: Shortlists, place: int
) -> tuple[Callable[[float], Tensor], Tensor]:
    """Return what gives each list's NDCG at a weight, and whose lists they are.

    Of the weight of new items: of whole lists, and of their new items alone where one was chosen.
    """
    with torch.no_grad():
        base_BS = scores(fusion, lists)
    is_new_BS = lists.items_BSG[..., IS_NEW] > 0
    concerned_BS = is_new_BS if place else ~is_new_BS
    related_BS = lists.parts_BSP[..., len(PARTS)].float() * concerned_BS
    if not place:
        return lambda weight: ndcg_of(
            base_BS + weight * related_BS, lists.is_next_BS
        ), lists.whose_B
    index = torch.nonzero((lists.is_next_BS & is_new_BS).any(1)).squeeze(1)
    new = replace(lists.take(index), is_next_BS=(lists.is_next_BS & is_new_BS)[index])
    among_BS = base_BS[index].masked_fill(~is_new_BS[index], -torch.inf)

    def measured(weight: float) -> Tensor:
        whole_B = ndcg_of(base_BS + weight * related_BS, lists.is_next_BS)
        new_B = ndcg_of(among_BS + weight * related_BS[index], new.is_next_BS)
        return torch.cat([whole_B, new_B])

    return measured, torch.cat([lists.whose_B, new.whose_B])
