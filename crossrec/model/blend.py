"""Choosing how much text, sequence and popularity count, by NDCG@10 on the validation slice.

Likelihood spends itself on the long tail and gives the top of the list away, so the weights of the
parts are chosen by the metric itself: a grid search over a shortlist that holds every candidate any
weighting would put on top.

Tensor suffixes: P pairs, C candidates of the domain, S shortlist, H half-lives, W model width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from crossrec.model.recommender import POPULARITY_FLOOR, Blend

HALF_LIVES_DAYS = (1.5, 3.0, 6.0, 12.0, 24.0, 48.0, 96.0, 384.0)
MIXES = ((1.0, 0.0), (1.0, 0.25), (1.0, 0.5), (1.0, 1.0), (0.5, 1.0), (0.25, 1.0), (0.0, 1.0))
"""Weights of (text, sequence) that are tried."""
POPULARITY_WEIGHTS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
K = 10
PROBES = (
    *tuple(
        (text, sequence, popularity, half_life)
        for text, sequence, popularity in (
            (1.0, 0.0, 0.05),
            (1.0, 0.0, 0.2),
            (0.0, 1.0, 0.05),
            (0.0, 1.0, 0.2),
            (1.0, 1.0, 0.1),
            (1.0, 1.0, 0.4),
        )
        for half_life in (2, 5)
    ),
    (1.0, 0.0, 0.0, 0),
    (0.0, 1.0, 0.0, 0),
)
PROBE_DEPTH = 24
POPULAR_DEPTH = 64
"""The shortlist of a pair: what each probe (text, sequence, popularity, half-life) puts on top of
its unseen items, and the most popular items at every half-life."""
PAIRS_A_BLOCK = 256


@dataclass(frozen=True)
class Slice:
    """The validation pairs of one domain.

    profile_PW, queries_PW: the untrained and the learned query. texts_CW, vectors_CW: the items'
    two vectors.
    popularity_HC: decayed popularity for each of HALF_LIVES_DAYS. seen: (pair, candidate) indices,
    int64 (2, n), of what the pair's user already has. relevant: the same for what they did next.
    """

    profile_PW: Tensor
    queries_PW: Tensor
    texts_CW: Tensor
    vectors_CW: Tensor
    popularity_HC: Tensor
    seen: Tensor
    relevant: Tensor


@dataclass(frozen=True)
class _Shortlist:
    text_PS: Tensor
    sequence_PS: Tensor
    log_popularity_HPS: Tensor
    gain_PS: Tensor
    ideal_P: Tensor


def choose_blends(
    slices: Mapping[str, Sequence[Slice]], with_sequence: bool = True
) -> tuple[dict[str, Blend], float]:
    """Return each domain's best weights and the NDCG@10 over all pairs that they reach together.

    A domain's choice maximises its own NDCG plus that of all pairs: a domain with few pairs follows
    the others.

    Args:
        slices: validation pairs by domain, one slice a moment: a weighting must serve on more than
            one day, or it follows whatever sold on the eve of the only one. A domain without pairs
            gets what is best for all, and all get the default where there is no pair anywhere.
        with_sequence: whether the learned query may be used; without it, this is the model before
            training.
    """
    mixes = MIXES if with_sequence else MIXES[:1]
    grid = list(product(mixes, POPULARITY_WEIGHTS, range(len(HALF_LIVES_DAYS))))
    pairs = torch.tensor(
        [sum(len(part.profile_PW) for part in parts) for parts in slices.values()],
        dtype=torch.float64,
    )
    if not pairs.sum():
        return dict.fromkeys(slices, Blend()), 0.0
    ndcg_DG = torch.zeros(len(slices), len(grid), dtype=torch.float64)
    for index, parts in enumerate(slices.values()):
        for part in parts:
            if len(part.profile_PW):
                share = len(part.profile_PW) / float(pairs[index])
                ndcg_DG[index] += share * _grid_ndcg(_shortlist(part), grid)
    overall_G = (pairs / pairs.sum()) @ ndcg_DG
    chosen: dict[str, Blend] = {}
    reached = 0.0
    for index, name in enumerate(slices):
        best = int((ndcg_DG[index] + overall_G).argmax())
        (text, sequence), popularity, half_life = grid[best]
        chosen[name] = Blend(text, sequence, popularity, HALF_LIVES_DAYS[half_life])
        reached += float(pairs[index] / pairs.sum() * ndcg_DG[index, best])
    return chosen, reached


def _shortlist(part: Slice) -> _Shortlist:
    """Gather, for each pair, the unseen items that any of a few weightings puts on top."""
    log_popularity_HC = torch.log(part.popularity_HC + POPULARITY_FLOOR)
    popular_C = log_popularity_HC.topk(
        min(POPULAR_DEPTH, log_popularity_HC.shape[1]), dim=1
    ).indices.unique()
    blocks = []
    for start in range(0, len(part.profile_PW), PAIRS_A_BLOCK):
        rows = slice(start, start + PAIRS_A_BLOCK)
        text_PC = part.profile_PW[rows] @ part.texts_CW.T
        sequence_PC = part.queries_PW[rows] @ part.vectors_CW.T
        blocked_PC, gain_PC = (
            _mark(pairs, start, text_PC.shape) for pairs in (part.seen, part.relevant)
        )
        found = [popular_C.expand(len(text_PC), -1)]
        for text, sequence, popularity, half_life in PROBES:
            probe_PC = (
                text * text_PC + sequence * sequence_PC + popularity * log_popularity_HC[half_life]
            )
            probe_PC[blocked_PC] = -torch.inf
            found.append(probe_PC.topk(min(PROBE_DEPTH, probe_PC.shape[1]), dim=1).indices)
        columns_PS = torch.cat(found, 1).sort(dim=1).values
        repeated_PS = torch.zeros_like(columns_PS, dtype=torch.bool)
        repeated_PS[:, 1:] = columns_PS[:, 1:] == columns_PS[:, :-1]
        repeated_PS |= blocked_PC.gather(1, columns_PS)
        text_PS = text_PC.gather(1, columns_PS).masked_fill(repeated_PS, -torch.inf)
        sequence_PS = sequence_PC.gather(1, columns_PS).masked_fill(repeated_PS, -torch.inf)
        # A repeat has no gain either: a domain of few items leaves places that repeats fill up.
        gain_PS = gain_PC.gather(1, columns_PS) & ~repeated_PS
        blocks.append(
            (text_PS, sequence_PS, log_popularity_HC[:, columns_PS], gain_PS, gain_PC.sum(1))
        )
    text_PS, sequence_PS, gain_PS = (torch.cat([block[k] for block in blocks]) for k in (0, 1, 3))
    relevant_P = torch.cat([block[4] for block in blocks]).clamp(max=K)
    discount_K = 1 / torch.log2(torch.arange(2, K + 2, dtype=torch.float64))
    ideal_P = discount_K.cumsum(0)[relevant_P.long() - 1]
    return _Shortlist(
        text_PS, sequence_PS, torch.cat([block[2] for block in blocks], 1), gain_PS, ideal_P
    )


def _mark(pairs: Tensor, start: int, shape: torch.Size) -> Tensor:
    """Return a bool matrix, true at the (pair, candidate) indices inside the block."""
    inside = (pairs[0] >= start) & (pairs[0] < start + shape[0])
    marked = torch.zeros(shape, dtype=torch.bool)
    marked[pairs[0, inside] - start, pairs[1, inside]] = True
    return marked


def _grid_ndcg(part: _Shortlist, grid: Sequence[tuple[tuple[float, float], float, int]]) -> Tensor:
    """Return the mean NDCG@10 of every weighting, (G,) float64."""
    discount_K = 1 / torch.log2(torch.arange(2, K + 2, dtype=torch.float64))
    result_G = torch.zeros(len(grid), dtype=torch.float64)
    for index, ((text, sequence), popularity, half_life) in enumerate(grid):
        scores_PS = popularity * part.log_popularity_HPS[half_life]
        # A masked entry is -inf in both parts; 0 * -inf would be NaN, so an unused part is left
        # out.
        for weight, values_PS in ((text, part.text_PS), (sequence, part.sequence_PS)):
            if weight:
                scores_PS = scores_PS + weight * values_PS
        top_PK = scores_PS.topk(min(K, scores_PS.shape[1]), dim=1).indices
        dcg_P = (part.gain_PS.gather(1, top_PK) * discount_K[: top_PK.shape[1]]).sum(1)
        result_G[index] = (dcg_P / part.ideal_P).mean()
    return result_G
