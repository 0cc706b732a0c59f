import pytest
import torch
from torch import Tensor

from crossrec.score.topk import top_k

NOTHING_SEEN = torch.zeros(0, 2, dtype=torch.int64)


def by_sorting(scores_BI: Tensor, seen: Tensor, k: int) -> tuple[list[list[int]], Tensor]:
    """Every score at once, sorted with ties by row: what `top_k` must equal."""
    scores_BI = scores_BI.clone()
    for user, row in seen.tolist():
        scores_BI[user, row] = -torch.inf
    scores, rows = scores_BI.sort(dim=1, descending=True, stable=True)
    rows = torch.where(scores == -torch.inf, -1, rows)
    return rows[:, :k].tolist(), scores[:, :k]


def whole_numbers(draw: torch.Generator, *shape: int) -> Tensor:
    """Small whole numbers: products are exact in any order of addition, and ties are many."""
    return torch.randint(-2, 3, shape, generator=draw).float()


@pytest.mark.parametrize("items_a_block", [1, 3, 7, 64, 1_000])
@pytest.mark.parametrize("k", [1, 5, 40, 200])
def test_topk_equals_sorting_for_any_block(items_a_block: int, k: int) -> None:
    draw = torch.Generator().manual_seed(17)
    queries, items = whole_numbers(draw, 9, 4), whole_numbers(draw, 130, 4)
    bias = whole_numbers(draw, 130)
    seen = torch.stack(
        [torch.randint(9, (80,), generator=draw), torch.randint(130, (80,), generator=draw)], 1
    )
    rows, scores = top_k(queries, items, bias, seen, k, items_a_block)
    expected_rows, expected_scores = by_sorting(queries @ items.T + bias, seen, k)
    assert rows.tolist() == expected_rows
    assert torch.equal(scores, expected_scores)


@pytest.mark.parametrize("items_a_block", [10, 10_000])
def test_topk_finds_the_best_of_real_numbers(items_a_block: int) -> None:
    draw = torch.Generator().manual_seed(18)
    queries, items = torch.randn(6, 8, generator=draw), torch.randn(500, 8, generator=draw)
    bias = torch.randn(500, generator=draw)
    rows, scores = top_k(queries, items, bias, NOTHING_SEEN, 20, items_a_block)
    expected_rows, expected_scores = by_sorting(queries @ items.T + bias, NOTHING_SEEN, 20)
    assert rows.tolist() == expected_rows
    torch.testing.assert_close(scores, expected_scores)


def test_topk_of_a_batch_equals_each_user_alone() -> None:
    draw = torch.Generator().manual_seed(19)
    queries, items = whole_numbers(draw, 5, 4), whole_numbers(draw, 60, 4)
    bias, seen = whole_numbers(draw, 60), torch.tensor([[0, 3], [2, 7], [4, 1]])
    rows, scores = top_k(queries, items, bias, seen, 10)
    for user in range(5):
        own = seen[seen[:, 0] == user] * torch.tensor([0, 1])
        alone_rows, alone_scores = top_k(queries[user : user + 1], items, bias, own, 10)
        assert torch.equal(rows[user], alone_rows[0])
        assert torch.equal(scores[user], alone_scores[0])


@pytest.mark.parametrize("items_a_block", [3, 4, 100])
def test_topk_puts_the_lower_row_first_where_all_scores_are_equal(items_a_block: int) -> None:
    zeros = torch.zeros(1, 2), torch.zeros(100, 2), torch.zeros(100)
    rows, scores = top_k(*zeros, NOTHING_SEEN, 8, items_a_block)
    assert rows.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]
    assert scores.tolist() == [[0.0] * 8]


@pytest.mark.parametrize("items_a_block", [2, 5, 9])
def test_topk_cuts_a_tie_at_the_kth_place_after_its_lowest_rows(items_a_block: int) -> None:
    # One winner in the last block, then a tie of seven for the two places that are left.
    bias = torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0])
    rows, _ = top_k(torch.zeros(1, 1), torch.zeros(9, 1), bias, NOTHING_SEEN, 3, items_a_block)
    assert rows.tolist() == [[8, 1, 2]]


def test_topk_leaves_out_what_a_user_has_seen_for_that_user_alone() -> None:
    bias = torch.tensor([4.0, 3.0, 2.0, 1.0])
    seen = torch.tensor([[1, 0], [1, 2], [1, 0]])
    rows, _ = top_k(torch.zeros(2, 1), torch.zeros(4, 1), bias, seen, 2)
    assert rows.tolist() == [[0, 1], [1, 3]]


@pytest.mark.parametrize("items_a_block", [1, 2, 4])
def test_topk_ends_a_list_early_where_too_few_items_are_unseen(items_a_block: int) -> None:
    bias = torch.tensor([4.0, 3.0, 2.0, 1.0])
    seen = torch.tensor([[0, 0], [0, 1], [0, 3], [1, 0], [1, 1], [1, 2], [1, 3]])
    rows, scores = top_k(torch.zeros(2, 1), torch.zeros(4, 1), bias, seen, 3, items_a_block)
    nothing = -torch.inf
    assert rows.tolist() == [[2, -1, -1], [-1, -1, -1]]
    assert scores.tolist() == [[2.0, nothing, nothing], [nothing] * 3]


def test_topk_is_no_longer_than_there_are_items() -> None:
    rows, _ = top_k(torch.zeros(1, 1), torch.zeros(3, 1), torch.arange(3.0), NOTHING_SEEN, 10)
    assert rows.tolist() == [[2, 1, 0]]


def test_topk_of_no_items_is_empty() -> None:
    rows, scores = top_k(torch.zeros(2, 1), torch.zeros(0, 1), torch.zeros(0), NOTHING_SEEN, 10)
    assert rows.shape == scores.shape == (2, 0)


def test_topk_refuses_k_below_1() -> None:
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        top_k(torch.zeros(1, 1), torch.zeros(3, 1), torch.zeros(3), NOTHING_SEEN, 0)
