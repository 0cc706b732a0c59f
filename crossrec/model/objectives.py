"""What fine-tuning minimises: softmax over the target domain's items, full or sampled.

In: a batch of histories with targets. Out: the summed loss and the number of targets, so that
workers with unequal batches still average to the loss of the one global batch.

Tensor suffixes: B users, L positions, N targets, C candidates, U unique items of a batch, T text
width, W model width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from crossrec.model.recommender import HistoryBatch, Recommender, recent_mean

TextOf = Callable[[Tensor], Tensor]
"""Catalogue rows (U,) -> text vectors (U, T): a table look-up, or a pass through a backbone that
learns."""


@dataclass(frozen=True)
class Targets:
    """What is predicted from where; all (N,) int64.

    users_N: row of the batch. sources_N: column of the newest event known. rows_N: catalogue row of
    the target.
    elapsed_N: days from the source to the target.
    """

    users_N: Tensor
    sources_N: Tensor
    rows_N: Tensor
    elapsed_N: Tensor

    def to(self, device: torch.device) -> "Targets":
        """Return the targets on another device."""
        return Targets(
            *(
                part.to(device)
                for part in (self.users_N, self.sources_N, self.rows_N, self.elapsed_N)
            )
        )


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
    """The recommender, and the backbone where it learns, under the softmax objective."""

    def __init__(self, recommender: Recommender, text_of: TextOf, items: ItemTable) -> None:
        super().__init__()
        self.recommender = recommender
        self.text_of = text_of
        self.items = items
        self.domain_weights = items.domain_weights()

    def forward(self, batch: HistoryBatch, targets: Targets, generator: torch.Generator) -> Tensor:
        """Return the loss summed over the targets, each with the weight of its domain.

        Logits are cosine / temperature + log(1 + events of the item): what is popular anyway need
        not be learned, and the night adds what is popular *then* (model.recommender). Every unique
        item of the batch is encoded once.
        """
        candidates = [
            self._candidates(targets.rows_N, domain, generator)
            for domain in range(len(self.items.bounds))
        ]
        known_BL = batch.rows_BL >= 0
        rows_U = torch.unique(
            torch.cat([batch.rows_BL[known_BL], *(found[0] for found in candidates)])
        )
        vectors_UW = self._vectors(rows_U)
        # Position 0 and padding look up any vector; `known_BL` masks what they hold.
        history_BLW = vectors_UW[
            torch.searchsorted(rows_U, batch.rows_BL.clamp(min=int(rows_U[0])))
        ]
        hidden_BLW = self.recommender.encode(history_BLW, batch)
        profile_BLW = recent_mean(history_BLW, known_BL)
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
            offset_C = torch.log1p(self.items.counts_I[rows_C]) - log_share_C
            labels_N = torch.searchsorted(rows_C, targets.rows_N[asked])
            # The target itself is there with certainty, whatever the chance of its being drawn.
            logits_NC = logits_NC + offset_C
            logits_NC[torch.arange(len(labels_N), device=labels_N.device), labels_N] += log_share_C[
                labels_N
            ]
            summed = functional.cross_entropy(logits_NC, labels_N, reduction="sum")
            total = total + summed * self.domain_weights[domain]
        return total

    def _logits(self, queries_NW: Tensor, vectors_CW: Tensor) -> Tensor:
        """Return cosine / temperature (N, C), fp32: bf16 tells logits of 12 apart by 0.06 only."""
        with torch.autocast(queries_NW.device.type, enabled=False):
            return queries_NW.float() @ vectors_CW.float().T * self.recommender.log_scale.exp()

    def _vectors(self, rows_U: Tensor) -> Tensor:
        return self.recommender.item_vectors(
            self.text_of(rows_U), self.items.ids_I[rows_U], torch.log1p(self.items.counts_I[rows_U])
        )

    def _in_domain(self, rows_N: Tensor, domain: int) -> Tensor:
        start, stop = self.items.bounds[domain]
        return (rows_N >= start) & (rows_N < stop)

    def _candidates(
        self, rows_N: Tensor, domain: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return distinct, sorted candidate rows (C,) and the log of each one's chance to be there.

        A sample is the batch's own targets in the domain and uniform negatives; each candidate
        stands once, so a negative never collides with a target. Dividing by the chance of being
        drawn (Horvitz and Thompson 1952) keeps the sampled sum an unbiased estimate of the full
        one.
        """
        start, stop = self.items.bounds[domain]
        device = rows_N.device
        own_N = rows_N[self._in_domain(rows_N, domain)]
        if not len(own_N):
            return own_N, own_N.float()
        size = stop - start
        if size <= max(self.items.full_softmax_items, self.items.negatives):
            return torch.arange(start, stop, device=device), torch.zeros(size, device=device)
        drawn_C = torch.randint(start, stop, (self.items.negatives,), generator=generator).to(
            device
        )
        rows_C = torch.unique(torch.cat([own_N, drawn_C]))
        counts_I = self.items.counts_I
        share_C = counts_I[rows_C] / counts_I[start:stop].sum().clamp(min=1)
        missed_C = len(own_N) * torch.log1p(
            -share_C.clamp(max=1 - 1e-6)
        ) + self.items.negatives * torch.log1p(torch.tensor(-1 / size, device=device))
        return rows_C, torch.log(-torch.expm1(missed_C))
