from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from crossrec.model.fusion import Fusion
from crossrec.train import link
from crossrec.train.link import LOWEST_SLOPE, TOP, fit_platt, learn_link

JOB: Any = SimpleNamespace(seed=17, bounds=((0, 400), (400, 800), (800, 1_200)))
NO_INPUT: Any = None
USERS = 1_500
NOTHING = (np.zeros(0, np.int64), np.zeros(0, np.int64))


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> dict[int, tuple[Any, Tensor]]:
    """Blocks by domain with the scores of their pairs; what is put in is what will be looked at."""
    found: dict[int, tuple[Any, Tensor]] = {}
    monkeypatch.setattr(link, "look_at", lambda *_, **__: [block for block, _ in found.values()])
    monkeypatch.setattr(link, "_scores", lambda _, block: found[block.index][1].clone())
    return found


def block_of(index: int, slope: float, level: float) -> tuple[Any, Tensor]:
    """Pairs that come to be with the chance that slope and level give their score."""
    draw = torch.Generator().manual_seed(index)
    # Of levels that differ between users, so that the best of lists do, too.
    scores = torch.rand(USERS, 400, generator=draw) * torch.rand(USERS, 1, generator=draw)
    comes = torch.rand(scores.shape, generator=draw) < torch.sigmoid(slope * scores + level)
    following = tuple(part.numpy() for part in torch.nonzero(comes, as_tuple=True))
    return SimpleNamespace(index=index, seen=NOTHING, following=following), scores


def learn() -> Fusion:
    fusion, nothing = Fusion(3), NO_INPUT
    learn_link(JOB, nothing, fusion, nothing, nothing, nothing)
    return fusion


def test_the_link_of_a_domain_is_what_came_to_be_there(
    blocks: dict[int, tuple[Any, Tensor]],
) -> None:
    truth = ((3.0, -5.0), (8.0, -7.0))
    blocks |= {index: block_of(index, *link) for index, link in enumerate(truth)}
    found = learn().link_D2
    torch.testing.assert_close(found[:2], torch.tensor(truth), rtol=0.1, atol=0.1)


def test_a_domain_with_few_events_has_the_link_of_all(
    blocks: dict[int, tuple[Any, Tensor]],
) -> None:
    blocks |= {0: block_of(0, 3.0, -5.0), 1: block_of(1, 0.0, -12.0)}
    found = learn().link_D2
    # The second has hardly any event, and the third no block.
    assert found[1].equal(found[2])
    assert not found[0].equal(found[1])


def test_the_link_is_that_of_lists_not_of_all_pairs(
    blocks: dict[int, tuple[Any, Tensor]],
) -> None:
    """Users' scores have levels of their own, which say nothing of what they will do."""
    draw = torch.Generator().manual_seed(5)
    scores = torch.randn(400, 400, generator=draw)
    # One in three of the first TOP, of the others nothing.
    comes = (scores >= scores.topk(TOP, dim=1).values[:, -1:]) & (
        torch.rand(scores.shape, generator=draw) < 1 / 3
    )
    following = tuple(part.numpy() for part in torch.nonzero(comes, as_tuple=True))
    levels = 3 * torch.randn(400, 1, generator=draw)
    block = SimpleNamespace(index=0, seen=NOTHING, following=following)
    blocks[0] = block, scores + levels
    said = learn().published((scores + levels).topk(TOP, dim=1).values, 0)
    assert abs(float(said.mean()) - 1 / 3) < 0.02
    assert float(said.std()) < 0.05


def test_where_nothing_happens_there_is_no_link(blocks: dict[int, tuple[Any, Tensor]]) -> None:
    fusion, scores = learn(), torch.tensor([3.0, -1.0])
    assert fusion.published(scores, 1).equal(scores)


def test_what_the_user_had_does_not_count(blocks: dict[int, tuple[Any, Tensor]]) -> None:
    block, scores = block_of(0, 3.0, -5.0)
    plain = {0: (block, scores)}
    blocks |= plain
    expected = learn().link_D2[0]
    had = tuple(part.ravel() for part in np.indices((USERS, 100)))
    block.seen = had
    kept = block.following[1] >= 100
    block.following = tuple(part[kept] for part in block.following)
    torch.testing.assert_close(learn().link_D2[0], expected, rtol=0.15, atol=0.15)


def test_a_link_gives_probabilities_in_the_order_of_scores() -> None:
    fusion = Fusion(1)
    fusion.link_D2[0] = torch.tensor([4.0, -6.0])
    scores = torch.tensor([[2.0, 1.5, 0.0, -torch.inf]])
    found = fusion.published(scores, 0)
    torch.testing.assert_close(found, torch.sigmoid(4 * scores - 6))
    assert found.diff().le(0).all()


@pytest.mark.parametrize("outcome", [0.0, 1.0])
def test_platt_of_one_outcome_alone_is_finite(outcome: float) -> None:
    scores = np.linspace(0, 1, 50)
    slope, level = fit_platt(scores, np.full(50, outcome))
    chances = 1 / (1 + np.exp(-(slope * scores + level)))
    assert np.isfinite([slope, level]).all()
    assert np.abs(chances - outcome).max() < 0.1


def test_platt_never_turns_the_order_round() -> None:
    scores = np.linspace(0, 1, 200)
    slope, _ = fit_platt(scores, (scores < 0.5).astype(float))
    assert slope == LOWEST_SLOPE
