"""Gradients of rows that occur often, by several threads that are in each other's way."""

import torch

from crossrec.train.repeat import repeatable

ROWS, TIMES, WIDTH = 500, 20_000, 64


def gradients(times: int) -> set[bytes]:
    """Return the different gradients that as many passes give."""
    rows_RW = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1))
    rows_RW.requires_grad_()
    chosen_N = torch.arange(TIMES) % ROWS
    weights_NW = torch.randn(TIMES, WIDTH, generator=torch.Generator().manual_seed(2))
    found: set[bytes] = set()
    for _ in range(times):
        rows_RW.grad = None
        rows_RW[chosen_N].backward(weights_NW)
        assert rows_RW.grad is not None
        found.add(rows_RW.grad.numpy().tobytes())
    return found


def test_gradients_are_the_same_each_time() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with repeatable():
            assert len(gradients(20)) == 1
    finally:
        torch.set_num_threads(before)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_model_that_needs_an_operation_without_order_trains_all_the_same() -> None:
    with repeatable():
        assert torch.is_deterministic_algorithms_warn_only_enabled()
