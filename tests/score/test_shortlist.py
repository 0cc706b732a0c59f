import pytest
import torch
from torch import Tensor

from crossrec.score.limits import Group, Terms, limited_top_k
from crossrec.score.shortlist import score_pairs, shortlist_top_k
from crossrec.score.topk import top_k
from tests.score.test_topk import NOTHING_SEEN, overlap_of, random_seen, random_terms

WIDTH = 64


def real_terms(users: int, items: int) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor]]:
    draw = torch.Generator().manual_seed(17)
    products = [
        (torch.randn(users, width, generator=draw), torch.randn(items, width, generator=draw))
        for width in (WIDTH, 3)
    ]
    values = torch.randn(users, items, generator=draw)
    return products, [values * (torch.rand(users, items, generator=draw) < 0.01)]


@pytest.mark.parametrize("items_a_block", [700, 100_000])
@pytest.mark.parametrize("k", [1, 10, 50])
def test_lists_are_those_of_float32(k: int, items_a_block: int) -> None:
    products, values = real_terms(64, 5_000)
    overlaps = [overlap_of(part) for part in values]
    exact, scores = top_k(products, overlaps, NOTHING_SEEN, k)
    found, again = shortlist_top_k(products, overlaps, NOTHING_SEEN, k, items_a_block)
    missed = sum(
        len(set(one) - set(other))
        for one, other in zip(exact.tolist(), found.tolist(), strict=True)
    )
    assert missed <= 0.001 * exact.numel()
    torch.testing.assert_close(again, scores, rtol=1e-5, atol=1e-5)


def test_scores_alone_of_half_precision_would_be_others() -> None:
    products, _ = real_terms(64, 5_000)
    _, scores = top_k(products, [], NOTHING_SEEN, 10)
    _, halved = top_k(products, [], NOTHING_SEEN, 10, halved=True)
    assert 1e-3 < (scores - halved).abs().max() < 1


def test_narrow_products_stay_exact() -> None:
    products, _ = real_terms(8, 100)
    narrow = [(products[1][0], 1_000 * products[1][1])]
    assert top_k(narrow, [], NOTHING_SEEN, 5)[1].equal(
        top_k(narrow, [], NOTHING_SEEN, 5, halved=True)[1]
    )


def test_what_is_seen_or_left_out_is_in_no_list() -> None:
    draw = torch.Generator().manual_seed(3)
    products, overlaps, _ = random_terms(draw, 20, 60)
    seen = random_seen(draw, 20, 60)
    refused = torch.rand(1, 60, generator=draw) < 0.3
    left_out = [lambda start, stop: refused[:, start:stop]]
    exact = top_k(products, overlaps, seen, 60, left_out=left_out)
    found = shortlist_top_k(products, overlaps, seen, 60, left_out=left_out)
    # Whole numbers, narrow products: nothing is rounded, and ties are many.
    assert found[0].equal(exact[0])
    assert found[1].equal(exact[1])


def test_pairs_have_the_scores_of_the_whole_matrix() -> None:
    draw = torch.Generator().manual_seed(4)
    products, overlaps, total = random_terms(draw, 12, 30)
    rows = torch.stack([torch.randperm(30, generator=draw)[:9] for _ in range(12)])
    rows[3, 4] = -1
    scores = score_pairs(products, overlaps, rows)
    assert scores[3, 4] == -torch.inf
    scores[3, 4] = total[3, 0]
    assert scores.equal(total.gather(1, rows.clamp(min=0)).where(rows >= 0, total[3, 0]))


def test_groups_are_limited_in_half_precision_too() -> None:
    products, values = real_terms(16, 800)
    overlaps = [overlap_of(part) for part in values]
    groups = [Group(torch.arange(800) % 40, 2)]
    exact = limited_top_k(Terms(products, overlaps, NOTHING_SEEN), groups, 20)
    found = limited_top_k(Terms(products, overlaps, NOTHING_SEEN, (), True), groups, 20)
    assert found[0].equal(exact[0])
    torch.testing.assert_close(found[1], exact[1], rtol=1e-5, atol=1e-5)
