from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from crossrec.score.limits import Group, Terms, limited_top_k
from crossrec.score.narrow import (
    Narrow,
    Precision,
    Quantised,
    multiply,
    multiply_padded,
    narrow,
)
from crossrec.score.shortlist import score_pairs, shortlist_top_k
from crossrec.score.topk import top_k
from tests.score.test_topk import NOTHING_SEEN, overlap_of, random_seen, random_terms

WIDTH = 64
NARROW: tuple[Precision, ...] = ("bf16", "int8")


def real_terms(users: int, items: int) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor]]:
    draw = torch.Generator().manual_seed(17)
    products = [
        (torch.randn(users, width, generator=draw), torch.randn(items, width, generator=draw))
        for width in (WIDTH, 3)
    ]
    values = torch.randn(users, items, generator=draw)
    return products, [values * (torch.rand(users, items, generator=draw) < 0.01)]


def narrowed(
    products: Sequence[tuple[Tensor, Tensor]], precision: Precision
) -> list[Narrow | None]:
    return [narrow(items, precision) for _, items in products]


@pytest.mark.parametrize("precision", NARROW)
@pytest.mark.parametrize("items_a_block", [700, 100_000])
@pytest.mark.parametrize("k", [1, 10, 50])
def test_lists_are_those_of_float32(k: int, items_a_block: int, precision: Precision) -> None:
    products, values = real_terms(64, 5_000)
    overlaps = [overlap_of(part) for part in values]
    exact, scores = top_k(products, overlaps, NOTHING_SEEN, k)
    sides = narrowed(products, precision)
    assert [side is None for side in sides] == [False, True]
    found, again = shortlist_top_k(
        products, overlaps, NOTHING_SEEN, k, items_a_block, narrowed=sides
    )
    missed = sum(
        len(set(one) - set(other))
        for one, other in zip(exact.tolist(), found.tolist(), strict=True)
    )
    assert missed <= 0.001 * exact.numel()
    torch.testing.assert_close(again, scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", NARROW)
def test_scores_alone_of_narrow_items_would_be_others(precision: Precision) -> None:
    products, _ = real_terms(64, 5_000)
    _, scores = top_k(products, [], NOTHING_SEEN, 10)
    _, rounded = top_k(products, [], NOTHING_SEEN, 10, narrowed=narrowed(products, precision))
    assert 1e-3 < (scores - rounded).abs().max() < 1


def test_whole_numbers_are_multiplied_exactly() -> None:
    draw = torch.Generator().manual_seed(5)
    rows = [torch.randint(-127, 128, (size, 37), generator=draw) for size in (3, 2_051)]
    expected = (rows[0].double() @ rows[1].double().T).long()
    narrow_rows = [part.to(torch.int8) for part in rows]
    assert multiply(*narrow_rows).long().equal(expected)
    # As a GPU asks for it.
    assert multiply_padded(*narrow_rows).long().equal(expected)


def test_a_quantised_matrix_is_a_quarter_and_near() -> None:
    items = torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(6))
    items[7] = 0.0
    side = narrow(items, "int8")
    assert isinstance(side, Quantised)
    assert side.bytes == items.nbytes / 4 + 4 * len(items)
    # Half a step of each row's own scale.
    error = (side.rows_IW * side.scales_I1 - items).abs()
    assert (error <= 0.501 * items.abs().amax(1, keepdim=True) / 127).all()


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


@pytest.mark.parametrize("precision", NARROW)
def test_groups_are_limited_among_narrow_items_too(precision: Precision) -> None:
    products, values = real_terms(16, 800)
    overlaps = [overlap_of(part) for part in values]
    groups = [Group(torch.arange(800) % 40, 2)]
    terms = Terms(products, overlaps, NOTHING_SEEN, (), narrowed(products, precision))
    exact = limited_top_k(Terms(products, overlaps, NOTHING_SEEN), groups, 20)
    found = limited_top_k(terms, groups, 20)
    assert found[0].equal(exact[0])
    torch.testing.assert_close(found[1], exact[1], rtol=1e-5, atol=1e-5)
