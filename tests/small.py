"""Small inputs that tests write down by hand.

found = histories([(1, 3), (7, 5)], [])      # two users by their (row, day) events
activity = activity_of(found, items=9)
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import torch

from crossrec.data.itemstate import STATE_NAMES
from crossrec.data.replay import Activity, Histories
from crossrec.data.userstate import FEATURE_NAMES
from crossrec.model.fusion import PARTS, Fusion, Shortlists

Event = tuple[int, int]
"""Catalogue row and day."""


def histories(*users: Sequence[Event]) -> Histories:
    """Return users user-0, user-1, ... by their events, oldest first."""
    events = [event for user in users for event in user]
    return Histories(
        pa.array([f"user-{number}" for number in range(len(users))], pa.string()),
        np.cumsum([0, *map(len, users)]),
        np.array([row for row, _ in events], np.int32),
        np.array([day for _, day in events], np.int32),
    )


def rated(*users: Sequence[tuple[int, float]]) -> Histories:
    """Return users by the (row, rating) of their events, one a day."""
    found = histories(*([(row, day) for day, (row, _) in enumerate(user)] for user in users))
    given = np.array([rating for user in users for _, rating in user], np.float32)
    return replace(found, values={"rating": given})


def random_users(seed: int, users: int, items: int, days: int, most: int = 12) -> list[list[Event]]:
    """Return users of up to `most` events; some have none, some repeat an item."""
    draw = np.random.default_rng(seed)
    return [
        [
            (int(draw.integers(items)), day)
            for day in sorted(draw.integers(0, days, draw.integers(0, most + 1)).tolist())
        ]
        for _ in range(users)
    ]


def activity_of(found: Histories, items: int) -> Activity:
    """Return the activity that these histories alone make."""
    cells, events = np.unique(np.stack([found.rows, found.days], 1), axis=0, return_counts=True)
    return Activity(cells[:, 0], cells[:, 1], events.astype(np.int32), items)


def shortlists(seed: int, lists: int, candidates: int, domains: int = 2) -> Shortlists:
    """Return random lists of real candidates, of which the first one was chosen next."""
    draw = torch.Generator().manual_seed(seed)
    is_next = torch.zeros(lists, candidates, dtype=torch.bool)
    is_next[:, 0] = True
    return Shortlists(
        torch.rand(lists, candidates, len(PARTS), generator=draw),
        torch.rand(lists, candidates, generator=draw),
        torch.randn(lists, candidates, len(STATE_NAMES), generator=draw),
        is_next,
        torch.ones(lists, candidates, dtype=torch.bool),
        torch.randn(lists, len(FEATURE_NAMES) + 1, generator=draw),
        torch.eye(domains)[torch.randint(domains, (lists,), generator=draw)],
        torch.arange(lists),
    )


def random_fusion(seed: int, domains: int = 2) -> Fusion:
    """Every weight is away from where it starts."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = Fusion(domains)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def fresh_fusion(domains: int = 2) -> Fusion:
    with torch.random.fork_rng():
        torch.manual_seed(17)
        return Fusion(domains)


def padded(lists: Shortlists, real: int) -> Shortlists:
    """The lists with padding that looks better than any real candidate."""
    parts, is_real = lists.parts_BSP.clone(), lists.is_real_BS.clone()
    parts[:, real:] = 1_000
    is_real[:, real:] = False
    return replace(lists, parts_BSP=parts, is_real_BS=is_real)
