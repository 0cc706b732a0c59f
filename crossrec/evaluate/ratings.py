"""How far predicted ratings are from those that users gave in the hold-out, beside two baselines.

    metrics["ratings"] = judge_ratings(job, holdout)      # under train.objective mse

    {"all": F, "domain": {name: F}} with
    F = {"events": 912, "rmse": {"model": 0.71, "biases": 0.74, "domain_mean": 1.0}, "mae": {...}}
    or None where nothing was rated

An event counts if it carries a rating and its user was known before; what was known then predicts
it, whichever day of the hold-out it came on. Users choose what they rate: the figures say nothing
of items that nobody would have taken.

domain_mean: the mean of the domain's known ratings. biases: with what item and user add to it
(model/biases.py), which is where the model starts.

Array suffixes: U users, I items, D domains, N ratings, P predictors.
"""

from typing import Any

import numpy as np
import ray

from crossrec.data.histories import read_histories
from crossrec.data.replay import (
    Histories,
    before,
    flatten,
    rated_events,
    rated_newest,
    sample_histories,
    select_users,
    slice_users,
)
from crossrec.data.tasks import plain_errors
from crossrec.evaluate.baselines import task_threads
from crossrec.evaluate.holdout import Holdout
from crossrec.model.biases import fit_biases, user_levels
from crossrec.model.inference import domain_of_rows, user_queries
from crossrec.model.rating import predict_ratings
from crossrec.nodes import torch_threads
from crossrec.score.bucket import ScoreJob
from crossrec.score.catalogue import load_items
from crossrec.score.scorer import USERS_A_BATCH

Array = np.ndarray
Bounds = list[tuple[int, int]]

PREDICTORS = ("model", "biases", "domain_mean")


def judge_ratings(job: ScoreJob, holdout: Holdout) -> dict[str, Any]:
    """Return the errors over all rated events of the hold-out, on an initialised Ray.

    Args:
        job: that made the lists of the hold-out, with a model of ratings.
        holdout: the hold-out.
    """
    threads = task_threads()
    task = ray.remote(num_cpus=threads)(add_errors)
    with plain_errors():
        errors_DPM: Array = ray.get(task.remote(job, holdout, threads))
    return describe_errors(errors_DPM, job.domains)


def describe_errors(errors_DPM: Array, domains: tuple[str, ...]) -> dict[str, Any]:
    """Return RMSE and MAE of what `measure_errors` added up, rounded to 5 digits."""
    by_domain = {
        name: _figures(errors_PM)
        for name, errors_PM in zip(domains, errors_DPM, strict=True)
        if errors_PM[0, 0]
    }
    return {"all": _figures(errors_DPM.sum(0)), "domain": by_domain}


def _figures(errors_PM: Array) -> dict[str, Any] | None:
    events = int(errors_PM[0, 0])
    if not events:
        return None
    rmse_P, mae_P = np.sqrt(errors_PM[:, 2] / events), errors_PM[:, 1] / events
    return {
        "events": events,
        "rmse": dict(zip(PREDICTORS, rmse_P.round(5).tolist(), strict=True)),
        "mae": dict(zip(PREDICTORS, mae_P.round(5).tolist(), strict=True)),
    }


def add_errors(job: ScoreJob, holdout: Holdout, threads: int) -> Array:
    """Return what `measure_errors` finds in all buckets that are judged, added up: a Ray task."""
    with torch_threads(threads):
        return _add_errors(job, holdout)


def _add_errors(job: ScoreJob, holdout: Holdout) -> Array:
    store, domains = job.store, holdout.known.domains
    bounds = [(domain.start, domain.stop) for domain in domains]
    sample = before(sample_histories(store, holdout.known), holdout.start)
    biases = fit_biases(sample, bounds, holdout.known.items)
    items = load_items(store, holdout.known, job.items).state
    recommender = job.load_recommender()
    total_DPM = np.zeros((len(bounds), len(PREDICTORS), 3))
    for bucket in holdout.buckets:
        known, users, rows, ratings = read_rated(job, holdout, bucket)
        levels_U = user_levels(biases, known, bounds)
        for start in range(0, len(known.lengths), USERS_A_BATCH):
            inside = (users >= start) & (users < start + USERS_A_BATCH)
            asked = slice_users(known, start, start + USERS_A_BATCH)
            found = user_queries(recommender, items, asked, bounds, holdout.start)
            questions = found.queries_BDW, found.offsets_BD, items
            whom, which = users[inside], rows[inside]
            means_N = biases.means_D[domain_of_rows(which, bounds)]
            predicted = (
                predict_ratings(questions, whom - start, which, bounds),
                means_N + biases.items_I[which] + levels_U[whom],
                means_N,
            )
            total_DPM += measure_errors(np.stack(predicted), ratings[inside], which, bounds)
    return total_DPM


def read_rated(
    job: ScoreJob, holdout: Holdout, bucket: int
) -> tuple[Histories, Array, Array, Array]:
    """Return what was known of the users who rated something, and what they rated.

    Under leave-one-out that is each user's newest event, if it has a rating.

    Returns:
        Histories, then the user among them, catalogue row and rating of each rated event, (N,).
    """
    histories = flatten(read_histories(job.store, holdout.whole, bucket))
    if holdout.is_by_time:
        known = before(histories, holdout.start)
        users, rows, ratings = rated_events(histories, holdout.start, holdout.stop)
    else:
        known = flatten(read_histories(job.store, holdout.known, bucket))
        users, rows, ratings = rated_newest(histories)
    is_rater = np.zeros(len(known.lengths), bool)
    is_rater[users] = True
    return select_users(known, is_rater), (np.cumsum(is_rater) - 1)[users], rows, ratings


def measure_errors(predicted_PN: Array, given_N: Array, rows_N: Array, bounds: Bounds) -> Array:
    """Return number, sum of absolute and sum of squared errors by domain, (D, P, 3).

    >>> rows, given = np.array([0, 0, 5]), np.array([3.0, 5.0, 1.0])
    >>> measure_errors(np.array([[4.0, 2.0, 1.5]]), given, rows, [(0, 5), (5, 9)]).tolist()
    [[[2.0, 4.0, 10.0]], [[1.0, 0.5, 0.25]]]
    """
    domains_N = domain_of_rows(rows_N, bounds)
    errors_PN = predicted_PN - given_N
    sums = [
        [
            np.bincount(domains_N, part, len(bounds))
            for part in (error * 0 + 1, abs(error), error**2)
        ]
        for error in errors_PN
    ]
    return np.array(sums).transpose(2, 0, 1)
