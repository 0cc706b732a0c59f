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


@dataclass(frozen=True)
class Valid:
    """Users who did something new in the slice: what was known of them before, and what they did.

    users, rows: (N,) the pairs of user index and catalogue row that are relevant.
    """

    histories: Histories
    users: np.ndarray
    rows: np.ndarray
    start: int


def load_valid(store: Store, prepared: Prepared, start: int, stop: int, max_pairs: int) -> Valid:
    """Read buckets, which are random samples of users, until every domain has `max_pairs` users or all are read."""
    parts: list[Histories] = []
    users: list[np.ndarray] = []
    rows: list[np.ndarray] = []
    bounds = [(domain.start, domain.stop) for domain in prepared.domains]
    pairs = np.zeros(len(bounds), np.int64)
    offset = 0
    for bucket in range(prepared.buckets):
        histories = flatten(read_histories(store, prepared, bucket))
        found_users, found_rows = new_events(histories, start, stop)
        active = np.zeros(len(histories.lengths), bool)
        active[found_users] = True
        place = np.cumsum(active) - 1
        parts.append(select_users(before(histories, start), active))
        users.append(place[found_users] + offset)
        rows.append(found_rows)
        offset += int(active.sum())
        domains = domain_of_rows(found_rows, bounds)
        keys = np.unique(found_users * len(bounds) + domains)
        pairs += np.bincount(keys % len(bounds), minlength=len(bounds))
        if (pairs >= max_pairs).all():
            break
    return Valid(_concatenate(parts), np.concatenate(users), np.concatenate(rows), start)


def _concatenate(parts: Sequence[Histories]) -> Histories:
    lengths = np.concatenate([part.lengths for part in parts])
    return Histories(
        pa.concat_arrays([part.user_ids for part in parts]),
        np.concatenate([[0], np.cumsum(lengths)]),
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.days for part in parts]),
    )


def judge_epoch(
    recommender: Recommender,
    items: ItemState,
    valid: Valid,
    activity: Activity,
    prepared: Prepared,
    is_trained: bool,
) -> tuple[dict[str, Blend], float]:
    """Return the best blend of each domain and the NDCG@10 over all pairs of the slice."""
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
    return choose_blends(slices, is_trained)


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
