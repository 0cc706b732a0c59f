from collections import Counter

import pytest
import torch
from torch import Tensor

from crossrec.data.attributes import NO_VALUE
from crossrec.model.overlap import Overlap
from crossrec.score.limits import Group, Terms, limited_top_k

USERS, ITEMS = 9, 120


def one_by_one(
    scores: list[float], groups: list[Group], k: int, given: list[int]
) -> tuple[list[int], list[float]]:
    """The plain way: from the best down, each item whose groups have a place left."""
    taken = list(given)
    order = sorted(range(len(scores)), key=lambda row: (-scores[row], row))
    for row in order:
        if len(taken) == k or scores[row] == -torch.inf:
            break
        full = any(
            int(group.codes_I[row]) != NO_VALUE
            and Counter(group.codes_I[taken].tolist())[int(group.codes_I[row])] >= group.most
            for group in groups
        )
        if row not in taken and not full:
            taken.append(row)
    taken.sort(key=lambda row: (-scores[row], row))
    return taken, [scores[row] for row in taken]


def random_terms(seed: int) -> tuple[Terms, Tensor]:
    """Products, overlaps, seen items and items that are no candidates, and what they add up to."""
    draw = torch.Generator().manual_seed(seed)
    queries = torch.randint(-2, 3, (USERS, 3), generator=draw).float()
    columns = torch.randint(-2, 3, (ITEMS, 3), generator=draw).float()
    sparse = torch.randint(0, 3, (USERS, ITEMS), generator=draw).float()
    items, users = torch.nonzero(sparse.T, as_tuple=True)
    seen = torch.stack([torch.randint(n, (90,), generator=draw) for n in (USERS, ITEMS)], 1)
    refused = torch.rand(1, ITEMS, generator=draw) < 0.2
    total = queries @ columns.T + sparse
    total[seen[:, 0], seen[:, 1]] = -torch.inf
    total.masked_fill_(refused, -torch.inf)
    overlaps = [Overlap(users, items, sparse[users, items])]
    left_out = [lambda start, stop: refused[:, start:stop]]
    return Terms([(queries, columns)], overlaps, seen, left_out), total


def random_group(seed: int, values: int, most: int) -> Group:
    draw = torch.Generator().manual_seed(seed)
    return Group(torch.randint(-1, values, (ITEMS,), generator=draw), most)


@pytest.mark.parametrize("k", [1, 10, 50, 200])
@pytest.mark.parametrize(
    "groups",
    [
        [random_group(1, 40, 2)],
        [random_group(2, 3, 1)],
        [random_group(3, 8, 3), random_group(4, 4, 5)],
        [Group(torch.zeros(ITEMS, dtype=torch.int64), 4)],
    ],
    ids=["many small groups", "few places in all", "two columns", "all of one brand"],
)
def test_limited_lists_are_those_of_taking_items_one_by_one(groups: list[Group], k: int) -> None:
    terms, total = random_terms(17)
    rows, scores = limited_top_k(terms, groups, k)
    for user in range(USERS):
        expected, expected_scores = one_by_one(total[user].tolist(), groups, k, [])
        found = rows[user][rows[user] >= 0].tolist()
        assert found == expected
        assert scores[user, : len(found)].tolist() == expected_scores
        assert (scores[user, len(found) :] == -torch.inf).all()


def test_given_items_keep_their_places_and_fill_their_groups() -> None:
    terms, total = random_terms(18)
    group = random_group(5, 10, 2)
    worst = torch.where(total == -torch.inf, torch.inf, total).topk(2, largest=False)
    places, scores = worst.indices[:, :1], worst.values[:, :1]
    rows, found_scores = limited_top_k(terms, [group], 12, (places, scores))
    for user in range(USERS):
        expected, _ = one_by_one(total[user].tolist(), [group], 12, places[user].tolist())
        assert rows[user].tolist() == expected
        assert int(places[user]) in rows[user]
    assert (found_scores.diff(dim=1) <= 0).all()


def test_without_values_nothing_is_limited() -> None:
    terms, _ = random_terms(19)
    group = Group(torch.full((ITEMS,), NO_VALUE), 1)
    limited, plain = limited_top_k(terms, [group], 20), terms.top_k(20)
    assert torch.equal(limited[0], plain[0])
    assert torch.equal(limited[1], plain[1])
