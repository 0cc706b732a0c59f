"""Lists in which no more than so many items share a brand or a category; exact, in few passes.

    groups = [Group(brands_I, most=3)]
    rows, scores = limited_top_k(terms, groups, k=50)

An item is taken in the order of scores where none of its groups is full. The best 2 k are looked
at first. Users whose list that does not fill are searched again, without the items of their full
groups and what they were shown before: all that is left scores lower, so the order stays.

Tensor suffixes: B users, I items of the domain, C items of a block, K list length, N pairs or items
that are looked at, M users whose list is not full, V kinds of what items require.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from crossrec.data.attributes import NO_VALUE
from crossrec.data.candidates import Candidates
from crossrec.data.replay import Histories
from crossrec.data.requires import Requires
from crossrec.data.texts import is_on_trial
from crossrec.model.overlap import Overlap
from crossrec.score.shortlist import shortlist_top_k
from crossrec.score.topk import LeftOut, NarrowItems, Products, SomeRows, SparseScores, top_k


@dataclass(frozen=True)
class Group:
    """A column of a domain's items: codes_I (I,) int64, and so many of one code at most.

    Items of NO_VALUE share it with nobody.
    """

    codes_I: Tensor
    most: int


@dataclass(frozen=True)
class Refused:
    """Which items each user must not get, by the kind of what items require: a LeftOut.

    kinds_I: (I,) int64. refused_BV: (B, kinds) bool.
    """

    kinds_I: Tensor
    refused_BV: Tensor

    def __call__(self, start: int, stop: int) -> Tensor:
        """Return which items of a block are refused to whom, (B, C)."""
        return self.refused_BV.index_select(1, self.kinds_I[start:stop])

    def among(self, rows_N: Tensor) -> "Refused":
        """Return the same of some of the items, which are numbered anew."""
        return replace(self, kinds_I=self.kinds_I[rows_N])


@dataclass(frozen=True)
class Rules:
    """What lists of a domain must not hold.

    allowed_I: (I,) bool, which items are candidates; None: all. groups: of which no list has too
    many. requires: what items require of their user, kinds_I by which kind. limited_I: 1 for items
    that are for users on trial alone, else 0.
    """

    allowed_I: Tensor | None
    groups: Sequence[Group]
    requires: Requires | None = None
    kinds_I: Tensor | None = None
    limited_I: Tensor | None = None

    @classmethod
    def of(cls, found: Candidates | None, device: torch.device) -> "Rules":
        """Return a domain's rules on a device."""
        if found is None:
            return cls(None, ())
        groups = [
            Group(torch.tensor(codes, dtype=torch.int64, device=device), found.most[column])
            for column, codes in found.groups.items()
        ]
        allowed = torch.tensor(found.allowed, device=device)
        allowed_I = None if found.allowed.all() else allowed
        requires = kinds_I = limited_I = None
        if found.requires is not None and found.requires.codes.any():
            requires = found.requires
            kinds_I = torch.tensor(requires.codes, dtype=torch.int64, device=device)
        if found.limited is not None and found.limited.any():
            limited_I = torch.tensor(found.limited, dtype=torch.int64, device=device)
        return cls(allowed_I, groups, requires, kinds_I, limited_I)

    def left_out(self, users: Histories) -> list[LeftOut]:
        """Return what `top_k` leaves out for some users, of whom only ids and traits count."""
        found: list[LeftOut] = []
        if self.allowed_I is not None:
            refused_1I = ~self.allowed_I.unsqueeze(0)
            found.append(lambda start, stop: refused_1I[:, start:stop])
        if self.requires is not None and self.kinds_I is not None:
            refused = self.requires.refused(users.traits, len(users.user_ids))
            found.append(Refused(self.kinds_I, torch.from_numpy(refused).to(self.kinds_I.device)))
        if self.limited_I is not None:
            is_refused_B = ~torch.from_numpy(is_on_trial(users.user_ids)).to(self.limited_I.device)
            refused_B2 = torch.stack([torch.zeros_like(is_refused_B), is_refused_B], 1)
            found.append(Refused(self.limited_I, refused_B2))
        return found

    def kept(self, rows_N: Tensor) -> Tensor:
        """Return those of the rows that are candidates."""
        return rows_N if self.allowed_I is None else rows_N[self.allowed_I[rows_N]]


@dataclass(frozen=True)
class Terms:
    """What makes the scores of B users in a domain: arguments of `top_k`.

    narrowed: where any is not None, the best are found by `shortlist_top_k` with them. left_out:
    alike for all users, or Refused.
    """

    products: Products
    overlaps: Sequence[SparseScores]
    seen_S2: Tensor
    left_out: Sequence[LeftOut] = ()
    narrowed: Sequence[NarrowItems | None] = ()

    def top_k(self, k: int, left_out: Sequence[LeftOut] = ()) -> tuple[Tensor, Tensor]:
        """Return each user's k best, without what is seen or left out."""
        more = (*self.left_out, *left_out)
        known = self.products, self.overlaps, self.seen_S2, k
        if not any(self.narrowed):
            return top_k(*known, left_out=more)
        return shortlist_top_k(*known, left_out=more, narrowed=self.narrowed)

    def of_users(self, users_M: Tensor) -> "Terms":
        """Return the terms of some users, who are numbered anew."""
        place_B = users_M.new_full((len(self.products[0][0]),), -1)
        place_B[users_M] = torch.arange(len(users_M), device=users_M.device)
        overlaps = []
        for users_N, items_N, values_N in self.overlaps:
            kept_N = place_B[users_N] >= 0
            overlaps.append((place_B[users_N[kept_N]], items_N[kept_N], values_N[kept_N]))
        places_S = place_B[self.seen_S2[:, 0]]
        seen_S2 = torch.stack([places_S, self.seen_S2[:, 1]], 1)[places_S >= 0]
        products = [(queries_BW[users_M], items_IW) for queries_BW, items_IW in self.products]
        left_out = [_of_some(of_block, users_M) for of_block in self.left_out]
        return replace(
            self, products=products, overlaps=overlaps, seen_S2=seen_S2, left_out=left_out
        )

    def among(self, rows_N: Tensor, with_overlaps: bool = False) -> "Terms":
        """Return the terms of new items, which are numbered anew and are all candidates.

        New is what nobody had seen when the item side was made; by an incremental night some have.
        A new item has no neighbours but those that it is related to: where no relations are known,
        its score is the products alone.
        """
        size = len(self.products[0][1])
        users_S, items_S = self.seen_S2.unbind(1)
        # Pairs like those that overlap, but for what they add.
        users_S, places_S, _ = Overlap(users_S, items_S, items_S).among(rows_N, size)
        related = self.overlaps if with_overlaps else ()
        overlaps = [Overlap(*found).among(rows_N, size) for found in related]
        products = [(queries, SomeRows(items_IW, rows_N)) for queries, items_IW in self.products]
        left_out = [one.among(rows_N) for one in self.left_out if isinstance(one, Refused)]
        return Terms(products, overlaps, torch.stack([users_S, places_S], 1), left_out)


def _of_some(of_block: LeftOut, users_M: Tensor) -> LeftOut:
    """Return the same of some of the users, who are numbered anew."""
    if isinstance(of_block, Refused):
        return replace(of_block, refused_BV=of_block.refused_BV[users_M])
    return of_block


def limited_top_k(
    terms: Terms, groups: Sequence[Group], k: int, given: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Return what `top_k` does, of lists in which no group has more than its most.

    Args:
        terms: what makes the scores.
        groups: at least one.
        k: items a user, at least 1.
        given: rows and scores (B, N), N <= k, as this function returns them: items that stand in
            the lists whatever they score. They count towards the groups.
    """
    users, size = len(terms.products[0][0]), len(terms.products[0][1])
    length = min(k, size)
    rows_BK = terms.seen_S2.new_full((users, length), -1)
    scores_BK = terms.products[0][0].new_full((users, length), -torch.inf)
    if given is not None:
        rows_BK[:, : given[0].shape[1]], scores_BK[:, : given[1].shape[1]] = given
    depth = min(2 * k, size)
    open_M = torch.nonzero((rows_BK < 0).any(1)).squeeze(1)
    shown_N2 = _pairs(rows_BK)
    while len(open_M):
        asked = terms.of_users(open_M)
        full = [_Full.of(rows_BK[open_M], group) for group in groups]
        seen = torch.cat([asked.seen_S2, _of_users(shown_N2, open_M, users)])
        asked = replace(asked, seen_S2=seen)
        found = asked.top_k(depth, [one.left_out for one in full])
        lists = rows_BK[open_M], scores_BK[open_M]
        _take(*lists, found, groups)
        rows_BK[open_M], scores_BK[open_M] = lists
        shown = _pairs(found[0])
        shown_N2 = torch.cat([shown_N2, torch.stack([open_M[shown[:, 0]], shown[:, 1]], 1)])
        has_more_M = found[0][:, -1] >= 0
        open_M = open_M[has_more_M & (rows_BK[open_M] < 0).any(1)]
    # By row, then stably by score: equal scores keep the lower row first.
    rows_BK, order = torch.where(rows_BK < 0, size, rows_BK).sort(dim=1)
    scores_BK, order = scores_BK.gather(1, order).sort(dim=1, descending=True, stable=True)
    rows_BK = rows_BK.gather(1, order)
    return torch.where(scores_BK == -torch.inf, -1, rows_BK), scores_BK


def _take(
    rows_BK: Tensor, scores_BK: Tensor, found: tuple[Tensor, Tensor], groups: Sequence[Group]
) -> None:
    """Put what was found into lists, best first, where there is a place and no group is full."""
    users_B = torch.arange(len(rows_BK), device=rows_BK.device)
    taken_B = (rows_BK >= 0).sum(1)
    length = rows_BK.shape[1]
    for row_B, score_B in zip(found[0].unbind(1), found[1].unbind(1), strict=True):
        fits_B = (row_B >= 0) & (taken_B < length)
        for group in groups:
            code_B1 = group.codes_I[row_B.clamp(min=0)].unsqueeze(1)
            has_BK = (_codes(rows_BK, group) == code_B1) & (code_B1 != NO_VALUE)
            fits_B &= has_BK.sum(1) < group.most
        places_B = taken_B.clamp(max=length - 1)
        before_B = rows_BK[users_B, places_B], scores_BK[users_B, places_B]
        rows_BK[users_B, places_B] = torch.where(fits_B, row_B, before_B[0])
        scores_BK[users_B, places_B] = torch.where(fits_B, score_B, before_B[1])
        taken_B += fits_B


@dataclass(frozen=True)
class _Full:
    """The full groups of each user: their codes, (B, N), NO_VALUE past the end."""

    group: Group
    codes_BN: Tensor

    @classmethod
    def of(cls, rows_BK: Tensor, group: Group) -> "_Full":
        codes_BK = _codes(rows_BK, group).sort(dim=1, descending=True).values
        # Sorted: a code that stands `most` places further on is there more than `most` - 1 times.
        last = codes_BK.shape[1] - group.most + 1
        if last <= 0:
            return cls(group, codes_BK[:, :0])
        is_full_BN = codes_BK[:, :last] == codes_BK[:, group.most - 1 :]
        codes_BN = torch.where(is_full_BN, codes_BK[:, :last], NO_VALUE)
        codes_BN = codes_BN.sort(dim=1, descending=True).values
        most_full = int((codes_BN != NO_VALUE).sum(1).max()) if codes_BN.numel() else 0
        return cls(group, codes_BN[:, :most_full])

    def left_out(self, start: int, stop: int) -> Tensor:
        """Return which items of a block are of a full group, (B, C)."""
        codes_C = self.group.codes_I[start:stop]
        found_BC = torch.zeros(
            len(self.codes_BN), len(codes_C), dtype=torch.bool, device=codes_C.device
        )
        for code_B in self.codes_BN.unbind(1):
            found_BC |= (codes_C == code_B.unsqueeze(1)) & (codes_C != NO_VALUE)
        return found_BC


def _codes(rows_BK: Tensor, group: Group) -> Tensor:
    return torch.where(rows_BK < 0, NO_VALUE, group.codes_I[rows_BK.clamp(min=0)])


def _pairs(rows_BK: Tensor) -> Tensor:
    """Return the (user, item) pairs of lists, (N, 2)."""
    users_N, places_N = torch.nonzero(rows_BK >= 0, as_tuple=True)
    return torch.stack([users_N, rows_BK[users_N, places_N]], 1)


def _of_users(pairs_N2: Tensor, users_M: Tensor, users: int) -> Tensor:
    """Return the pairs of some of B users, who are numbered anew."""
    place_B = users_M.new_full((users,), -1)
    place_B[users_M] = torch.arange(len(users_M), device=users_M.device)
    places_N = place_B[pairs_N2[:, 0]]
    return torch.stack([places_N, pairs_N2[:, 1]], 1)[places_N >= 0]
