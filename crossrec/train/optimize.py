"""The optimizer of a training run: groups of parameters, each with its rate at every step.

optimizer = build_optimizer(head, backbone_depths, train)
set_rates(optimizer, step, total_steps, epoch, train)
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from crossrec.config import TrainConfig

WARM_UP_SHARE = 0.1
"""Share of all steps over which the learning rate rises from 0, at most; then it falls along a
cosine to a tenth (Loshchilov and Hutter 2017, eq. 5)."""


def build_optimizer(
    head: Sequence[nn.Parameter], backbone: Mapping[nn.Parameter, int], train: TrainConfig
) -> torch.optim.Optimizer:
    """Return the optimizer of all that learns.

    Matrices decay; norms, biases and scalars do not. A backbone's weights learn at a rate of their
    own, which falls by `layer_decay` from layer to layer below the top (Howard and Ruder 2018).

    Args:
        head: parameters beside the backbone.
        backbone: those of the backbone that learn, and how far below the top each lies.
        train: settings.
    """
    groups = _groups(head, train.learning_rate, train.weight_decay, -1)
    for depth in sorted(set(backbone.values())):
        rate = train.backbone_learning_rate * train.layer_decay**depth
        parts = [part for part, found in backbone.items() if found == depth]
        groups += _groups(parts, rate, train.weight_decay, depth)
    if train.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=train.momentum)
    return torch.optim.AdamW(groups)


def _groups(
    parameters: Sequence[nn.Parameter], peak: float, weight_decay: float, depth: int
) -> list[dict[str, Any]]:
    matrices = [part for part in parameters if part.ndim > 1]
    others = [part for part in parameters if part.ndim <= 1]
    return [
        {"params": part, "lr": peak, "peak": peak, "weight_decay": decay, "depth": depth}
        for part, decay in ((matrices, weight_decay), (others, 0.0))
        if part
    ]


def set_rates(
    optimizer: torch.optim.Optimizer, step: int, total_steps: int, epoch: int, train: TrainConfig
) -> None:
    """Set each group's rate for a step and an epoch, both from 0.

    Under `unfreeze_epochs` a further layer of the backbone begins to learn after each so many
    epochs, from the top (Howard and Ruder 2018, section 3.3); before that its rate is 0, and
    its gradients are dropped: they would take from the norm of the others.
    """
    done = min(step / max(total_steps, 1), 1.0)
    warm_up = max(1.0, min(train.warm_up_steps, total_steps * WARM_UP_SHARE))
    factor = min((step + 1) / warm_up, 1.0) * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))
    thawed = epoch // train.unfreeze_epochs if train.unfreeze_epochs else math.inf
    for group in optimizer.param_groups:
        is_frozen = group["depth"] > thawed
        group["lr"] = 0.0 if is_frozen else group["peak"] * factor
        if is_frozen:
            for part in group["params"]:
                part.grad = None
