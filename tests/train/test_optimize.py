import pytest
import torch
from torch import nn

from crossrec.config import TrainConfig
from crossrec.train.optimize import WARM_UP_SHARE, build_optimizer, set_rates

Backbone = dict[nn.Parameter, int]


def parameters(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(shape)) for shape in shapes]


def rates(optimizer: torch.optim.Optimizer) -> dict[int, float]:
    """Share of its peak that each depth has; -1 is the head."""
    return {group["depth"]: group["lr"] / group["peak"] for group in optimizer.param_groups}


@pytest.fixture
def head() -> list[nn.Parameter]:
    return parameters((2, 2), (2,), ())


@pytest.fixture
def backbone() -> Backbone:
    """Two layers above embeddings."""
    matrix, norm, lower, words = parameters((2, 2), (2,), (2, 2), (5, 2))
    return {matrix: 0, norm: 0, lower: 1, words: 2}


def test_matrices_alone_decay(head: list[nn.Parameter], backbone: Backbone) -> None:
    optimizer = build_optimizer(head, backbone, TrainConfig(weight_decay=0.3))
    decays = {
        (part.ndim > 1, group["weight_decay"])
        for group in optimizer.param_groups
        for part in group["params"]
    }
    assert decays == {(True, 0.3), (False, 0.0)}


def test_a_layer_learns_less_than_the_one_above_it(
    head: list[nn.Parameter], backbone: Backbone
) -> None:
    train = TrainConfig(learning_rate=0.1, backbone_learning_rate=0.01, layer_decay=0.5)
    optimizer = build_optimizer(head, backbone, train)
    peaks = {group["depth"]: group["peak"] for group in optimizer.param_groups}
    assert peaks == {-1: 0.1, 0: 0.01, 1: 0.005, 2: 0.0025}


def test_rates_warm_up_and_fall_to_a_tenth(head: list[nn.Parameter]) -> None:
    train = TrainConfig(warm_up_steps=50)
    optimizer = build_optimizer(head, {}, train)

    def rate(step: int, total: int = 1_000) -> float:
        set_rates(optimizer, step, total, 0, train)
        return rates(optimizer)[-1]

    assert rate(0) == pytest.approx(1 / 50)
    assert rate(50) == pytest.approx(1.0, abs=0.01)
    assert rate(500) == pytest.approx((1 + 0.1) / 2)
    assert rate(1_000) == rate(5_000) == pytest.approx(0.1)
    assert rate(0, total=100) == pytest.approx(1 / (100 * WARM_UP_SHARE))


def test_layers_begin_to_learn_from_the_top(head: list[nn.Parameter], backbone: Backbone) -> None:
    train = TrainConfig(unfreeze_epochs=2)
    optimizer = build_optimizer(head, backbone, train)

    def learning(epoch: int) -> set[int]:
        set_rates(optimizer, 100, 1_000, epoch, train)
        return {depth for depth, rate in rates(optimizer).items() if rate > 0}

    assert [learning(epoch) for epoch in (0, 1, 2, 4)] == [
        {-1, 0},
        {-1, 0},
        {-1, 0, 1},
        {-1, 0, 1, 2},
    ]


def test_a_frozen_layer_stays_and_a_thawed_one_moves(
    head: list[nn.Parameter], backbone: Backbone
) -> None:
    train = TrainConfig(unfreeze_epochs=1)
    optimizer = build_optimizer(head, backbone, train)
    top, _, lower, words = backbone
    for epoch in (0, 1):
        for part in backbone:
            part.grad = torch.ones_like(part)
        set_rates(optimizer, 10, 20, epoch, train)
        assert (lower.grad is None) == (epoch == 0)
        optimizer.step()
        assert top.any()
        assert lower.any().item() == (epoch == 1)
    assert not words.any()


def test_sgd_moves_along_the_gradient_with_momentum(head: list[nn.Parameter]) -> None:
    train = TrainConfig(optimizer="sgd", momentum=0.5, learning_rate=0.1, weight_decay=0.0)
    optimizer = build_optimizer(head, {}, train)
    for _ in range(2):
        for part in head:
            part.grad = torch.ones_like(part)
        optimizer.step()
    assert head[1].tolist() == pytest.approx([-0.1 - 0.1 * 1.5] * 2)
