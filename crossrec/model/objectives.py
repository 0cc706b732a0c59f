"""What fine-tuning minimises; all objectives see the same queries and item vectors.

softmax: over the target domain's items, all or a sample. contrastive: over the targets of the batch
alone. bce, gbce: each item for itself, a target against sampled negatives (model.losses). mse: see
model.rating.

In: a batch of histories with targets. Out: the summed loss and the number of targets, so that
workers with unequal batches still average to the loss of the one global batch.

Tensor suffixes: B users, L positions, N targets, C candidates, U unique items of a batch, T text
width, W model width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from crossrec.model.losses import binary_loss, positive_weight, softmax_loss
from crossrec.model.recommender import HistoryBatch, Recommender, recent_mean

TextOf = Callable[[Tensor], Tensor]
"""Catalogue rows (U,) -> text vectors (U, T): a table look-up, or a pass through a backbone that
learns."""


LEVEL_SPEED = 10.0
"""Adam moves a parameter by the learning rate a step; the level of log-odds has further to go."""


@dataclass(frozen=True)
class Objective:
    """What is minimised: `train.objective`, and `train.gbce_t` where it is gbce."""

    name: Literal["softmax", "bce", "gbce", "contrastive", "mse"] = "softmax"
    gbce_t: float = 0.75

    @property
    def is_binary(self) -> bool:
        """Whether each item is judged for itself, not against the others."""
        return self.name in ("bce", "gbce")

    @property
    def trust(self) -> float:
        """The t of gBCE; 0 makes it BCE."""
        return self.gbce_t if self.name == "gbce" else 0.0


@dataclass(frozen=True)
class Targets:
    """What is predicted from where; (N,) int64 each.

    users_N: row of the batch. sources_N: column of the newest event known. rows_N: catalogue row of
    the target.
    elapsed_N: days from the source to the target. weights_N, ratings_N: float32 of the target;
    without the first all count 1, the second is for the objective mse alone.
    """

    users_N: Tensor
    sources_N: Tensor
    rows_N: Tensor
    elapsed_N: Tensor
    weights_N: Tensor | None = None
    ratings_N: Tensor | None = None

    def to(self, device: torch.device) -> "Targets":
        """Return the targets on another device."""
        return Targets(
            self.users_N.to(device),
            self.sources_N.to(device),
            self.rows_N.to(device),
            self.elapsed_N.to(device),
            None if self.weights_N is None else self.weights_N.to(device),
            None if self.ratings_N is None else self.ratings_N.to(device),
        )

    @property
    def weight(self) -> float:
        """Of all targets together, over which the loss is a mean."""
        return float(len(self.rows_N) if self.weights_N is None else self.weights_N.sum())


@dataclass(frozen=True)
class ItemTable:
    """What the loss needs to know of the catalogue; buffers on the device of the model.

    ids_I: row in the id embedding, -1 for none. counts_I: float32 events in training. bounds:
    (start, stop) of the catalogue rows of each domain. full_softmax_items: domains up to this size
    use every item. negatives: uniform negatives a domain and step of larger ones. balance: from 0,
    every domain weighs the same in the loss, to 1, every event does.
    """

    ids_I: Tensor
    counts_I: Tensor
    bounds: tuple[tuple[int, int], ...]
    full_softmax_items: int
    negatives: int
    balance: float = 1.0

    def domain_weights(self) -> list[float]:
        """Return the weight of a target in each domain; over all events they average to 1.

        A domain's share of the loss grows with events ** balance, so that a rich one does not drown
        a poor one (Arivazhagan et al. 2019, with temperature 1 / balance).
        """
        events_D = torch.stack([self.counts_I[start:stop].sum() for start, stop in self.bounds])
        shares_D = torch.where(events_D > 0, events_D**self.balance, 0.0)
        shares_D = shares_D / shares_D.sum().clamp(min=1e-9) * events_D.sum()
        return (shares_D / events_D.clamp(min=1)).tolist()


class NextEventLoss(nn.Module):
    """The recommender, and the backbone where it learns, under an objective.

    levels: the domains' log-odds where each item is judged for itself, else empty.
    """

    def __init__(
        self,
        recommender: Recommender,
        text_of: TextOf,
        items: ItemTable,
        objective: Objective = Objective(),
    ) -> None:
        super().__init__()
        self.recommender = recommender
        self.text_of = text_of
        if objective.name == "contrastive":
            items = replace(items, full_softmax_items=0, negatives=0)
        self.items = items
        self.objective = objective
        self.domain_weights = items.domain_weights()
        self.levels = nn.ParameterList(
            nn.Parameter(torch.zeros(())) for _ in items.bounds if objective.is_binary
        )

    def forward(
        self,
        batch: HistoryBatch,
        targets: Targets,
        generator: torch.Generator,
        chosen_M: Tensor | None = None,
    ) -> Tensor:
        """Return the loss summed over the targets, each with its own and its domain's weight.

        Logits are cosine / temperature + log(1 + events of the item): what is popular anyway need
        not be learned, and the night adds what is popular *then* (model.recommender). Every unique
        item is encoded once. Parts of a step that see all its targets, `chosen_M`, add up to it.
        """
        chosen_M = gather_rows(targets.rows_N) if chosen_M is None else chosen_M
        candidates = [
            self._candidates(chosen_M, targets.rows_N, domain, generator)
            for domain in range(len(self.items.bounds))
        ]
        rows_U = torch.unique(
            torch.cat([batch.rows_BL[batch.rows_BL >= 0], *(found[0] for found in candidates)])
        )
        vectors_UW, hidden_BLW, profile_BLW = self._read(batch, rows_U)
        total = hidden_BLW.sum() * 0.0
        for domain, (rows_C, log_share_C) in enumerate(candidates):
            asked = torch.nonzero(self._in_domain(targets.rows_N, domain)).squeeze(1)
            if not len(asked):
                continue
            users, sources = targets.users_N[asked], targets.sources_N[asked]
            queries_NW = self.recommender.queries(
                hidden_BLW[users, sources],
                profile_BLW[users, sources],
                torch.full_like(asked, domain),
                targets.elapsed_N[asked],
            )
            logits_NC = self._logits(queries_NW, vectors_UW[torch.searchsorted(rows_U, rows_C)])
            logits_NC = logits_NC + torch.log1p(self.items.counts_I[rows_C])
            labels_N = torch.searchsorted(rows_C, targets.rows_N[asked])
            is_other_NC = None
            if self.objective.name != "softmax":
                is_other_NC = ~_had(batch.rows_BL, rows_C)[users]
            if is_other_NC is not None and self.objective.is_binary:
                loss_N = self._binary_loss(logits_NC, log_share_C, labels_N, is_other_NC, domain)
            else:
                loss_N = softmax_loss(logits_NC, log_share_C, labels_N, is_other_NC)
            if targets.weights_N is not None:
                loss_N = loss_N * targets.weights_N[asked]
            total = total + loss_N.sum() * self.domain_weights[domain]
        return total

    def _read(self, batch: HistoryBatch, rows_U: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the items' vectors, hidden states and profiles of the histories.

        rows_U: sorted; every item of the histories is among them.
        """
        known_BL = batch.rows_BL >= 0
        vectors_UW = self._vectors(rows_U)
        # Position 0 and padding look up any vector; `known_BL` masks what they hold.
        history_BLW = vectors_UW[
            torch.searchsorted(rows_U, batch.rows_BL.clamp(min=int(rows_U[0])))
        ]
        hidden_BLW = self.recommender.encode(history_BLW, batch)
        return vectors_UW, hidden_BLW, recent_mean(history_BLW, known_BL)

    def _logits(self, queries_NW: Tensor, vectors_CW: Tensor) -> Tensor:
        """Return cosine / temperature (N, C), fp32: bf16 tells logits of 12 apart by 0.06 only."""
        with torch.autocast(queries_NW.device.type, enabled=False):
            return queries_NW.float() @ vectors_CW.float().T * self.recommender.log_scale.exp()

    def _binary_loss(
        self,
        logits_NC: Tensor,
        log_share_C: Tensor,
        labels_N: Tensor,
        is_other_NC: Tensor,
        domain: int,
    ) -> Tensor:
        """Return the BCE or gBCE (N,) of a domain's targets.

        Of the other items `negatives` a target count, or all: each candidate by that share, over
        its chance to be there, so that the sum is right on average whatever else is in the batch
        (1.5 % too small with 30 targets, 0.03 % with 300: the target itself is no negative).
        The logits start at the log-odds that would be right if all users were alike.
        """
        start, stop = self.items.bounds[domain]
        others = max(stop - start - 1, 1)
        is_full = not log_share_C.any()
        share = 1.0 if is_full else min(1.0, self.items.negatives / others)
        beta = positive_weight(share, self.objective.trust)
        events = (1 + self.items.counts_I[start:stop]).sum()
        level = LEVEL_SPEED * self.levels[domain] + math.log(beta / share) - events.log()
        weights_NC = is_other_NC * (share * torch.exp(-log_share_C))
        return binary_loss(logits_NC + level, labels_N, weights_NC, beta)

    def _vectors(self, rows_U: Tensor) -> Tensor:
        return self.recommender.item_vectors(
            self.text_of(rows_U), self.items.ids_I[rows_U], torch.log1p(self.items.counts_I[rows_U])
        )

    def _in_domain(self, rows_N: Tensor, domain: int) -> Tensor:
        start, stop = self.items.bounds[domain]
        return (rows_N >= start) & (rows_N < stop)

    def _candidates(
        self, chosen_M: Tensor, rows_N: Tensor, domain: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return distinct, sorted candidate rows (C,) and the log of each one's chance to be there.

        A sample is the targets in the domain of all workers' batches, `chosen_M`, and uniform
        negatives, the same on all workers; each candidate stands once, so a negative never collides
        with a target. A worker without a target `rows_N` in the domain needs none. Dividing by the
        chance of being drawn (Horvitz and Thompson 1952) keeps the sampled sum an unbiased estimate
        of the full one.
        """
        start, stop = self.items.bounds[domain]
        device = rows_N.device
        own_M = chosen_M[self._in_domain(chosen_M, domain)]
        if not len(own_M):
            return own_M, own_M.float()
        size = stop - start
        if size <= max(self.items.full_softmax_items, self.items.negatives):
            return torch.arange(start, stop, device=device), torch.zeros(size, device=device)
        drawn_C = torch.randint(start, stop, (self.items.negatives,), generator=generator).to(
            device
        )
        if not self._in_domain(rows_N, domain).any():
            return own_M[:0], own_M[:0].float()
        rows_C = torch.unique(torch.cat([own_M, drawn_C]))
        counts_I = self.items.counts_I
        share_C = counts_I[rows_C] / counts_I[start:stop].sum().clamp(min=1)
        missed_C = len(own_M) * torch.log1p(
            -share_C.clamp(max=1 - 1e-6)
        ) + self.items.negatives * torch.log1p(torch.tensor(-1 / size, device=device))
        # An item without events is there only as a target, whatever its chance.
        return rows_C, torch.log(-torch.expm1(missed_C).clamp(max=-1e-9))


def gather_rows(rows_N: Tensor) -> Tensor:
    """Return the rows of all workers one after the other, (M,); without others the same rows."""
    if not distributed.is_available() or not distributed.is_initialized():
        return rows_N
    world = distributed.get_world_size()
    sizes = rows_N.new_zeros(world)
    distributed.all_gather_into_tensor(sizes, rows_N.new_tensor([len(rows_N)]))
    most = int(sizes.max())
    if not most:
        return rows_N
    padded = functional.pad(rows_N, (0, most - len(rows_N)))
    gathered = rows_N.new_zeros(world * most)
    distributed.all_gather_into_tensor(gathered, padded)
    parts = [part[:size] for part, size in zip(gathered.split(most), sizes, strict=True)]
    return torch.cat(parts)


def _had(rows_BL: Tensor, rows_C: Tensor) -> Tensor:
    """Return (B, C) bool: whether a sorted candidate stands anywhere in a user's history."""
    columns_BL = torch.searchsorted(rows_C, rows_BL).clamp(max=len(rows_C) - 1)
    users, places = torch.nonzero(rows_C[columns_BL] == rows_BL, as_tuple=True)
    had_BC = rows_BL.new_zeros(len(rows_BL), len(rows_C), dtype=torch.bool)
    had_BC[users, columns_BL[users, places]] = True
    return had_BC
