import math

import pytest
import torch

from crossrec.model.losses import binary_loss, positive_weight

LOGITS = torch.tensor([[0.5, -1.0, 2.0]])
LABEL = torch.tensor([1])


def log_sigmoid(logit: float) -> float:
    return -math.log(1 + math.exp(-logit))


def test_bce_of_three_items_equals_a_computation_by_hand() -> None:
    found = binary_loss(LOGITS, LABEL, torch.ones(1, 3), 1.0).item()
    assert found == pytest.approx(-log_sigmoid(-1.0) - log_sigmoid(-0.5) - log_sigmoid(-2.0))


def test_gbce_of_three_items_equals_a_computation_by_hand() -> None:
    # 1 of 4 other items is a negative: beta = 1/4 (3/4 (1 - 4) + 4) = 7/16.
    beta = positive_weight(share=0.25, trust=0.75)
    assert beta == 0.25 * ((1 - 4) * 0.75 + 4) == 7 / 16
    found = binary_loss(LOGITS, LABEL, torch.tensor([[1.0, 1.0, 0.0]]), beta).item()
    assert found == pytest.approx(-7 / 16 * log_sigmoid(-1.0) - log_sigmoid(-0.5))


def test_binary_loss_reaches_the_target_and_every_negative() -> None:
    logits = LOGITS.clone().requires_grad_(True)
    binary_loss(logits, LABEL, torch.tensor([[1.0, 1.0, 0.0]]), 1.0).backward()
    assert logits.grad is not None
    assert logits.grad.sign().tolist() == [[1.0, -1.0, 0.0]]
