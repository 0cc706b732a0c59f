"""Validation: the newest slice of time before the hold-out, judged by NDCG@10 under the best blend.

valid = load_valid(store, prepared, start_day, stop_day, max_pairs)
blends, ndcg = judge_epoch(recommender, items, valid, activity)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from crossrec.data.histories import Prepared, read_histories
from crossrec.data.replay import Activity, Histories, before, flatten, new_events, select_users
from crossrec.model.blend import HALF_LIVES_DAYS, Slice, choose_blends
from crossrec.model.inference import ItemState, domain_of_rows, user_queries
from crossrec.model.recommender import Blend, Recommender
from crossrec.storage import Store

USERS_A_BATCH = 512

MOMENTS = 3
"""Days of the slice from which its rest is predicted, evenly spaced."""


@dataclass(frozen=True)
class Valid:
    """Users who did something new in the slice: what was known of them before, and what they did.

    users, rows: (N,) the pairs of user index and catalogue row that are relevant.
    """

    histories: Histories
    users: np.ndarray
    rows: np.ndarray
    start: int


def load_valid(
    store: Store, prepared: Prepared, start: int, stop: int, max_pairs: int
) -> list[Valid]:
    """Return the slice as seen from MOMENTS days of it.

    Buckets, which are random samples of users, are read until every domain has `max_pairs` users at
    every moment, or all are read.
    """
    moments = sorted({start + (stop - start) * index // MOMENTS for index in range(MOMENTS)})
    bounds = [(domain.start, domain.stop) for domain in prepared.domains]
    parts: list[list[Valid]] = [[] for _ in moments]
    pairs = np.zeros((len(moments), len(bounds)), np.int64)
    for bucket in range(prepared.buckets):
        histories = flatten(read_histories(store, prepared, bucket))
        for index, moment in enumerate(moments):
            part = _valid_users(histories, moment, stop)
            parts[index].append(part)
            domains = domain_of_rows(part.rows, bounds)
            keys = np.unique(part.users * len(bounds) + domains)
            pairs[index] += np.bincount(keys % len(bounds), minlength=len(bounds))
        if (pairs >= max_pairs).all():
            break
    return [_concatenate(found) for found in parts]


def _valid_users(histories: Histories, start: int, stop: int) -> Valid:
    users, rows = new_events(histories, start, stop)
    is_active = np.zeros(len(histories.lengths), bool)
    is_active[users] = True
    place = np.cumsum(is_active) - 1
    return Valid(select_users(before(histories, start), is_active), place[users], rows, start)


def _concatenate(parts: Sequence[Valid]) -> Valid:
    histories = [part.histories for part in parts]
    lengths = np.concatenate([part.lengths for part in histories])
    first = np.cumsum([0] + [len(part.lengths) for part in histories])
    joined = Histories(
        pa.concat_arrays([part.user_ids for part in histories]),
        np.concatenate([[0], np.cumsum(lengths)]),
        np.concatenate([part.rows for part in histories]),
        np.concatenate([part.days for part in histories]),
    )
    users = np.concatenate(
        [part.users + offset for part, offset in zip(parts, first, strict=False)]
    )
    return Valid(joined, users, np.concatenate([part.rows for part in parts]), parts[0].start)


def judge_epoch(
    recommender: Recommender,
    items: ItemState,
    valid: Sequence[Valid],
    activity: Activity,
    prepared: Prepared,
    is_trained: bool,
) -> tuple[dict[str, Blend], float]:
    """Return the best blend of each domain and the NDCG@10 over all pairs of the slice."""
    slices: dict[str, list[Slice]] = {domain.name: [] for domain in prepared.domains}
    for moment in valid:
        for name, part in _slices(recommender, items, moment, activity, prepared).items():
            slices[name].append(part)
    return choose_blends(slices, is_trained)


def _slices(
    recommender: Recommender,
    items: ItemState,
    valid: Valid,
    activity: Activity,
    prepared: Prepared,
) -> dict[str, Slice]:
    """Return what a blend is chosen by, for each domain, at one moment."""
    bounds = [(domain.start, domain.stop) for domain in prepared.domains]
    popularity_HI = torch.from_numpy(
        np.stack([activity.decayed(valid.start, days) for days in HALF_LIVES_DAYS])
    )
    profile_UW, queries_UDW = _all_queries(recommender, items, valid, bounds)
    slices: dict[str, Slice] = {}
    owners = valid.histories.owners
    for index, domain in enumerate(prepared.domains):
        relevant = (valid.rows >= domain.start) & (valid.rows < domain.stop)
        asked = np.unique(valid.users[relevant])
        place = np.full(len(valid.histories.lengths), -1)
        place[asked] = np.arange(len(asked))
        seen = (
            (valid.histories.rows >= domain.start)
            & (valid.histories.rows < domain.stop)
            & (place[owners] >= 0)
        )
        rows = slice(domain.start, domain.stop)
        slices[domain.name] = Slice(
            profile_UW[asked],
            queries_UDW[asked, index],
            items.texts_IW[rows].cpu(),
            items.vectors_IW[rows].cpu(),
            popularity_HI[:, rows],
            _pairs(place[owners[seen]], valid.histories.rows[seen] - domain.start),
            _pairs(place[valid.users[relevant]], valid.rows[relevant] - domain.start),
        )
    return slices


def _all_queries(
    recommender: Recommender, items: ItemState, valid: Valid, bounds: Sequence[tuple[int, int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    count = len(valid.histories.lengths)
    profiles, queries = [], []
    for start in range(0, max(count, 1), USERS_A_BATCH):
        chosen = np.zeros(count, bool)
        chosen[start : start + USERS_A_BATCH] = True
        part = user_queries(
            recommender, items, select_users(valid.histories, chosen), bounds, valid.start
        )
        profiles.append(part[0].cpu())
        queries.append(part[1].cpu())
    return torch.cat(profiles), torch.cat(queries)


def _pairs(first: np.ndarray, second: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack([first.astype(np.int64), second.astype(np.int64)]))
