import json
from pathlib import Path

import pytest

from crossrec.storage import Store
from crossrec.tune.records import (
    FAILED,
    FINISHED,
    RUNNING,
    STOPPED,
    Record,
    best_epoch,
    best_trial,
    read_record,
    write_record,
)

NDCG = "ndcg@10"


def record(name: str, *values: float, state: str = FINISHED, measure: str = NDCG) -> Record:
    epochs = [{"epoch": epoch, measure: value} for epoch, value in enumerate(values)]
    return Record(name, "digest", {"model.width": 64}, state, epochs)


def test_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert read_record(store, "runs/1/tune/a") is None
    written = record("a", 0.1, 0.3, state=STOPPED)
    write_record(store, "runs/1/tune/a", written)
    assert read_record(store, "runs/1/tune/a") == written
    said = json.loads((tmp_path / "runs/1/tune/a/trial.json").read_text())
    assert (said["state"], said["parameters"]) == ("stopped", {"model.width": 64})


@pytest.mark.parametrize(
    ("state", "is_over"), [(RUNNING, False), (FAILED, False), (FINISHED, True), (STOPPED, True)]
)
def test_only_what_finished_or_was_stopped_is_over(state: str, is_over: bool) -> None:
    assert record("a", 0.1, state=state).is_over == is_over


def test_best_epoch_is_the_earliest_of_equal_ones() -> None:
    assert best_epoch(record("a", 0.1, 0.3, 0.2, 0.3), NDCG)["epoch"] == 1


def test_best_trial_has_the_best_epoch_of_all() -> None:
    records = [record("a", 0.1, 0.2), record("b", 0.4, 0.1, state=STOPPED), record("c", 0.3)]
    best = best_trial(records, NDCG)
    assert best is not None
    assert best.trial == "b"


def test_best_trial_of_ratings_has_the_smallest_error() -> None:
    records = [record("a", 0.9, measure="rmse"), record("b", 0.8, 1.2, measure="rmse")]
    best = best_trial(records, "rmse")
    assert best is not None
    assert (best.trial, best_epoch(best, "rmse")["epoch"]) == ("b", 0)


def test_trials_that_are_not_over_are_not_chosen() -> None:
    running, failed = record("a", 0.9, state=RUNNING), record("b", 0.9, state=FAILED)
    over = record("c", 0.1)
    best = best_trial([running, failed, over], NDCG)
    assert best is over
    assert best_trial([running, failed], NDCG) is None
