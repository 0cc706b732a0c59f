import math

import numpy as np
import pytest
import torch
from torch import Tensor

from crossrec.model import overlap
from crossrec.model.fusion import OVERLAP_FLOOR
from crossrec.model.overlap import NeighbourTable, Overlap, PastEvents, find_overlap

# Item 0 of the catalogue has neighbours 0 and 1 in the domain, item 1 has 1 alone, item 2 none.
TABLE = NeighbourTable(
    torch.tensor([0, 2, 3, 3]), torch.tensor([0, 1, 1]), torch.tensor([0.5, 0.25, 0.125])
)


def recent(*events: tuple[int, int, float]) -> PastEvents:
    """Events of (owner, row, weight)."""
    return PastEvents(
        torch.tensor([owner for owner, _, _ in events], dtype=torch.int64),
        torch.tensor([row for _, row, _ in events], dtype=torch.int64),
        torch.tensor([weight for _, _, weight in events]),
    )


def listed(found: Overlap) -> list[tuple[int, int]]:
    return list(zip(found.users_N.tolist(), found.items_N.tolist(), strict=True))


def value(overlap: float) -> float:
    return math.log(1 + overlap / OVERLAP_FLOOR)


def test_overlap_adds_up_the_neighbours_of_all_events() -> None:
    found = find_overlap(TABLE, recent((0, 0, 1.0), (0, 1, 0.5)), 1)
    expected = {(0, 0): value(0.5), (0, 1): value(0.25 + 0.5 * 0.125)}
    assert dict(zip(listed(found), found.values_N.tolist(), strict=True)) == pytest.approx(expected)


def test_overlap_keeps_users_apart() -> None:
    found = find_overlap(TABLE, recent((0, 1, 1.0), (1, 2, 1.0), (2, 0, 1.0), (2, 0, 1.0)), 4)
    expected = {(0, 1): value(0.125), (2, 0): value(0.5 + 0.5), (2, 1): value(0.25 + 0.25)}
    assert dict(zip(listed(found), found.values_N.tolist(), strict=True)) == pytest.approx(expected)
    assert found.users_N.tolist() == [0, 2, 2]


def test_overlap_of_events_without_neighbours_is_empty() -> None:
    for events in (recent(), recent((1, 2, 1.0))):
        found = find_overlap(TABLE, events, 2)
        assert (listed(found), found.values_N.shape) == ([], (0,))
        assert found.users_N.dtype == found.items_N.dtype == torch.int64


def test_weighted_overlap_is_weighted_user_by_user() -> None:
    found = Overlap(torch.tensor([1, 0, 1]), torch.tensor([0, 2, 2]), torch.tensor([1.0, 2.0, 4.0]))
    weighted = found.weighted(torch.tensor([10.0, -1.0]))
    assert listed(weighted) == listed(found)
    assert weighted.values_N.tolist() == [-1.0, 20.0, -4.0]


def random_table(draw: torch.Generator, items: int, columns: int) -> tuple[NeighbourTable, Tensor]:
    """A table, and the same as a matrix."""
    matrix = torch.rand(items, columns, generator=draw)
    matrix[torch.rand(items, columns, generator=draw) < 0.7] = 0
    offsets = torch.cat([torch.zeros(1), (matrix > 0).sum(1).cumsum(0)]).long()
    rows, places = torch.nonzero(matrix, as_tuple=True)
    return NeighbourTable(offsets, places.int(), matrix[rows, places]), matrix


def random_events(draw: torch.Generator, events: int, users: int, items: int) -> PastEvents:
    owners, _ = torch.randint(users, (events,), generator=draw).sort()
    rows = torch.randint(items, (events,), generator=draw)
    return PastEvents(owners, rows, torch.rand(events, generator=draw))


def test_overlap_equals_a_dense_product() -> None:
    draw = torch.Generator().manual_seed(17)
    table, matrix = random_table(draw, 40, 25)
    events = random_events(draw, 60, 9, 40)
    pairs = events.owners_E, events.rows_E
    had = torch.zeros(9, 40).index_put_(pairs, events.weights_E, accumulate=True)
    found = find_overlap(table, events, 9)
    dense = torch.zeros(9, 25)
    dense[found.users_N, found.items_N] = found.values_N
    torch.testing.assert_close(dense, torch.log1p(had @ matrix / OVERLAP_FLOOR))
    assert (np.diff(found.users_N.numpy()) >= 0).all()
    assert len(set(listed(found))) == len(found.users_N)


def test_overlap_on_a_gpu_adds_up_the_same() -> None:
    draw = torch.Generator().manual_seed(18)
    table, _ = random_table(draw, 200, 90)
    events = random_events(draw, 900, 30, 200)
    # The way of a GPU, which is the same arithmetic on a CPU.
    users, items, summed = overlap._sort_and_add(table, events)
    found = find_overlap(table, events, 30)
    order = (found.users_N * 90 + found.items_N).argsort()
    assert torch.equal(found.users_N[order], users)
    assert torch.equal(found.items_N[order], items)
    torch.testing.assert_close(found.values_N[order], torch.log1p(summed / OVERLAP_FLOOR))
