"""Errors of predicted ratings, and the baselines beside them."""

from dataclasses import replace
from math import sqrt
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from crossrec.data.histories import Prepared, histories_path
from crossrec.evaluate.holdout import Holdout
from crossrec.evaluate.ratings import describe_errors, measure_errors, read_rated
from crossrec.score.bucket import ScoreJob
from crossrec.storage import Store
from tests.evaluate.holdout import write_prepared
from tests.small import Event

BOUNDS = [(0, 3), (3, 5)]
NONE = float("nan")


def test_errors_are_told_by_domain_and_over_all_events() -> None:
    given, rows = np.array([4.0, 2.0, 1.0]), np.array([0, 2, 4])
    predicted = np.array([[3.0, 2.0, 4.0], [4.0, 4.0, 1.0], [2.0, 2.0, 2.0]])
    found = describe_errors(measure_errors(predicted, given, rows, BOUNDS), ("a", "b"))
    assert found["domain"]["a"]["events"] == 2
    assert found["domain"]["a"]["rmse"]["model"] == round(sqrt((1 + 0) / 2), 5)
    assert found["domain"]["b"]["mae"] == {"model": 3.0, "biases": 0.0, "domain_mean": 1.0}
    assert found["all"]["events"] == 3
    assert found["all"]["rmse"]["model"] == round(sqrt((1 + 0 + 9) / 3), 5)
    assert found["all"]["mae"]["biases"] == round((0 + 2 + 0) / 3, 5)


def test_a_domain_without_rated_events_is_left_out() -> None:
    nothing = np.zeros((3, 0))
    errors = measure_errors(nothing, np.zeros(0), np.zeros(0, np.int32), BOUNDS)
    assert describe_errors(errors, ("a", "b")) == {"all": None, "domain": {}}
    errors = measure_errors(np.ones((3, 1)), np.zeros(1), np.array([4]), BOUNDS)
    assert list(describe_errors(errors, ("a", "b"))["domain"]) == ["b"]


START, STOP = 10, 14

USERS: dict[str, list[tuple[Event, float]]] = {
    "anna": [((0, 1), 4.0), ((1, 9), NONE), ((2, 10), 5.0), ((0, 12), NONE), ((4, 13), 1.0)],
    "ben": [((3, 5), NONE), ((1, 14), 3.0)],
    "carl": [((1, 11), 2.0)],
    "dora": [((1, 2), NONE), ((1, 11), 2.5)],
}
"""Anna and Dora are judged: Ben rates on the day after the last, Carl was not known."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture
def prepared(store: Store) -> Prepared:
    items = {"film": ["f0", "f1", "f2"], "shop": ["s0", "s1"]}
    events = {user: [event for event, _ in given] for user, given in USERS.items()}
    prepared = write_prepared(store, items, [events])
    path = histories_path(prepared.folder, 0)
    ratings = pa.array([[r for _, r in given] for given in USERS.values()], pa.list_(pa.float32()))
    store.write_parquet(path, store.read_parquet(path).append_column("ratings", ratings))
    return replace(prepared, values=("rating",))


def job_of(store: Store, prepared: Prepared) -> ScoreJob:
    return ScoreJob(store, prepared, "m", "i", START, {}, ("film", "shop"), 50, "done")


def test_rated_events_of_the_holdout_are_judged_by_what_was_known_before(
    store: Store, prepared: Prepared
) -> None:
    holdout = Holdout(prepared, prepared, START, STOP, range(1))
    known, users, rows, ratings = read_rated(job_of(store, prepared), holdout, 0)
    assert known.user_ids.to_pylist() == ["anna", "dora"]
    assert known.days.max() < START
    assert known.lengths.tolist() == [2, 1]
    assert (users.tolist(), rows.tolist(), ratings.tolist()) == ([0, 0, 1], [2, 4, 1], [5, 1, 2.5])


def test_leave_one_out_judges_the_newest_event_if_it_has_a_rating(
    store: Store, prepared: Prepared
) -> None:
    holdout = Holdout(prepared, prepared.without_newest(), 20, 20, range(1))
    known, users, rows, ratings = read_rated(job_of(store, prepared), holdout, 0)
    assert known.user_ids.to_pylist() == ["anna", "ben", "dora"]
    assert known.lengths.tolist() == [4, 1, 1]
    assert (users.tolist(), rows.tolist(), ratings.tolist()) == ([0, 1, 2], [4, 1, 1], [1, 3, 2.5])
