"""How much an item overlaps with what a user had: the collaborative part of a score.

    overlap = find_overlap(neighbours, past, users)
    overlap.users_N, overlap.items_N, overlap.values_N    # one entry a pair that overlaps at all

Tensor suffixes: B users, E events, A events of a user, I catalogue rows or items of a domain,
K list length, N pairs of user and item, or neighbours of events.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
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
        parts = self.offsets_I, self.columns_N, self.weights_N
        return NeighbourTable(*(part.to(device) for part in parts))

    @cached_property
    def matrix(self) -> sparse.csr_array:
        """The weights as a sparse matrix, catalogue rows by items of the domain; on the CPU."""
        columns, offsets = self.columns_N.numpy(), self.offsets_I.numpy()
        # Of one type, so that mapped columns are used as they are wherever their number allows.
        kind = np.int32 if offsets[-1] <= np.iinfo(np.int32).max else np.int64
        shape = len(offsets) - 1, int(columns.max(initial=-1)) + 1
        index = columns.astype(kind, copy=False), offsets.astype(kind)
        return sparse.csr_array((self.weights_N.numpy(), *index), shape=shape)


class Overlap(NamedTuple):
    """Pairs of user and item that overlap, by user; all others overlap by 0.

    users_N, items_N: int64. values_N: float32, log(1 + overlap / OVERLAP_FLOOR).
    """

    users_N: Tensor
    items_N: Tensor
    values_N: Tensor

    def weighted(self, weights_B: Tensor) -> "Overlap":
        """Return the overlap with each user's values times a weight."""
        return Overlap(self.users_N, self.items_N, self.values_N * weights_B[self.users_N])

    def weighted_by_item(self, weights_I: Tensor) -> "Overlap":
        """Return the overlap with each item's values times a weight."""
        return Overlap(self.users_N, self.items_N, self.values_N * weights_I[self.items_N])

    def among(self, rows_N: Tensor, size: int) -> "Overlap":
        """Return the overlap with some of a domain's `size` items, numbered by their place."""
        place_I = rows_N.new_full((size,), -1)
        place_I[rows_N] = torch.arange(len(rows_N), device=rows_N.device)
        places_N = place_I[self.items_N]
        kept_N = places_N >= 0
        return Overlap(self.users_N[kept_N], places_N[kept_N], self.values_N[kept_N])


def find_overlap(neighbours: NeighbourTable, past: PastEvents, users: int) -> Overlap:
    """Add up, over the users' past events, the weights of the neighbours of each event's item.

    Args:
        neighbours: of one domain.
        past: events of `users` users.
        users: size of the batch.
    """
    if past.rows_E.device.type == "cpu":
        users_N, items_N, summed_N = _multiply(neighbours.matrix, past, users)
    else:
        users_N, items_N, summed_N = _sort_and_add(neighbours, past)
    return Overlap(users_N, items_N, torch.log1p(summed_N / OVERLAP_FLOOR))


def _multiply(
    matrix: sparse.csr_array, past: PastEvents, users: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Add up by a sparse product: on a CPU several times as fast as sorting all neighbours."""
    kind = matrix.indptr.dtype
    offsets = np.searchsorted(past.owners_E.numpy(), np.arange(users + 1)).astype(kind)
    events = (past.weights_E.numpy(), past.rows_E.numpy().astype(kind), offsets)
    had = sparse.csr_array(events, shape=(users, matrix.shape[0]))
    found = had @ matrix
    owners = np.repeat(np.arange(users), np.diff(found.indptr))
    items_N = torch.from_numpy(found.indices.astype(np.int64))
    return torch.from_numpy(owners), items_N, torch.from_numpy(found.data)


def _sort_and_add(neighbours: NeighbourTable, past: PastEvents) -> tuple[Tensor, Tensor, Tensor]:
    """Add up on a GPU, segment by segment of sorted keys, so that every run has the same sums."""
    event_N, index_N = _neighbours_of(neighbours, past.rows_E)
    values_N = neighbours.weights_N[index_N] * past.weights_E[event_N]
    columns_N = neighbours.columns_N[index_N].long()
    items = int(columns_N.max()) + 1 if len(columns_N) else 1
    keys_N = past.owners_E[event_N] * items + columns_N
    keys_N, order_N = keys_N.sort(stable=True)
    keys_N, repeats_N = torch.unique_consecutive(keys_N, return_counts=True)
    if not len(keys_N):
        return keys_N, keys_N, values_N
    summed_N = torch.segment_reduce(values_N[order_N], "sum", lengths=repeats_N)
    return keys_N.div(items, rounding_mode="floor"), keys_N % items, summed_N


def _neighbours_of(neighbours: NeighbourTable, rows_E: Tensor) -> tuple[Tensor, Tensor]:
    """Return, of all neighbours of the rows, whose it is (N,) and its place in the table (N,)."""
    first_E = neighbours.offsets_I[rows_E]
    counts_E = neighbours.offsets_I[rows_E + 1] - first_E
    event_N = torch.repeat_interleave(counts_E)
    within_N = torch.arange(len(event_N), device=event_N.device)
    return event_N, within_N + (first_E + counts_E - counts_E.cumsum(0))[event_N]


def neighbour_weights(
    neighbours: NeighbourTable, rows_BA: Tensor, items_BK: Tensor, size: int
) -> Tensor:
    """Return the weight (B, A, K) that each of a user's listed items has beside each event.

    Args:
        neighbours: of one domain.
        rows_BA: catalogue rows of each user's events; -1 for none.
        items_BK: rows within the domain, no row twice for a user; -1 for none.
        size: items of the domain.
    """
    # Where each item stands in each user's list; the last column is for what is no item.
    place_BI = items_BK.new_full((len(items_BK), size + 1), -1, dtype=torch.int16)
    numbers_K = torch.arange(items_BK.shape[1], dtype=torch.int16, device=items_BK.device)
    place_BI.scatter_(1, items_BK % (size + 1), numbers_K.expand_as(items_BK))
    place_BI[:, size] = -1
    event_E = torch.nonzero(rows_BA.flatten() >= 0).squeeze(1)
    rows_E = rows_BA.flatten()[event_E]
    first_E = event_E.div(rows_BA.shape[1], rounding_mode="floor") * (size + 1)
    find = _listed_on_cpu if rows_BA.device.type == "cpu" else _listed
    which_N, places_N, weights_N = find(neighbours, rows_E, place_BI.flatten(), first_E)
    found = weights_N.new_zeros(rows_BA.numel(), items_BK.shape[1])
    found[event_E[which_N], places_N.long()] = weights_N
    return found.view(*rows_BA.shape, -1)


def _listed(
    neighbours: NeighbourTable, rows_E: Tensor, places: Tensor, first_E: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return those neighbours of events that are listed: which event, place in the list, weight.

    Args:
        neighbours: of one domain.
        rows_E: catalogue rows of events.
        places: of all items in the list of one user after the other, -1 where they are in none.
        first_E: where those of an event's user begin.
    """
    event_N, index_N = _neighbours_of(neighbours, rows_E)
    places_N = places[first_E[event_N] + neighbours.columns_N[index_N]]
    kept_N = places_N >= 0
    return event_N[kept_N], places_N[kept_N], neighbours.weights_N[index_N[kept_N]]


def _listed_on_cpu(
    neighbours: NeighbourTable, rows_E: Tensor, places: Tensor, first_E: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Do what `_listed` does; on a CPU numpy is several times as fast at it as torch."""
    offsets_I, rows = neighbours.offsets_I.numpy(), rows_E.numpy()
    counts_E = offsets_I[rows + 1] - offsets_I[rows]
    event_N = np.repeat(np.arange(len(rows)), counts_E)
    ends_E = np.cumsum(counts_E)
    index_N = np.arange(len(event_N)) + (offsets_I[rows + 1] - ends_E)[event_N]
    columns_N = neighbours.columns_N.numpy().take(index_N)
    places_N = places.numpy().take(first_E.numpy()[event_N] + columns_N)
    kept_N = np.flatnonzero(places_N >= 0)
    found = event_N[kept_N], places_N[kept_N], neighbours.weights_N.numpy()[index_N[kept_N]]
    which_N, places_N, weights_N = map(torch.from_numpy, found)
    return which_N, places_N, weights_N
