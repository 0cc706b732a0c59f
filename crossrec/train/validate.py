"""Validation: the newest slice of time before the hold-out, judged by NDCG, HR and MRR at 10.

    valid = load_valid(store, prepared, start_day, stop_day, max_pairs)
    valid = load_newest(store, prepared, day, max_pairs)               # leave-one-out
    measures = judge_epoch(recommender, items, valid, activity, prepared)

Tensor suffixes: U users of a moment or bucket, T moments, N events, P pairs of user and domain, D
domains, I items, C items of a domain, K list length, M measures, W model width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from crossrec.data.histories import Prepared, read_histories
from crossrec.data.itemstate import POPULARITY_FLOOR
from crossrec.data.replay import (
    Activity,
    Histories,
    before,
    flatten,
    new_events,
    newest_events,
    rated_events,
    rated_newest,
    select_users,
)
from crossrec.model.inference import ItemState, domain_of_rows, user_queries
from crossrec.model.rating import predict_ratings
from crossrec.model.recommender import Recommender
from crossrec.storage import Store
from crossrec.train.continued import FIRST_DAY

USERS_A_BATCH = 512

K = 10

MEASURES = ("ndcg@10", "hr@10", "mrr@10")
"""As `evaluate.metrics` defines them; `train.stop_on` names one."""

RMSE = "rmse"
"""Of ratings, in their unit; lower is better."""

PRIOR_HALF_LIFE_DAYS = 12.0

MOMENTS = 3
"""Days of the slice from which its rest is predicted, evenly spaced."""

MOST_EVENTS = 20_000_000
"""That are read for a slice: a domain that few users know must not have all histories read."""


@dataclass(frozen=True)
class Valid:
    """Users who did something new in the slice: what was known of them before, and what they did.

    users, rows: (N,) the pairs of user index and catalogue row that are relevant. rated: users,
    rows and ratings (R,) of all that they rated in the slice.
    """

    histories: Histories
    users: np.ndarray
    rows: np.ndarray
    start: int
    rated: tuple[np.ndarray, np.ndarray, np.ndarray]


Cut = Callable[[Histories], Valid]
"""Divides histories into what was known and what came next, of all users."""


def load_valid(
    store: Store, prepared: Prepared, start: int, stop: int, max_pairs: int
) -> list[Valid]:
    """Return the slice as seen from MOMENTS days of it.

    Buckets, which are random samples of users, are read until every domain has `max_pairs` users at
    every moment, or all are read, or MOST_EVENTS. Of a domain at a moment no more users are kept.
    """
    moments = sorted({start + (stop - start) * index // MOMENTS for index in range(MOMENTS)})

    def cut_at(day: int) -> Cut:
        return lambda histories: Valid(
            before(histories, day),
            *new_events(histories, day, stop),
            day,
            rated_events(histories, day, stop),
        )

    return _load(store, prepared, [cut_at(day) for day in moments], max_pairs, seed=start)


def load_newest(store: Store, prepared: Prepared, day: int, max_pairs: int) -> list[Valid]:
    """Return leave-one-out's slice: each user's newest event, as seen from `day`, after all events.

    Read as by `load_valid`.
    """

    def cut(histories: Histories) -> Valid:
        known, following = newest_events(histories, FIRST_DAY, day)
        return Valid(known, *following, day, rated_newest(histories))

    return _load(store, prepared, [cut], max_pairs, seed=day)


def _load(
    store: Store, prepared: Prepared, cuts: Sequence[Cut], max_pairs: int, seed: int
) -> list[Valid]:
    """Cut histories, and keep the users of whom something is judged."""
    bounds = [(domain.start, domain.stop) for domain in prepared.domains]
    parts: list[list[Valid]] = [[] for _ in cuts]
    room_TD = np.full((len(cuts), len(bounds)), max_pairs)
    rng = np.random.default_rng(seed)
    events = 0
    for bucket in range(prepared.buckets):
        histories = flatten(read_histories(store, prepared, bucket))
        # Within a bucket users lie in the order of their ids, which may be that of their age.
        turn_U = rng.permutation(len(histories.lengths))
        for cut, found, room_D in zip(cuts, parts, room_TD, strict=True):
            found.append(_valid_users(cut(histories), bounds, turn_U, room_D))
        events += len(histories.rows)
        if not room_TD.any() or events >= MOST_EVENTS:
            break
    return [_concatenate(found) for found in parts]


def _valid_users(
    cut: Valid, bounds: Sequence[tuple[int, int]], turn_U: np.ndarray, room_D: np.ndarray
) -> Valid:
    """Return the users of a cut who did something: of each domain the first by their turn.

    No more of a domain than it has room for, which is taken from `room_D`.
    """
    users, rows = cut.users, cut.rows
    raters, rated_rows, ratings = cut.rated
    keys_N, rated_keys_N = (
        turn_U[who] * len(bounds) + domain_of_rows(what, bounds)
        for who, what in ((users, rows), (raters, rated_rows))
    )
    every = np.union1d(keys_N, rated_keys_N)
    chosen = [every[every % len(bounds) == n][:room] for n, room in enumerate(room_D)]
    room_D -= [len(found) for found in chosen]
    is_new, is_rated = (np.isin(keys, np.concatenate(chosen)) for keys in (keys_N, rated_keys_N))
    users, rows = users[is_new], rows[is_new]
    raters, rated_rows, ratings = raters[is_rated], rated_rows[is_rated], ratings[is_rated]
    is_active = np.zeros(len(cut.histories.lengths), bool)
    is_active[users] = is_active[raters] = True
    place = np.cumsum(is_active) - 1
    known = select_users(cut.histories, is_active)
    return Valid(known, place[users], rows, cut.start, (place[raters], rated_rows, ratings))


def _concatenate(parts: Sequence[Valid]) -> Valid:
    histories = [part.histories for part in parts]
    lengths = np.concatenate([part.lengths for part in histories])
    first = np.cumsum([0] + [len(part.lengths) for part in histories])
    joined = Histories(
        pa.concat_arrays([part.user_ids for part in histories]),
        np.concatenate([[0], np.cumsum(lengths)]),
        np.concatenate([part.rows for part in histories]),
        np.concatenate([part.days for part in histories]),
        {
            name: np.concatenate([part.values[name] for part in histories])
            for name in histories[0].values
        },
    )
    users, raters = (
        np.concatenate([found + offset for found, offset in zip(every, first, strict=False)])
        for every in ([part.users for part in parts], [part.rated[0] for part in parts])
    )
    rated_rows, ratings = (np.concatenate([part.rated[n] for part in parts]) for n in (1, 2))
    rows = np.concatenate([part.rows for part in parts])
    return Valid(joined, users, rows, parts[0].start, (raters, rated_rows, ratings))


def judge_epoch(
    recommender: Recommender,
    items: ItemState,
    valid: Sequence[Valid],
    activity: Activity,
    prepared: Prepared,
) -> dict[str, float]:
    """Return MEASURES over all pairs of the slice, of what the loss has learned to predict.

    That is cosine / temperature plus the log of how popular an item is; here how popular it was at
    the moment, as the night adds it. A model of ratings goes by the rating alone, and the root of
    its mean squared error is there too, as RMSE.
    """
    bounds = [(domain.start, domain.stop) for domain in prepared.domains]
    scale = recommender.log_scale.exp().item()
    found: list[np.ndarray] = [np.zeros((0, len(MEASURES)))]
    errors: list[np.ndarray] = [np.zeros(0)]
    for moment in valid:
        popularity_I = activity.decayed(moment.start, PRIOR_HALF_LIFE_DAYS) + POPULARITY_FLOOR
        bias_I = torch.from_numpy(np.log(popularity_I)) / scale
        if recommender.rating is not None:
            levels_I = items.levels_I
            bias_I = torch.zeros_like(bias_I) if levels_I is None else levels_I.cpu().to(bias_I)
        queries_UDW, offsets_UD = _all_queries(recommender, items, moment, bounds)
        users, rows, ratings = moment.rated
        predicted = predict_ratings((queries_UDW, offsets_UD, items), users, rows, bounds)
        errors.append(predicted - ratings)
        for index, (start, stop) in enumerate(bounds):
            measured_PM = _judge_domain(
                queries_UDW[:, index],
                items.vectors_IW[start:stop].cpu(),
                bias_I[start:stop],
                moment,
                (start, stop),
            )
            found.append(measured_PM)
    every_PM = np.concatenate(found)
    means = every_PM.sum(0) / max(len(every_PM), 1)
    measures = dict(zip(MEASURES, means.tolist(), strict=True))
    if recommender.rating is not None:
        squared = np.square(np.concatenate(errors))
        measures[RMSE] = float(np.sqrt(squared.sum() / max(len(squared), 1)))
    return measures


def _judge_domain(
    queries_UW: Tensor, vectors_CW: Tensor, bias_C: Tensor, moment: Valid, bounds: tuple[int, int]
) -> np.ndarray:
    """Return MEASURES of each user who did something new in the domain, (P, M) float64."""
    start, stop = bounds
    inside = (moment.rows >= start) & (moment.rows < stop)
    asked = np.unique(moment.users[inside])
    histories = moment.histories
    owners, had = histories.owners, (histories.rows >= start) & (histories.rows < stop)
    found = [np.zeros((0, len(MEASURES)))]
    for block in np.split(asked, range(USERS_A_BATCH, len(asked), USERS_A_BATCH)):
        place = np.full(len(histories.lengths), -1)
        place[block] = np.arange(len(block))
        scores_PC = torch.addmm(bias_C, queries_UW[block], vectors_CW.T)
        seen = had & (place[owners] >= 0)
        scores_PC[place[owners[seen]], histories.rows[seen].astype(np.int64) - start] = -torch.inf
        is_next_PC = torch.zeros(scores_PC.shape, dtype=torch.bool)
        following = inside & (place[moment.users] >= 0)
        is_next_PC[
            place[moment.users[following]], moment.rows[following].astype(np.int64) - start
        ] = True
        top_PK = scores_PC.topk(min(K, stop - start), dim=1).indices
        hit_PK = is_next_PC.gather(1, top_PK).numpy()
        place_K = np.arange(1, top_PK.shape[1] + 1)
        ideal_K = np.cumsum(1 / np.log2(np.arange(2, K + 2)))
        best_P = ideal_K[np.minimum(is_next_PC.sum(1).numpy(), K) - 1]
        ndcg_P = (hit_PK / np.log2(place_K + 1)).sum(1) / best_P
        found.append(np.stack([ndcg_P, hit_PK.any(1), (hit_PK / place_K).max(1)], 1))
    return np.concatenate(found)


def _all_queries(
    recommender: Recommender, items: ItemState, valid: Valid, bounds: Sequence[tuple[int, int]]
) -> tuple[Tensor, Tensor]:
    """Return queries (U, D, W) and offsets (U, D) of a moment's users."""
    count = len(valid.histories.lengths)
    queries = []
    for start in range(0, max(count, 1), USERS_A_BATCH):
        chosen = np.zeros(count, bool)
        chosen[start : start + USERS_A_BATCH] = True
        part = user_queries(
            recommender, items, select_users(valid.histories, chosen), bounds, valid.start
        )
        queries.append((part.queries_BDW.cpu(), part.offsets_BD.cpu()))
    return torch.cat([part[0] for part in queries]), torch.cat([part[1] for part in queries])
