"""Top-K by items of fewer bits: a shortlist, whose scores are then made anew in float32.

    sides = [narrow(items, "int8")]
    rows, scores = shortlist_top_k([(queries, items)], overlaps, seen, k=50, narrowed=sides)

Rounding to bfloat16 or int8 moves a score by less than a percent; the shortlist is half as long
again as the list, so that what belongs into the list is in it but for scores that hardly differ.

Tensor suffixes: B users, I items of the domain, W width, K list length, S shortlist length, N pairs
that overlap.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from crossrec.score.topk import LeftOut, NarrowItems, Products, SparseScores, top_k

MORE_AT_LEAST = 32
"""Places of a shortlist beyond the list."""


def shortlist_top_k(
    products: Products,
    overlaps: Sequence[SparseScores],
    seen_S2: Tensor,
    k: int,
    items_a_block: int | None = None,
    left_out: Sequence[LeftOut] = (),
    narrowed: Sequence[NarrowItems | None] = (),
) -> tuple[Tensor, Tensor]:
    """Do what `topk.top_k` does, by narrow products; the scores that it returns are float32.

    An item is missed, at the end of a list, only where more others than the shortlist has places
    to spare score within the rounding of narrow products.
    """
    length = k + max(MORE_AT_LEAST, k // 2)
    rows_BS, _ = top_k(products, overlaps, seen_S2, length, items_a_block, left_out, narrowed)
    scores_BS = score_pairs(products, overlaps, rows_BS)
    # By row, then stably by score: equal scores keep the lower row first.
    size = len(products[0][1])
    rows_BS, order = torch.where(rows_BS < 0, size, rows_BS).sort(dim=1)
    scores_BS, order = scores_BS.gather(1, order).sort(dim=1, descending=True, stable=True)
    rows_BK = rows_BS.gather(1, order)[:, :k]
    return torch.where(rows_BK == size, -1, rows_BK), scores_BS[:, :k]


def score_pairs(products: Products, overlaps: Sequence[SparseScores], rows_BS: Tensor) -> Tensor:
    """Return the scores (B, S) of some items of each user; -inf where the row is -1."""
    chosen_BS = rows_BS.clamp(min=0)
    scores_BS = torch.zeros(rows_BS.shape, device=rows_BS.device)
    for queries_BW, items_IW in products:
        scores_BS += torch.einsum("bw,bsw->bs", queries_BW, items_IW[chosen_BS])
    users = len(rows_BS)
    keys_BS = chosen_BS * users + torch.arange(users, device=rows_BS.device).unsqueeze(1)
    for users_N, items_N, values_N in overlaps:
        if not len(items_N):
            continue
        keys_N, order_N = (items_N * users + users_N).sort()
        places_BS = torch.searchsorted(keys_N, keys_BS).clamp(max=len(keys_N) - 1)
        is_there_BS = keys_N[places_BS] == keys_BS
        scores_BS += torch.where(is_there_BS, values_N[order_N][places_BS], 0.0)
    return scores_BS.masked_fill(rows_BS < 0, -torch.inf)
