"""Maximal marginal relevance in blocks, against going through it item by item."""

import pytest
import torch
from torch import Tensor

from crossrec.score import diverse
from crossrec.score.diverse import diversify

USERS, ITEMS, SHORT, K = 9, 60, 24, 8


def draw(seed: int = 3) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Shortlists, some of which end early, one empty; items alike in groups, one without text."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        texts = torch.nn.functional.normalize(torch.randn(ITEMS, 6), dim=1)
        texts[ITEMS // 2 :] = texts[: ITEMS // 2]
        texts[7] = 0
        rows = torch.stack([torch.randperm(ITEMS)[:SHORT] for _ in range(USERS)])
        scores = torch.randn(USERS, SHORT).sort(dim=1, descending=True).values
    for user, length in ((1, 5), (2, 0), (3, K + 1)):
        rows[user, length:], scores[user, length:] = -1, -torch.inf
    return (rows, scores), texts


def one_by_one(rows: Tensor, scores: Tensor, texts: Tensor, weight: float) -> list[int]:
    left = [(int(row), float(score)) for row, score in zip(rows, scores, strict=True) if row >= 0]
    spread = left[0][1] - left[min(K, len(left)) - 1][1] if left else 0.0
    found: list[int] = []
    while left and len(found) < K:
        values = [
            (1 - weight) * score
            - weight * spread * max([0.0, *(float(texts[row] @ texts[one]) for one in found)])
            for row, score in left
        ]
        found.append(left.pop(max(range(len(left)), key=lambda at: (values[at], -at)))[0])
    return found


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.7, 1.0])
def test_diversify_takes_what_is_best_and_unlike_what_stands_above(weight: float) -> None:
    (rows, scores), texts = draw()
    found, values = diversify((rows, scores), texts, K, weight)
    for user in range(USERS):
        expected = one_by_one(rows[user], scores[user], texts, weight)
        assert found[user].tolist() == expected + [-1] * (K - len(expected))
        own = values[user, : len(expected)]
        assert torch.isfinite(own).all()
        # What publication looks for: the first is best, and nothing rises.
        assert (own.diff() <= 0).all()
        assert (values[user, len(expected) :] == -torch.inf).all()
    if weight == 0:
        assert torch.equal(found, rows[:, :K])
        assert torch.equal(values, scores[:, :K])
    else:
        assert not torch.equal(found, rows[:, :K])


def test_diversify_leaves_alike_items_for_the_end() -> None:
    texts = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0], [0.6, 0, 0.8]])
    shortlist = torch.tensor([[0, 1, 2, 3]]), torch.tensor([[1.0, 0.6, 0.5, 0.45]])
    found, values = diversify(shortlist, texts, 3, 0.5)
    assert found.tolist() == [[0, 2, 3]]
    # The spread of the first three is .5. Of 1, the twin of 0, are left .3 - .5 * .5; of 3, as like
    # 0 as .6, are left .225 - .5 * .5 * .6.
    torch.testing.assert_close(values, torch.tensor([[0.5, 0.25, 0.075]]))


def test_equal_items_keep_the_order_of_the_shortlist() -> None:
    rows = torch.tensor([[5, 2, 9, 4]])
    same = torch.ones(10, 3)
    found, _ = diversify((rows, torch.zeros(1, 4)), same, 3, 0.5)
    assert found.tolist() == [[5, 2, 9]]


@pytest.mark.parametrize("users_a_block", [1, 4])
def test_diversify_does_not_depend_on_its_blocks(
    monkeypatch: pytest.MonkeyPatch, users_a_block: int
) -> None:
    shortlist, texts = draw()
    whole = diversify(shortlist, texts, K, 0.4)
    monkeypatch.setattr(diverse, "USERS_A_BLOCK", users_a_block)
    parts = diversify(shortlist, texts, K, 0.4)
    assert torch.equal(parts[0], whole[0])
    torch.testing.assert_close(parts[1], whole[1])


def test_kept_items_get_their_places_and_no_earlier_than_they_must() -> None:
    (rows, scores), texts = draw()
    kept = rows[0, -4:].clone()
    plain, _ = diversify((rows, scores), texts, K, 0.2)
    found, values = diversify((rows, scores), texts, K, 0.2, (kept, 3))
    for user in range(USERS):
        there = set(kept.tolist()) & set(rows[user].tolist())
        own = [row for row in found[user].tolist() if row >= 0]
        assert len(own) == len(set(own)) == min(K, int((rows[user] >= 0).sum()))
        assert len(there & set(own)) >= min(3, len(there))
    assert found[0, : K - 3].tolist() == plain[0, : K - 3].tolist()
    assert set(found[0, K - 3 :].tolist()) <= set(kept.tolist())
    real = values[found >= 0]
    assert torch.isfinite(real).all()
    assert (values.diff(dim=1)[(found >= 0)[:, 1:]] <= 0).all()


def test_diversify_of_nobody_is_empty() -> None:
    nobody = torch.zeros(0, 5, dtype=torch.int64), torch.zeros(0, 5)
    assert diversify(nobody, torch.ones(3, 2), 4, 0.5)[0].shape == (0, 4)
