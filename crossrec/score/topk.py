"""Exact top-K: blocked products with a running best, never users x items in memory.

    rows, scores = top_k(queries, items, bias, seen, k=50)

Tensor suffixes: B users, I items of the domain, C items of a block, W width, K list length, S seen
pairs.
"""

import torch
from torch import Tensor

ITEMS_A_BLOCK = 16_384
"""Items a block: with 512 users, 32 MB of scores."""


def top_k(
    queries_BW: Tensor,
    items_IW: Tensor,
    bias_I: Tensor,
    seen_S2: Tensor,
    k: int,
    items_a_block: int = ITEMS_A_BLOCK,
) -> tuple[Tensor, Tensor]:
    """Return each user's k best unseen items by `queries @ items.T + bias`, best first.

    Args:
        queries_BW: float32.
        items_IW: float32, candidates.
        bias_I: float32, added to every user's score of the item.
        seen_S2: int64 (user, item) pairs that are left out, in any order.
        k: items a user, at least 1.
        items_a_block: items whose scores are held at once; the result does not depend on it but
            where two scores differ by less than the rounding of a product.

    Returns:
        Item rows (B, K) int64 and scores (B, K) float32 with K = min(k, I); equal scores: the lower
        row first. Where fewer items are unseen, the rest is -1 and -inf.

    Raises:
        ValueError: k is below 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    size = len(items_IW)
    best_scores_BK = queries_BW.new_full((len(queries_BW), 0), -torch.inf)
    best_rows_BK = torch.zeros_like(best_scores_BK, dtype=torch.int64)
    users_S, rows_S = seen_S2[:, 0], seen_S2[:, 1]
    for start in range(0, size, items_a_block):
        stop = min(start + items_a_block, size)
        scores_BC = torch.addmm(bias_I[start:stop], queries_BW, items_IW[start:stop].T)
        inside_S = (rows_S >= start) & (rows_S < stop)
        scores_BC[users_S[inside_S], rows_S[inside_S] - start] = -torch.inf
        scores_BK, rows_BK = _stable_top_k(scores_BC, min(k, stop - start))
        # Earlier blocks come first, so that a stable choice keeps the lower row where scores are
        # equal.
        merged_scores = torch.cat([best_scores_BK, scores_BK], 1)
        merged_rows = torch.cat([best_rows_BK, rows_BK + start], 1)
        best_scores_BK, places_BK = _stable_top_k(merged_scores, min(k, merged_scores.shape[1]))
        best_rows_BK = merged_rows.gather(1, places_BK)
    best_rows_BK = torch.where(best_scores_BK == -torch.inf, -1, best_rows_BK)
    return best_rows_BK, best_scores_BK


def _stable_top_k(scores_BC: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return each row's k best and their columns; equal scores keep the order of columns.

    `torch.topk` takes any of equal scores. Rows where more columns reach the k-th score than k are
    therefore sorted as a whole; they are few, unless many items have nothing that tells them apart.
    """
    scores_BK, columns_BK = scores_BC.topk(k, dim=1)
    reaching_B = (scores_BC >= scores_BK[:, -1:]).sum(1)
    tied = torch.nonzero((reaching_B > k) & (scores_BK[:, -1] > -torch.inf)).squeeze(1)
    if len(tied):
        sorted_scores, sorted_columns = scores_BC[tied].sort(dim=1, descending=True, stable=True)
        scores_BK[tied], columns_BK[tied] = sorted_scores[:, :k], sorted_columns[:, :k]
    columns_BK, order = columns_BK.sort(dim=1)
    scores_BK, places = scores_BK.gather(1, order).sort(dim=1, descending=True, stable=True)
    return scores_BK, columns_BK.gather(1, places)
