import pytest
import torch
from torch import Tensor

from crossrec.model.overlap import Overlap
from crossrec.score import topk
from crossrec.score.topk import give_places, top_k

NOTHING_SEEN = torch.zeros(0, 2, dtype=torch.int64)


def by_sorting(scores_BI: Tensor, seen: Tensor, k: int) -> tuple[list[list[int]], Tensor]:
    """Every score at once, sorted with ties by row: what `top_k` must equal."""
    scores_BI = scores_BI.clone()
    for user, row in seen.tolist():
        scores_BI[user, row] = -torch.inf
    scores, rows = scores_BI.sort(dim=1, descending=True, stable=True)
    rows = torch.where(scores == -torch.inf, -1, rows)
    return rows[:, :k].tolist(), scores[:, :k]


def by_bias(users: int, bias: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Products that give every user the same scores."""
    return [(torch.ones(users, 1), bias.unsqueeze(1))]


def overlap_of(values_BI: Tensor) -> Overlap:
    """The values that are not 0, by item, then user."""
    items, users = torch.nonzero(values_BI.T, as_tuple=True)
    return Overlap(users, items, values_BI[users, items])


def whole_numbers(draw: torch.Generator, *shape: int) -> Tensor:
    """Small whole numbers: products are exact in any order of addition, and ties are many."""
    return torch.randint(-2, 3, shape, generator=draw).float()


def random_terms(
    draw: torch.Generator, users: int, items: int
) -> tuple[list[tuple[Tensor, Tensor]], list[Overlap], Tensor]:
    """Two products of different widths, two sparse overlaps, and what they add up to."""
    products = [
        (whole_numbers(draw, users, width), whole_numbers(draw, items, width)) for width in (4, 1)
    ]
    sparse = [
        whole_numbers(draw, users, items) * (torch.rand(users, items, generator=draw) < 0.2)
        for _ in range(2)
    ]
    total = sum((queries @ columns.T for queries, columns in products), sum(sparse))
    assert isinstance(total, Tensor)
    return products, [overlap_of(values) for values in sparse], total


def random_seen(draw: torch.Generator, users: int, items: int) -> Tensor:
    pairs = [torch.randint(size, (80,), generator=draw) for size in (users, items)]
    return torch.stack(pairs, 1)


@pytest.mark.parametrize("items_a_block", [1, 3, 7, 64, 1_000])
@pytest.mark.parametrize("k", [1, 5, 40, 200])
def test_topk_equals_sorting_for_any_block(items_a_block: int, k: int) -> None:
    draw = torch.Generator().manual_seed(17)
    products, overlaps, total = random_terms(draw, 9, 130)
    seen = random_seen(draw, 9, 130)
    rows, scores = top_k(products, overlaps, seen, k, items_a_block)
    expected_rows, expected_scores = by_sorting(total, seen, k)
    assert rows.tolist() == expected_rows
    assert torch.equal(scores, expected_scores)


@pytest.mark.parametrize("items_a_block", [10, 10_000])
def test_topk_finds_the_best_of_real_numbers(items_a_block: int) -> None:
    draw = torch.Generator().manual_seed(18)
    queries, items = torch.randn(6, 8, generator=draw), torch.randn(500, 8, generator=draw)
    values = torch.rand(6, 500, generator=draw)
    values[values < 0.8] = 0
    rows, scores = top_k([(queries, items)], [overlap_of(values)], NOTHING_SEEN, 20, items_a_block)
    expected_rows, expected_scores = by_sorting(queries @ items.T + values, NOTHING_SEEN, 20)
    assert rows.tolist() == expected_rows
    torch.testing.assert_close(scores, expected_scores)


@pytest.mark.parametrize("order", ["falling", "rising", "mixed"])
@pytest.mark.parametrize("k", [3, 10])
def test_topk_does_not_depend_on_which_block_has_the_best(order: str, k: int) -> None:
    """Falling: nothing of a later block is better; rising: all of it is."""
    bias = torch.arange(300.0)
    bias = {
        "falling": bias.flip(0),
        "rising": bias,
        "mixed": bias[torch.randperm(300, generator=torch.Generator().manual_seed(17))],
    }[order]
    rows, scores = top_k(by_bias(4, bias), [], NOTHING_SEEN, k, items_a_block=64)
    expected = bias.sort(descending=True)
    assert rows.tolist() == [expected.indices[:k].tolist()] * 4
    assert scores.tolist() == [expected.values[:k].tolist()] * 4


def test_of_a_later_block_only_what_is_better_is_looked_at() -> None:
    scores = torch.zeros(2, 100)
    scores[0, [7, 41, 99]] = torch.tensor([3.0, 5.0, 4.0])
    best = torch.tensor([[6.0, 4.0, 2.0], [9.0, 8.0, 7.0]])
    found = topk._better_of_block(scores, best, 3)
    assert found is not None
    assert found[0].tolist() == [[3.0, 5.0, 4.0], [-torch.inf] * 3]
    assert found[1][0].tolist() == [7, 41, 99]
    # Equal scores come later: the lower row is there already.
    found = topk._better_of_block(scores, torch.full((2, 3), 5.0), 3)
    assert found is not None
    assert found[0].shape == (2, 0)
    # Thirteen are above: the whole block is looked at.
    scores[0, 50:60] = 3.5
    assert topk._better_of_block(scores, best, 3) is None
    assert topk._better_of_block(scores, best[:, :2], 3) is None


def test_topk_leaves_its_inputs_as_they_are() -> None:
    products, overlaps, _ = random_terms(torch.Generator().manual_seed(19), 5, 30)
    copies = [(queries.clone(), items.clone()) for queries, items in products]
    top_k(products, overlaps, torch.tensor([[0, 3]]), 10)
    for pair, copy in zip(products, copies, strict=True):
        assert torch.equal(pair[0], copy[0])
        assert torch.equal(pair[1], copy[1])


def test_topk_of_a_batch_equals_each_user_alone() -> None:
    draw = torch.Generator().manual_seed(19)
    products, overlaps, _ = random_terms(draw, 5, 60)
    seen = random_seen(draw, 5, 60)
    rows, scores = top_k(products, overlaps, seen, 10)
    for user in range(5):
        own = seen[seen[:, 0] == user] * torch.tensor([0, 1])
        own_products = [(queries[user : user + 1], items) for queries, items in products]
        own_overlaps = [
            Overlap(torch.zeros_like(part.users_N[is_own]), part.items_N[is_own], values)
            for part in overlaps
            for is_own in [part.users_N == user]
            for values in [part.values_N[is_own]]
        ]
        alone_rows, alone_scores = top_k(own_products, own_overlaps, own, 10)
        assert torch.equal(rows[user], alone_rows[0])
        assert torch.equal(scores[user], alone_scores[0])


def test_topk_adds_overlaps_for_their_own_user_and_item() -> None:
    overlap = Overlap(torch.tensor([1, 0]), torch.tensor([0, 3]), torch.tensor([-2.5, 3.5]))
    rows, scores = top_k(
        by_bias(2, torch.tensor([4.0, 3.0, 2.0, 1.0])), [overlap, overlap], NOTHING_SEEN, 4, 2
    )
    assert rows.tolist() == [[3, 0, 1, 2], [1, 2, 3, 0]]
    assert scores.tolist() == [[1 + 7.0, 4.0, 3.0, 2.0], [3.0, 2.0, 1.0, 4 - 5.0]]


@pytest.mark.parametrize("items_a_block", [1, 4])
def test_topk_leaves_out_what_is_seen_however_much_it_overlaps(items_a_block: int) -> None:
    overlap = Overlap(torch.tensor([0]), torch.tensor([2]), torch.tensor([1_000.0]))
    products = by_bias(1, torch.tensor([4.0, 3.0, 2.0, 1.0]))
    rows, _ = top_k(products, [overlap], torch.tensor([[0, 2]]), 4, items_a_block)
    assert rows.tolist() == [[0, 1, 3, -1]]


@pytest.mark.parametrize("items_a_block", [3, 4, 100])
def test_topk_puts_the_lower_row_first_where_all_scores_are_equal(items_a_block: int) -> None:
    zeros = torch.zeros(1, 2), torch.zeros(100, 2)
    rows, scores = top_k([zeros], [], NOTHING_SEEN, 8, items_a_block)
    assert rows.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]
    assert scores.tolist() == [[0.0] * 8]


@pytest.mark.parametrize("items_a_block", [2, 5, 9])
def test_topk_cuts_a_tie_at_the_kth_place_after_its_lowest_rows(items_a_block: int) -> None:
    # One winner in the last block, then a tie of seven for the two places that are left.
    bias = torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0])
    rows, _ = top_k(by_bias(1, bias), [], NOTHING_SEEN, 3, items_a_block)
    assert rows.tolist() == [[8, 1, 2]]


def test_topk_leaves_out_what_a_user_has_seen_for_that_user_alone() -> None:
    bias = torch.tensor([4.0, 3.0, 2.0, 1.0])
    seen = torch.tensor([[1, 0], [1, 2], [1, 0]])
    rows, _ = top_k(by_bias(2, bias), [], seen, 2)
    assert rows.tolist() == [[0, 1], [1, 3]]


@pytest.mark.parametrize("items_a_block", [1, 2, 4])
def test_topk_ends_a_list_early_where_too_few_items_are_unseen(items_a_block: int) -> None:
    bias = torch.tensor([4.0, 3.0, 2.0, 1.0])
    seen = torch.tensor([[0, 0], [0, 1], [0, 3], [1, 0], [1, 1], [1, 2], [1, 3]])
    rows, scores = top_k(by_bias(2, bias), [], seen, 3, items_a_block)
    nothing = -torch.inf
    assert rows.tolist() == [[2, -1, -1], [-1, -1, -1]]
    assert scores.tolist() == [[2.0, nothing, nothing], [nothing] * 3]


def test_topk_is_no_longer_than_there_are_items() -> None:
    rows, _ = top_k(by_bias(1, torch.arange(3.0)), [], NOTHING_SEEN, 10)
    assert rows.tolist() == [[2, 1, 0]]


@pytest.mark.parametrize("items_a_block", [2, 100])
def test_topk_of_nobody_is_empty(items_a_block: int) -> None:
    terms = by_bias(0, torch.arange(7.0))
    rows, scores = top_k(terms, [], NOTHING_SEEN, 2, items_a_block=items_a_block)
    assert rows.shape == scores.shape == (0, 2)


def test_topk_of_no_items_is_empty() -> None:
    rows, scores = top_k(by_bias(2, torch.zeros(0)), [], NOTHING_SEEN, 10)
    assert rows.shape == scores.shape == (2, 0)


def test_topk_refuses_k_below_1() -> None:
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        top_k(by_bias(1, torch.zeros(3)), [], NOTHING_SEEN, 0)


def a_list(*entries: tuple[int, float]) -> tuple[Tensor, Tensor]:
    """The list of one user by its (row, score)."""
    rows, scores = zip(*entries, strict=True)
    return torch.tensor([rows]), torch.tensor([scores])


def test_give_places_takes_them_from_the_lowest_others() -> None:
    best = a_list((7, 0.9), (3, 0.8), (5, 0.7), (4, 0.6))
    rows, scores = give_places(best, a_list((1, 0.5), (2, 0.75)))
    # 2 is better than nothing that is left but 7 and 3; 1 is the last.
    assert rows.tolist() == [[7, 3, 2, 1]]
    assert torch.equal(scores, torch.tensor([[0.9, 0.8, 0.75, 0.5]]))


def test_give_places_counts_the_favoured_that_are_there() -> None:
    best = a_list((7, 0.9), (3, 0.8), (5, 0.7), (4, 0.6))
    rows, _ = give_places(best, a_list((4, 0.6), (3, 0.8)))
    assert rows.tolist() == [[7, 3, 5, 4]]
    rows, _ = give_places(best, a_list((4, 0.6), (1, 0.1)))
    assert rows.tolist() == [[7, 3, 4, 1]]


def test_give_places_fills_a_list_that_ended_early() -> None:
    best = a_list((7, 0.9), (-1, -torch.inf), (-1, -torch.inf))
    rows, scores = give_places(best, a_list((1, 0.5)))
    assert rows.tolist() == [[7, 1, -1]]
    assert scores[0, 2] == -torch.inf


def test_give_places_drops_the_higher_row_of_equal_scores() -> None:
    best = a_list(*((row, 0.5) for row in range(40)))
    rows, _ = give_places(best, a_list((99, 0.1), (98, 0.1)))
    assert rows.tolist() == [[*range(38), 98, 99]]


def test_give_places_to_all_is_the_list_of_the_favoured() -> None:
    rows, _ = give_places(a_list((7, 0.9), (3, 0.8)), a_list((1, 0.5), (2, 0.1)))
    assert rows.tolist() == [[1, 2]]
