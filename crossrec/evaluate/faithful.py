"""Whether reasons are the reasons: they are held against scoring shorter histories anew.

    metrics["explanations"] = judge_reasons(job, holdout)      # where lists are explained

    {"reasons": 3, "users": 40, "items": 1200, "first_reason": 0.98,
     "rank_correlation": 0.99, "rank_correlation_of_all": 0.64,
     "sufficiency": {"reasons": 0.9, "random": 0.2}, "necessity": {"reasons": 0.8, "random": 0.1}}

Each item of a sample of lists' first places is scored again without each item of its user's
history (leave-one-out), by the code that scores the night.

rank_correlation: Spearman's, over a history, of what `score.reasons` says that its items did to a
score and what leaving each out does to it at the user's weights; the mean over listed items. It is
1 where all is exact. first_reason: how often the first reason is the item whose loss costs most.
rank_correlation_of_all: the same where the weights follow the shorter history, which moves all
items of a list alike. sufficiency: the share of listed items that stay in the first places if
nothing but their reasons is left of the history. necessity: the share that lose their place
without their reasons. random: the same with as many other items of the history, drawn at random.
In both the weights follow; what the whole history holds is never shown.

Array suffixes: M items of a history, E its events, K places, V versions of a history.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray
import torch
from scipy.stats import rankdata

from crossrec.data.histories import read_histories
from crossrec.data.replay import Histories, before, flatten, slice_users
from crossrec.data.tasks import plain_errors
from crossrec.evaluate.baselines import task_threads
from crossrec.evaluate.holdout import Holdout
from crossrec.nodes import torch_threads
from crossrec.score.bucket import ScoreJob
from crossrec.score.catalogue import load_items
from crossrec.score.lists import Lists
from crossrec.score.reasons import EXPLAINED, find_reasons, moved, versions_of
from crossrec.score.scorer import Scorer

Array = np.ndarray

USERS, PLACES = 40, 10
FEWEST_EVENTS, MOST_EVENTS = 5, 100
"""Of a user in the sample: an order of fewer says little, and each event is a history to score."""


class Found(NamedTuple):
    """What was found of K listed items, (K,) float64 each; NaN where it says nothing."""

    correlation: Array
    of_all: Array
    agrees: Array
    stays: Array
    stays_random: Array
    goes: Array
    goes_random: Array


def judge_reasons(job: ScoreJob, holdout: Holdout) -> dict[str, Any] | None:
    """Return how true the reasons of a sample are, on an initialised Ray; None without lists."""
    threads = task_threads()
    with plain_errors():
        task = ray.remote(num_cpus=threads)(_judge)
        found: dict[str, Any] | None = ray.get(task.remote(job, holdout, threads))
    return found


def _judge(job: ScoreJob, holdout: Holdout, threads: int) -> dict[str, Any] | None:
    """Do what `judge_reasons` does, in a Ray task."""
    with torch_threads(threads):
        items = load_items(job.store, job.prepared, job.items)
        scorer = Scorer(job.load_recommender(), items, job.prepared.domains)
        users: list[Histories] = []
        for bucket in holdout.buckets:
            known = flatten(read_histories(job.store, job.prepared, bucket))
            known = before(known, job.day)
            users += sample(known, USERS - len(users))
        return measure_reasons(scorer, users, job.day, job.explain)


def sample(histories: Histories, most: int) -> list[Histories]:
    """Return the first users whose histories are neither short nor long."""
    lengths = histories.lengths
    fitting = np.flatnonzero((lengths >= FEWEST_EVENTS) & (lengths <= MOST_EVENTS))[:most]
    return [slice_users(histories, user, user + 1) for user in fitting.tolist()]


def measure_reasons(
    scorer: Scorer, users: Sequence[Histories], day: int, n: int
) -> dict[str, Any] | None:
    """Return the figures over all domains' lists; None where there is no list.

    Args:
        scorer: of the model.
        users: one each; only events before `day`.
        day: the day that is predicted.
        n: reasons an item.
    """
    draw = np.random.default_rng(len(users))
    found = []
    for user in users:
        wanted = [(EXPLAINED, domain.name) for domain in scorer.domains]
        for (_, name), lists in scorer.score(user, day, wanted, PLACES).items():
            lists = Lists(*(part[:, lists.rows[0] >= 0] for part in (lists.rows, lists.scores)))
            if lists.rows.size:
                found.append(_measure(scorer, user, day, (name, lists), n, draw))
    if not found:
        return None
    correlation, of_all, agrees, stays, stays_random, goes, goes_random = (
        _mean(np.concatenate(part)) for part in zip(*found, strict=True)
    )
    return {
        "reasons": n,
        "users": len(users),
        "items": sum(len(part.agrees) for part in found),
        "rank_correlation": correlation,
        "rank_correlation_of_all": of_all,
        "first_reason": agrees,
        "sufficiency": {"reasons": stays, "random": stays_random},
        "necessity": {"reasons": goes, "random": goes_random},
    }


def _mean(values: Array) -> float | None:
    said = values[~np.isnan(values)]
    return round(float(said.mean()), 5) if len(said) else None


def _measure(
    scorer: Scorer,
    user: Histories,
    day: int,
    listed: tuple[str, Lists],
    n: int,
    draw: np.random.Generator,
) -> Found:
    """Return what is found of a user's list in a domain."""
    name, lists = listed
    rows_1K = torch.from_numpy(lists.rows).to(scorer.device)
    items_M, newest_M = np.unique(user.rows[::-1], return_index=True)
    versions = versions_of(scorer, user, np.array([0]), day)
    told_MK = moved(scorer, versions, name, rows_1K)[0].cpu().numpy()[newest_M]
    without = history_versions(user, items_M[:, None] != user.rows)
    rows_MK = rows_1K.expand(len(items_M), -1)
    whole_1K = scorer.score_items(user, day, name, rows_1K)
    true_MK, all_MK = (
        (whole_1K - scorer.score_items(without, day, name, rows_MK, by)).cpu().numpy()
        for by in (user, None)
    )
    reasons_KN = find_reasons(scorer, user, day, {name: lists}, n)[name][0]
    is_reason_KM = (reasons_KN[:, :, None] == items_M).any(1)
    order_KM = draw.random(is_reason_KM.shape).argsort(1).argsort(1)
    is_drawn_KM = order_KM < is_reason_KM.sum(1, keepdims=True)
    shown = [
        _is_shown(scorer, user, day, listed, items_M, is_kept_KM)
        for is_kept_KM in (is_reason_KM, is_drawn_KM, ~is_reason_KM, ~is_drawn_KM)
    ]
    says_nothing_K = ~is_reason_KM.any(1)
    stays, stays_random, goes, goes_random = (
        np.where(says_nothing_K, np.nan, part) for part in (*shown[:2], *(~p for p in shown[2:]))
    )
    agrees = told_MK.argmax(0) == true_MK.argmax(0)
    correlation, of_all = (rank_correlation(told_MK, part) for part in (true_MK, all_MK))
    return Found(correlation, of_all, agrees, stays, stays_random, goes, goes_random)


def _is_shown(
    scorer: Scorer,
    user: Histories,
    day: int,
    listed: tuple[str, Lists],
    items_M: Array,
    is_kept_KM: Array,
) -> Array:
    """Return which item is in the first places if only some items of the history are left."""
    name, lists = listed
    events_ME = items_M[:, None] == user.rows
    versions = history_versions(user, is_kept_KM @ events_ME)
    wanted = [(EXPLAINED, name)]
    found = scorer.score(versions, day, wanted, PLACES + len(items_M))[EXPLAINED, name].rows
    domain = scorer.domains[scorer.index[name]]
    is_had = np.isin(found + domain.start, items_M) & (found >= 0)
    # What the whole history holds takes no place.
    places = np.cumsum(~is_had, 1)
    is_it = (found == lists.rows[0][:, None]) & (places <= PLACES)
    shown: Array = is_it.any(1)
    return shown


def history_versions(user: Histories, is_kept_VE: Array) -> Histories:
    """Return a user as many: each with those events that are kept."""
    lengths = is_kept_VE.sum(1)
    events = np.nonzero(is_kept_VE)[1]
    return Histories(
        pa.array(map(str, range(len(lengths)))),
        np.concatenate([[0], np.cumsum(lengths)]),
        user.rows[events],
        user.days[events],
        {name: value[events] for name, value in user.values.items()},
    )


def rank_correlation(told_MK: Array, true_MK: Array) -> Array:
    """Return Spearman's of each column, (K,); NaN where all of one are equal.

    >>> told = np.array([[3.0, 1.0], [2.0, 1.0], [1.0, 1.0]])
    >>> rank_correlation(told, told[::-1]).tolist()
    [-1.0, nan]
    """
    told_MK, true_MK = (rankdata(part, axis=0) for part in (told_MK, true_MK))
    told_MK, true_MK = (part - part.mean(0) for part in (told_MK, true_MK))
    spread_K = np.sqrt((told_MK**2).sum(0) * (true_MK**2).sum(0))
    found: Array = np.where(
        spread_K > 0, (told_MK * true_MK).sum(0) / np.maximum(spread_K, 1e-9), np.nan
    )
    return found
