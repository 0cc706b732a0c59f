"""What is known of each trial, in the store: all that a rerun of the same command needs.

    runs/<run_id>/tune/<trial>/trial.json     {"trial", "digest", "parameters", "state", "epochs",
                                               "seconds", "error"}

A trial that has finished or was stopped stays as it is; one that runs, or failed, is gone on with.

    record = read_record(store, "runs/1/tune/trial-0001")
    name, value = measure_name(config.train), best_value(record, "ndcg@10")
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from crossrec.config import TrainConfig
from crossrec.storage import Store
from crossrec.train.validate import RMSE

SELECTED = "selected"
"""Where in a trial's folder its model lies while it is not over."""

RUNNING, FINISHED, STOPPED, FAILED = "running", "finished", "stopped", "failed"


@dataclass
class Record:
    """A trial so far.

    digest: of the settings and input that it trains on. parameters: by dotted key. epochs: the
    curve on the validation slice, epoch 0 before training. seconds: of training, over all tries.
    error: why it failed.
    """

    trial: str
    digest: str
    parameters: Mapping[str, Any]
    state: str = RUNNING
    epochs: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    error: str | None = None

    @property
    def is_over(self) -> bool:
        """Whether it is not run again."""
        return self.state in (FINISHED, STOPPED)


def record_path(folder: str) -> str:
    """Return where the record of a trial's folder lies."""
    return f"{folder}/trial.json"


def read_record(store: Store, folder: str) -> Record | None:
    """Return the record of a trial, None where it has not begun."""
    path = record_path(folder)
    return Record(**store.read_json(path)) if store.exists(path) else None


def write_record(store: Store, folder: str, record: Record) -> None:
    """Store a trial's record."""
    store.write_json(record_path(folder), asdict(record))


def mark_stopped(store: Store, folder: str) -> None:
    """Note that a trial was stopped for good."""
    record = Record(**store.read_json(record_path(folder)))
    record.state = STOPPED
    write_record(store, folder, record)


def remove_weights(store: Store, folder: str) -> None:
    """Remove checkpoints and model of a trial that is over: its record is what stays."""
    record = read_record(store, folder)
    if record is not None and record.is_over:
        for name in (record.digest, SELECTED):
            store.delete(f"{folder}/{name}")


def measure_name(train: TrainConfig) -> str:
    """Return the measure of the validation slice that trials are compared by.

    Under mse the error of ratings, as in training: less is better.

    >>> measure_name(TrainConfig()), measure_name(TrainConfig(objective="mse"))
    ('ndcg@10', 'rmse')
    """
    return RMSE if train.objective == "mse" else train.stop_on


def value_of(point: Mapping[str, Any], measure: str) -> float:
    """Return what an epoch is worth, higher is better.

    >>> value_of({"ndcg@10": 0.2}, "ndcg@10"), value_of({"rmse": 0.9}, "rmse")
    (0.2, -0.9)
    """
    return float(-point[measure] if measure == RMSE else point[measure])


def best_epoch(record: Record, measure: str) -> dict[str, Any]:
    """Return the point of the curve that is best, the earliest of equal ones."""
    return max(record.epochs, key=lambda point: value_of(point, measure))


def best_value(record: Record, measure: str) -> float:
    """Return what a trial's best epoch is worth, higher is better."""
    return value_of(best_epoch(record, measure), measure)


def best_trial(records: Iterable[Record], measure: str) -> Record | None:
    """Return the best of the trials that are over, the first of equal ones; None without any."""
    over = [record for record in records if record.is_over and record.epochs]
    return max(over, key=lambda record: best_value(record, measure), default=None)
