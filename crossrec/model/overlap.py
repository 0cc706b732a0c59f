"""How much an item overlaps with what a user had: the collaborative part of a score.

    overlap = find_overlap(neighbours, past, users)
    overlap.users_N, overlap.items_N, overlap.values_N    # one entry a pair that overlaps at all

Tensor suffixes: B users, E events, I catalogue rows, N pairs of user and item.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from crossrec.data.cooccurrence import Neighbours
from crossrec.model.fusion import OVERLAP_FLOOR


@dataclass(frozen=True)
class PastEvents:
    """Events of a batch of users, laid end to end.

    owners_E: user of each event, int64, ascending. rows_E: catalogue row, int64. weights_E:
    float32.
    """

    owners_E: Tensor
    rows_E: Tensor
    weights_E: Tensor


@dataclass(frozen=True)
class NeighbourTable:
    """`data.cooccurrence.Neighbours` as tensors on a device: offsets_I, columns_N, weights_N."""

    offsets_I: Tensor
    columns_N: Tensor
    weights_N: Tensor

    @classmethod
    def of(cls, found: Neighbours) -> "NeighbourTable":
        """Return the table of neighbours that were counted, on the CPU."""
        return cls(
            *(torch.from_numpy(part) for part in (found.offsets, found.columns, found.weights))
        )

    def to(self, device: torch.device) -> "NeighbourTable":
        """Return the table on another device."""
        return NeighbourTable(*(part.to(device) for part in vars(self).values()))


class Overlap(NamedTuple):
    """Pairs of user and item that overlap, by item, then user; all others overlap by 0.

    users_N, items_N: int64. values_N: float32, log(1 + overlap / OVERLAP_FLOOR).
    """

    users_N: Tensor
    items_N: Tensor
    values_N: Tensor

    def weighted(self, weights_B: Tensor) -> "Overlap":
        """Return the overlap with each user's values times a weight."""
        return Overlap(self.users_N, self.items_N, self.values_N * weights_B[self.users_N])


def find_overlap(neighbours: NeighbourTable, past: PastEvents, users: int) -> Overlap:
    """Add up, over the users' past events, the weights of the neighbours of each event's item.

    Args:
        neighbours: of one domain.
        past: events of `users` users.
        users: size of the batch.
    """
    first_E = neighbours.offsets_I[past.rows_E]
    counts_E = neighbours.offsets_I[past.rows_E + 1] - first_E
    event_N = torch.repeat_interleave(counts_E)
    within_N = torch.arange(len(event_N), device=event_N.device)
    index_N = within_N - (counts_E.cumsum(0) - counts_E - first_E)[event_N]
    values_N = neighbours.weights_N[index_N] * past.weights_E[event_N]
    keys_N = neighbours.columns_N[index_N].long() * users + past.owners_E[event_N]
    # Sorted and added segment by segment: the same sum on every run, on a GPU too.
    keys_N, order_N = keys_N.sort(stable=True)
    keys_N, repeats_N = torch.unique_consecutive(keys_N, return_counts=True)
    if not len(keys_N):
        return Overlap(keys_N, keys_N, values_N)
    summed_N = torch.segment_reduce(values_N[order_N], "sum", lengths=repeats_N)
    return Overlap(
        keys_N % users,
        keys_N.div(users, rounding_mode="floor"),
        torch.log1p(summed_N / OVERLAP_FLOOR),
    )
