"""Lists whose items differ: maximal marginal relevance over text vectors, in blocks of users.

    rows, scores = diversify(shortlist, texts_IW, k=50, weight=0.3)

A list is filled place by place. Next comes the item of the shortlist with the highest

    (1 - weight) * score - weight * spread * likeness

where likeness is the cosine, 0 at least, with the most alike item that stands above, and spread is
what lies between the first and the last score of the plain list, so that a weight means the same
whatever a model's scores are. That value is what the list says as its score: it never rises, since
nothing becomes less like what stands above. Source: Carbonell and Goldstein, The use of MMR,
diversity-based reranking for reordering documents and producing summaries, 1998.

Tensor suffixes: B users, S shortlist length, K list length, I items of the domain, W width.
"""

import torch
from torch import Tensor
from torch.nn import functional

TIMES = 4
"""Length of the shortlist by that of the list. What an item further down would have to make up in
likeness is more than there is, at weights that leave lists of use."""

USERS_A_BLOCK = 128
"""Users whose shortlists' vectors are held at once: 50 MB at 200 items of width 512."""


def diversify(
    shortlist: tuple[Tensor, Tensor],
    texts_IW: Tensor,
    k: int,
    weight: float,
    kept: tuple[Tensor, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return lists of the shortlist's items in their new order, with the values that made it.

    Args:
        shortlist: rows (B, S) int64, -1 past the end, and scores (B, S), best first.
        texts_IW: vectors of the domain's items; one that is zero is like no other.
        k: items a list at most.
        weight: from 0, the order of scores, to 1, as different as can be.
        kept: (N,) rows of items, of which so many get a place where the shortlist has them; they
            come last where they would not come earlier.

    Returns:
        Rows (B, K) int64 and values (B, K) with K = min(k, S); past the end -1 and -inf. Equal
        values: the one that stands higher in the shortlist.
    """
    rows_BS, scores_BS = shortlist
    is_kept_I = torch.zeros(len(texts_IW), dtype=torch.bool, device=rows_BS.device)
    places = 0
    if kept is not None:
        is_kept_I[kept[0]] = True
        places = kept[1]
    length = min(k, rows_BS.shape[1])
    found = [
        _diversify_block(rows, scores, texts_IW, is_kept_I, (length, places, weight))
        for rows, scores in zip(
            rows_BS.split(USERS_A_BLOCK), scores_BS.split(USERS_A_BLOCK), strict=True
        )
    ]
    rows_BK, values_BK = (torch.cat(parts) for parts in zip(*found, strict=True))
    return rows_BK, values_BK


def _diversify_block(
    rows_BS: Tensor,
    scores_BS: Tensor,
    texts_IW: Tensor,
    is_kept_I: Tensor,
    wanted: tuple[int, int, float],
) -> tuple[Tensor, Tensor]:
    """Do what `diversify` does; wanted: places of a list, those for kept items, the weight."""
    length, places, weight = wanted
    is_open_BS = rows_BS >= 0
    chosen_BS = rows_BS.clamp(min=0)
    vectors_BSW = functional.normalize(texts_IW[chosen_BS], dim=-1)
    is_kept_BS = is_kept_I[chosen_BS] & is_open_BS
    left_B = is_open_BS.sum(1).clamp(max=length)
    owed_B = is_kept_BS.sum(1).clamp(max=places)
    last_B1 = (left_B - 1).clamp(min=0).unsqueeze(1)
    spread_B1 = scores_BS[:, :1] - scores_BS.gather(1, last_B1)
    # Of users without any item: no less, so that nothing is undefined.
    spread_B1 = torch.where(is_open_BS[:, :1], spread_B1, 0.0)
    worth_BS = torch.where(is_open_BS, (1 - weight) * scores_BS, -torch.inf)
    likeness_BS = torch.zeros_like(worth_BS)
    found_rows, found_values = [], []
    for _ in range(length):
        values_BS = worth_BS - weight * spread_B1 * likeness_BS
        is_due_B1 = ((owed_B >= left_B) & (owed_B > 0)).unsqueeze(1)
        values_BS = values_BS.masked_fill(~is_open_BS | (is_due_B1 & ~is_kept_BS), -torch.inf)
        # The first of equal ones.
        next_B1 = values_BS.argmax(1, keepdim=True)
        is_there_B1 = left_B.unsqueeze(1) > 0
        found_rows.append(torch.where(is_there_B1, rows_BS.gather(1, next_B1), -1))
        found_values.append(torch.where(is_there_B1, values_BS.gather(1, next_B1), -torch.inf))
        is_open_BS = is_open_BS.scatter(1, next_B1, False)
        owed_B = owed_B - is_kept_BS.gather(1, next_B1).squeeze(1).long()
        left_B = left_B - 1
        next_BW1 = vectors_BSW.take_along_dim(next_B1.unsqueeze(2), 1).transpose(1, 2)
        likeness_BS = torch.maximum(likeness_BS, torch.bmm(vectors_BSW, next_BW1).squeeze(2))
    return torch.cat(found_rows, 1), torch.cat(found_values, 1)
