"""Exact top-K: blocked products with a running best, never users x items in memory.

    rows, scores = top_k([(queries, items)], overlaps, seen, k=50)

Tensor suffixes: B users, I items of the domain, C items of a block, W width, K list length, S seen
pairs, N pairs that overlap or columns that are looked at, M groups of columns.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class NarrowItems(Protocol):
    """Items' columns in fewer bits, which bring their own product."""

    def score(
        self, queries_BW: Tensor, bounds: tuple[int, int], scores_BC: Tensor, is_first: bool
    ) -> None:
        """Write, or add where others were first, the products with items start..stop-1."""


@dataclass(frozen=True)
class SomeRows:
    """Some rows of a matrix, read when a block of them is asked for: never all of them at once."""

    rows_IW: "Tensor | SomeRows"
    index_N: Tensor

    def __len__(self) -> int:
        return len(self.index_N)

    def __getitem__(self, asked: slice | Tensor) -> Tensor:
        return self.rows_IW[self.index_N[asked]]


Products = Sequence[tuple[Tensor, Tensor | SomeRows]]

SparseScores = tuple[Tensor, Tensor, Tensor]

LeftOut = Callable[[int, int], Tensor]
"""(start, stop) of a block: which of its items are no candidates, bool, (B, C) or (1, C)."""

SCORES_A_BLOCK = {"cpu": 1 << 22, "cuda": 1 << 26}
"""Scores held at once, by device; twice as many where a domain is one block by that, and nothing
has to be sorted into blocks or merged. On CPUs other sizes were slower."""

FEWEST_ITEMS = 8_192
"""In a block, however many users there are."""

MOST_BETTER = 4
"""Times a list's length: where more of a later block beat a list, all of it is looked at."""

SMALLEST_GROUP = 4
"""Items; groups of fewer save nothing over looking at every score."""


def top_k(
    products: Products,
    overlaps: Sequence[SparseScores],
    seen_S2: Tensor,
    k: int,
    items_a_block: int | None = None,
    left_out: Sequence[LeftOut] = (),
    narrowed: Sequence[NarrowItems | None] = (),
) -> tuple[Tensor, Tensor]:
    """Return each user's k best unseen items by the sum of products and overlaps, best first.

    Args:
        products: (users' columns (B, W), items' columns (I, W)) float32 each, at least one; W may
            differ from pair to pair.
        overlaps: (users, items, values) (N,) each: what is added to single pairs, no pair twice;
            fastest where they are sorted by user.
        seen_S2: int64 (user, item) pairs that are left out, in any order.
        k: items a user, at least 1.
        items_a_block: items whose scores are held at once, default: so many as SCORES_A_BLOCK has
            room for; the result does not depend on it but where two scores differ by less than the
            rounding of a product.
        left_out: what else no list may hold.
        narrowed: what is multiplied in place of the items' columns of each product, where it is
            not None; scores are no longer exact.

    Returns:
        Item rows (B, K) int64 and scores (B, K) float32 with K = min(k, I); equal scores: the lower
        row first. Where fewer items are left, the rest is -1 and -inf.

    Raises:
        ValueError: k is below 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    users, size = len(products[0][0]), len(products[0][1])
    if items_a_block is None:
        held = SCORES_A_BLOCK[products[0][0].device.type] // max(users, 1)
        items_a_block = max(size if size <= 2 * held else held, FEWEST_ITEMS)
    best_scores_BK = products[0][0].new_full((users, 0), -torch.inf)
    best_rows_BK = torch.zeros_like(best_scores_BK, dtype=torch.int64)
    # One memory for all blocks: fresh pages cost more than the product that fills them.
    buffer = products[0][0].new_empty(users * min(items_a_block, size))
    users_S, rows_S = seen_S2[:, 0], seen_S2[:, 1]
    sparse = [_by_block(overlap, size, items_a_block) for overlap in overlaps]
    for start in range(0, size, items_a_block):
        stop = min(start + items_a_block, size)
        scores_BC = buffer[: users * (stop - start)].view(users, stop - start)
        added = [next(blocks) for blocks in sparse]
        _score_block(products, added, (start, stop), scores_BC, narrowed)
        inside_S = (rows_S >= start) & (rows_S < stop)
        scores_BC[users_S[inside_S], rows_S[inside_S] - start] = -torch.inf
        for of_block in left_out:
            scores_BC.masked_fill_(of_block(start, stop), -torch.inf)
        found = _better_of_block(scores_BC, best_scores_BK, k)
        scores_BK, rows_BK = found or _best_of_block(scores_BC, min(k, stop - start))
        # Earlier blocks come first, so that a stable choice keeps the lower row where scores are
        # equal.
        merged_scores = torch.cat([best_scores_BK, scores_BK], 1)
        merged_rows = torch.cat([best_rows_BK, rows_BK + start], 1)
        best_scores_BK, places_BK = _stable_top_k(merged_scores, min(k, merged_scores.shape[1]))
        best_rows_BK = merged_rows.gather(1, places_BK)
    best_rows_BK = torch.where(best_scores_BK == -torch.inf, -1, best_rows_BK)
    return best_rows_BK, best_scores_BK


def _score_block(
    products: Products,
    overlaps: Sequence[SparseScores],
    bounds: tuple[int, int],
    scores_BC: Tensor,
    narrowed: Sequence[NarrowItems | None],
) -> None:
    """Write the scores of items start..stop-1; `overlaps` are of these alone."""
    start, stop = bounds
    for number, (queries_BW, items_IW) in enumerate(products):
        in_its_place = narrowed[number] if number < len(narrowed) else None
        if in_its_place is not None:
            in_its_place.score(queries_BW, bounds, scores_BC, is_first=not number)
        elif not number:
            torch.mm(queries_BW, items_IW[start:stop].T, out=scores_BC)
        else:
            scores_BC.addmm_(queries_BW, items_IW[start:stop].T)
    for users_N, items_N, values_N in overlaps:
        places_N = users_N * (stop - start) + items_N - start
        # No pair stands twice, so that the order of sums is no matter; twice as fast as `put_`.
        scores_BC.view(-1).scatter_add_(0, places_N, values_N)


def _by_block(overlap: SparseScores, size: int, items_a_block: int) -> Iterator[SparseScores]:
    """Yield what falls into each block of items; within a block the order stays."""
    if size <= items_a_block:
        yield overlap
        return
    blocks = -(-size // items_a_block)
    blocks_N = overlap[1] // items_a_block
    # Short keys sort three times as fast.
    keys_N = blocks_N.short() if blocks <= torch.iinfo(torch.int16).max else blocks_N
    order_N = keys_N.argsort(stable=True)
    counts = torch.bincount(blocks_N, minlength=blocks).tolist()
    yield from zip(*(part[order_N].split(counts) for part in overlap), strict=True)


def _best_of_block(scores_BC: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return what `_stable_top_k` does, looking at few of the scores.

    The block is cut into groups of columns. Where exactly k groups have a maximum that reaches the
    k-th best of all maxima, the k best scores lie in them: k scores reach it, and no other group
    has one that does. Users for whom more groups reach it (ties) are looked at as a whole.
    """
    size = scores_BC.shape[1]
    group = _group_size(size, k)
    groups = size // group
    if group < SMALLEST_GROUP or k >= groups:
        return _stable_top_k(scores_BC, k)
    # Column c is in group c % groups, so that maxima are taken over rows of memory.
    whole = group * groups
    maxima_BM = scores_BC[:, :whole].unflatten(1, (group, groups)).amax(1)
    highest_BK, groups_BK = maxima_BM.topk(k, dim=1)
    within_G1 = groups * torch.arange(group, device=scores_BC.device).unsqueeze(1)
    columns_BN = (groups_BK.unsqueeze(1) + within_G1).flatten(1)
    left_over = torch.arange(whole, size, device=scores_BC.device).expand(len(scores_BC), -1)
    columns_BN = torch.cat([columns_BN, left_over], 1)
    scores_BK, columns_BK = _top_k(scores_BC.gather(1, columns_BN), columns_BN, scores_BC, k)
    lowest_B1 = highest_BK[:, -1:]
    many_B = ((maxima_BM >= lowest_B1).sum(1) > k) & (lowest_B1 > -torch.inf).squeeze(1)
    tied = torch.nonzero(many_B).squeeze(1)
    if len(tied):
        scores_BK[tied], columns_BK[tied] = _stable_top_k(scores_BC[tied], k)
    return scores_BK, columns_BK


def _better_of_block(
    scores_BC: Tensor, best_scores_BK: Tensor, k: int
) -> tuple[Tensor, Tensor] | None:
    """Return the scores (B, N) above each user's k-th best of earlier blocks, and their columns.

    Lower columns first; past the end -inf. None where a user has no k best yet, or very many are
    above. After the first block few are: only groups of columns whose maximum is are looked into.
    """
    users, size = scores_BC.shape
    if not users or best_scores_BK.shape[1] < k:
        return None
    lowest_B1 = best_scores_BK[:, -1:]
    group = max(_group_size(size, k), 1)
    groups = size // group
    whole = group * groups
    maxima_BM = scores_BC[:, :whole].unflatten(1, (group, groups)).amax(1)
    users_N, groups_N = (maxima_BM > lowest_B1).nonzero(as_tuple=True)
    within_G = groups * torch.arange(group, device=scores_BC.device)
    places_N = (users_N * size + groups_N).unsqueeze(1) + within_G
    left_N = (scores_BC[:, whole:] > lowest_B1).nonzero()
    places_N = torch.cat([places_N.flatten(), left_N[:, 0] * size + whole + left_N[:, 1]])
    # By user, then by column.
    values_N = scores_BC.flatten()[places_N]
    places_N = places_N[values_N > lowest_B1.flatten()[places_N // size]].sort().values
    users_N = places_N // size
    counts_B = torch.bincount(users_N, minlength=users)
    most = int(counts_B.max())
    if most > MOST_BETTER * k:
        return None
    ranks_N = torch.arange(len(users_N), device=users_N.device)
    ranks_N = ranks_N - (counts_B.cumsum(0) - counts_B)[users_N]
    found_BN = scores_BC.new_full((users, most), -torch.inf)
    columns_BN = users_N.new_zeros((users, most))
    found_BN[users_N, ranks_N] = scores_BC.flatten()[places_N]
    columns_BN[users_N, ranks_N] = places_N % size
    return found_BN, columns_BN


def _group_size(columns: int, k: int) -> int:
    """Return the power of 2 that makes groups about as many as the columns of k groups."""
    return 1 << int(math.log2(max(columns / k, 1)) / 2)


def give_places(
    best: tuple[Tensor, Tensor], favoured: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return lists of the same length in which the favoured stand, in the order of their scores.

    They take the places of the lowest others; a favoured item that is there already takes none.

    Args:
        best: rows (B, K) int64 and scores (B, K) of `top_k`.
        favoured: rows (B, N) and scores (B, N), N <= K, no row twice in a list; -1 is none.

    >>> best = torch.tensor([[7, 3, 5]]), torch.tensor([[0.9, 0.8, 0.7]])
    >>> rows, scores = give_places(best, (torch.tensor([[3, 4]]), torch.tensor([[0.8, 0.1]])))
    >>> rows.tolist()
    [[7, 3, 4]]
    """
    length = best[0].shape[1]
    favoured_BN = favoured[0].unsqueeze(1)
    is_same_BKN = (best[0].unsqueeze(2) == favoured_BN) & (favoured_BN >= 0)
    is_favoured_BK = is_same_BKN.any(2)
    is_there_BN = is_same_BKN.any(1) | (favoured[0] < 0)
    rows_BM = torch.cat([best[0], favoured[0]], 1)
    scores_BM = torch.cat([best[1], favoured[1].masked_fill(is_there_BN, -torch.inf)], 1)
    must_BM = torch.cat([is_favoured_BK, ~is_there_BN], 1)
    _, kept_BK = _stable_top_k(torch.where(must_BM, torch.inf, scores_BM), length)
    rows_BK, order = rows_BM.gather(1, kept_BK).sort(dim=1)
    scores_BK, order = (
        scores_BM.gather(1, kept_BK).gather(1, order).sort(dim=1, descending=True, stable=True)
    )
    return torch.where(scores_BK == -torch.inf, -1, rows_BK.gather(1, order)), scores_BK


def _stable_top_k(scores_BC: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return each row's k best and their columns; equal scores keep the order of columns."""
    columns_BC = torch.arange(scores_BC.shape[1], device=scores_BC.device).expand_as(scores_BC)
    return _top_k(scores_BC, columns_BC, scores_BC, k)


def _top_k(
    among_BN: Tensor, columns_BN: Tensor, scores_BC: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """Return the k best of some of the columns, which hold all that reach the k-th best score.

    `torch.topk` takes any of equal scores. Where more reach the k-th best than k, the first of
    those that equal it are taken instead.
    """
    scores_BK, places_BK = among_BN.topk(k, dim=1)
    columns_BK = columns_BN.gather(1, places_BK)
    lowest_B1 = scores_BK[:, -1:]
    many_B = ((among_BN >= lowest_B1).sum(1) > k) & (lowest_B1 > -torch.inf).squeeze(1)
    tied = torch.nonzero(many_B).squeeze(1)
    if len(tied):
        columns_BK[tied] = _first_best(scores_BC[tied], lowest_B1[tied], k)
        scores_BK[tied] = scores_BC[tied].gather(1, columns_BK[tied])
    columns_BK, order = columns_BK.sort(dim=1)
    scores_BK, places = scores_BK.gather(1, order).sort(dim=1, descending=True, stable=True)
    return scores_BK, columns_BK.gather(1, places)


def _first_best(scores_BC: Tensor, lowest_B1: Tensor, k: int) -> Tensor:
    """Return the columns (B, k) above the k-th best score, and the first that equal it."""
    above_BC, equal_BC = scores_BC > lowest_B1, scores_BC == lowest_B1
    wanted_B1 = k - above_BC.sum(1, keepdim=True)
    chosen_BC = above_BC | (equal_BC & (equal_BC.cumsum(1) <= wanted_B1))
    return torch.nonzero(chosen_BC)[:, 1].view(len(scores_BC), k)
