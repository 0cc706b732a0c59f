"""A search as people read it: one line in the log for each thing that happens to a trial.

09:41:07 tune: trial-0003 begins, train.learning_rate 0.003, model.width 64
09:41:31 tune: trial-0003 epoch 1, loss 5.82317, ndcg@10 0.1314
09:41:52 tune: trial-0003 stopped after epoch 2
"""

from collections.abc import Mapping
from typing import Any

from ray.tune import Callback

from crossrec.runlog import log
from crossrec.tune.records import Record, best_epoch, mark_stopped
from crossrec.tune.trial import TrialPlan


class TellTrials(Callback):
    """Ray Tune's callback in the driver, where alone it is known that ASHA has stopped a trial.

    Args:
        plans: of all trials, by name.
    """

    def __init__(self, plans: Mapping[str, TrialPlan]) -> None:
        self.plans = plans

    def __getstate__(self) -> dict[str, Any]:
        # Ray Tune pickles its callbacks into its folder; the plans know the store's options.
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say that a trial begins."""
        name = trial.config["trial"]
        log.info("tune: %s begins, %s", name, say_values(self.plans[name].parameters))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Say how an epoch was; if it was the last, whose decision that is."""
        name = trial.config["trial"]
        log.info("tune: %s %s", name, say_values(result["point"]))
        if not result["done"]:
            return
        if not result["is_last"]:
            plan = self.plans[name]
            mark_stopped(plan.run.store, plan.folder)
        how = "finished" if result["is_last"] else "stopped"
        log.info("tune: %s %s after epoch %s", name, how, result["epoch"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say that a trial failed."""
        log.warning("tune: %s failed; a rerun goes on with it", trial.config["trial"])


def say_values(values: Mapping[str, Any]) -> str:
    """Return values in a line.

    >>> say_values({"epoch": 1, "loss": None, "ndcg@10": 0.5})
    'epoch 1, ndcg@10 0.5'
    """
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def say_record(record: Record, measure: str) -> str:
    """Return how far a trial came, in a line."""
    if not record.epochs:
        return f"{record.trial} {record.state}"
    point = best_epoch(record, measure)
    found = f"{measure} {point[measure]} at epoch {point['epoch']}"
    return f"{record.trial} {record.state}, {found}, {say_values(record.parameters)}"
