"""Losses of logits, free of any model: softmax, BCE and gBCE, each with sampled negatives.

    binary_loss(logits_NC, labels_N, weights_NC, positive_weight(share=0.1, trust=0.75))

Tensor suffixes: N targets, C candidates.
"""

import torch
from torch import Tensor
from torch.nn import functional


def positive_weight(share: float, trust: float) -> float:
    """Return the weight beta of a target against sampled negatives.

    gBCE raises the target's probability to the power of beta, so that a model that has seen few
    negatives is not too sure. Source: gSASRec, Petrov and Macdonald 2023:
    beta = alpha ((1 - 1 / alpha) t + 1 / alpha), which is 1 - t (1 - alpha).

    Args:
        share: alpha, the share of the other items that are negatives of a target, above 0 to 1.
        trust: t; 0 is BCE, 1 undoes the sampling wholly.

    >>> positive_weight(0.1, 0.0), positive_weight(0.25, 1.0), positive_weight(1.0, 0.75)
    (1.0, 0.25, 1.0)
    """
    return 1.0 - trust * (1.0 - share)


def binary_loss(logits_NC: Tensor, labels_N: Tensor, weights_NC: Tensor, beta: float) -> Tensor:
    """Return the loss (N,) of targets: -beta log p(target) - sum over negatives of w log(1 - p).

    Source: SASRec, Kang and McAuley 2018 with beta and more than one negative as in
    gSASRec, Petrov and Macdonald 2023.

    Args:
        logits_NC: log-odds of every candidate.
        labels_N: column of the target.
        weights_NC: of each candidate as a negative, 0 for none; that of the target does not count.
        beta: weight of the target.
    """
    is_target_NC = torch.zeros_like(weights_NC, dtype=torch.bool)
    is_target_NC[torch.arange(len(labels_N), device=labels_N.device), labels_N] = True
    against = (functional.softplus(logits_NC) * weights_NC).masked_fill(is_target_NC, 0.0)
    return beta * functional.softplus(-logits_NC[is_target_NC]) + against.sum(1)


def softmax_loss(
    logits_NC: Tensor, log_share_C: Tensor, labels_N: Tensor, is_other_NC: Tensor | None = None
) -> Tensor:
    """Return the softmax loss (N,), each negative over its chance to be there (logQ correction).

    Yi et al. 2019, but not for the target: it is there with certainty, whatever the chance of its
    being drawn (Khrylchenko et al. 2025). The same holds for negatives from the batch, which would
    otherwise push down what is popular for being popular.

    Args:
        logits_NC: of every target's candidates.
        log_share_C: log of each candidate's chance to be there.
        labels_N: column of the target.
        is_other_NC: False for what the user had too, no negative; all are where it is None.
    """
    places = torch.arange(len(labels_N), device=labels_N.device)
    corrected_NC = logits_NC - log_share_C
    if is_other_NC is not None:
        corrected_NC = corrected_NC.masked_fill(~is_other_NC, -torch.inf)
    corrected_NC[places, labels_N] = logits_NC[places, labels_N]
    return functional.cross_entropy(corrected_NC, labels_N, reduction="none")
