"""A trial as Ray Tune sees it: one step an epoch, and a training that ends when the trial does.

The training is a run of Ray Train that is started in the trial's actor. Its controller tells that
actor of each epoch through a queue, and with the first of them who it is: a trial that is stopped
aborts its controller, which alone takes down workers and gives back what they hold. (Where the
actor only died, Ray would keep the workers' CPUs and GPUs reserved until the job ends.)

A trial that goes on says the epochs of its newest checkpoint first, without training, so that ASHA
judges it as if it had never been away.
"""

import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import ray
from ray import tune
from ray.actor import ActorHandle
from ray.train import UserCallback
from ray.util.queue import Empty, Queue

from crossrec.errors import CrossrecError, explain
from crossrec.storage_errors import without_secrets
from crossrec.train.launch import Plan, run_phases
from crossrec.train.progress import read_checkpoint
from crossrec.train.workers import Run
from crossrec.tune.records import (
    FAILED,
    FINISHED,
    RUNNING,
    Record,
    best_value,
    read_record,
    remove_weights,
    write_record,
)

LOOK_EVERY_S = 1.0
"""So often a trial that waits for an epoch looks whether its training still lives."""

LONGEST_REASON = 300
"""Characters of an error that a record keeps."""


@dataclass(frozen=True)
class TrialPlan:
    """What a trial trains: made by the driver, handed over in memory and written nowhere.

    folder: of the trial in the store. measure: what trials are compared by.
    """

    folder: str
    plan: Plan
    run: Run
    parameters: Mapping[str, Any]
    measure: str


class TellEpochs(UserCallback):
    """Ray Train's callback in the controller: each epoch, and the controller, go into a queue."""

    def __init__(self, epochs: Queue) -> None:
        self.epochs = epochs

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        """Tell of an epoch that all workers have ended and whose checkpoint is stored."""
        said = {name: metrics[0][name] for name in ("point", "is_done")}
        self.epochs.put(said | {"controller": ray.get_runtime_context().current_actor})


class Training:
    """A run of Ray Train in a thread of this process."""

    def __init__(self, plan: Plan, run: Run) -> None:
        self.epochs = Queue(actor_options={"num_cpus": 0})
        self.run = replace(run, callbacks=[TellEpochs(self.epochs)])
        self.plan = plan
        self.controller: ActorHandle[Any] | None = None
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._train, daemon=True)
        self.thread.start()

    def _train(self) -> None:
        try:
            run_phases(self.plan, self.run)
        except BaseException as error:  # raised again where the epoch is waited for
            self.error = error

    def next_epoch(self) -> tuple[dict[str, Any], bool]:
        """Wait for an epoch to end; return its point of the curve and whether it is the last.

        Raises:
            CrossrecError: the training failed.
        """
        while True:
            # Looked at first: what it said before it ended is in the queue by then.
            is_over = not self.thread.is_alive()
            try:
                said = self.epochs.get(timeout=LOOK_EVERY_S)
            except Empty:
                if is_over:
                    self._fail()
                continue
            self.controller = said["controller"]
            if said["is_done"]:
                self.thread.join()
                if self.error is not None:
                    self._fail()
            return said["point"], said["is_done"]

    def _fail(self) -> NoReturn:
        if isinstance(self.error, CrossrecError):
            raise self.error
        where = self.run.store.uri(self.run.folder)
        found = f"{type(self.error).__name__}: {self.error}"
        said = explain(where, "training to end", found, "rerun: it continues")
        raise CrossrecError(said) from self.error

    def stop(self) -> None:
        """End it, and give back what it holds."""
        if self.controller is not None and self.thread.is_alive():
            try:
                # As Ray Train itself does on Ctrl-C. It ends with the end of the controller.
                ray.get(self.controller.abort.remote())
            except ray.exceptions.RayActorError:
                pass
            self.thread.join()
        self.epochs.shutdown(force=True)


class TrainTrial(tune.Trainable):
    """A trial: Ray Tune asks for one epoch after the other until it is done or stopped."""

    def setup(  # type: ignore[override]  # tune.with_parameters adds the plans
        self, config: dict[str, Any], plans: Mapping[str, TrialPlan]
    ) -> None:
        """Find out what is done of it already.

        Args:
            config: {"trial": its name}.
            plans: of all trials, by name.
        """
        name: str = config["trial"]
        self.planned = plans[name]
        store, run = self.planned.run.store, self.planned.run
        earlier = read_record(store, self.planned.folder)
        seconds = earlier.seconds if earlier else 0.0
        self.record = Record(name, run.name, self.planned.parameters, seconds=seconds)
        saved = read_checkpoint(store, run.checkpoints)
        progress = saved.phases[-1] if saved else None
        points = progress.curve if progress else []
        self.known = deque((point, False) for point in points)
        if progress and progress.is_done:
            self.known[-1] = (points[-1], True)
        self.training: Training | None = None

    def step(self) -> dict[str, Any]:
        """Return the next epoch, which is written down before anybody hears of it."""
        began = time.perf_counter()
        try:
            point, is_last = self._next_epoch()
        except Exception as error:
            self._write(FAILED, began, error)
            raise
        self.record.epochs.append(point)
        self._write(FINISHED if is_last else RUNNING, began)
        value = best_value(self.record, self.planned.measure)
        return {
            "epoch": point["epoch"],
            "point": point,
            "value": value,
            "done": is_last,
            "is_last": is_last,
        }

    def _next_epoch(self) -> tuple[dict[str, Any], bool]:
        if self.known:
            return self.known.popleft()
        if self.training is None:
            self.training = Training(self.planned.plan, self.planned.run)
        while True:
            point, is_last = self.training.next_epoch()
            # Workers that were restarted may say an epoch again.
            if is_last or len(self.record.epochs) <= point["epoch"]:
                return point, is_last

    def _write(self, state: str, began: float, error: Exception | None = None) -> None:
        record, store = self.record, self.planned.run.store
        record.state = state
        record.seconds = round(record.seconds + time.perf_counter() - began, 2)
        if error is not None:
            said = " ".join(f"{type(error).__name__}: {error}".split())
            record.error = without_secrets(said, store.options)[:LONGEST_REASON]
        write_record(store, self.planned.folder, record)

    def cleanup(self) -> None:
        """End the training, and remove the weights of a trial that does not go on."""
        if self.training is not None:
            self.training.stop()
        remove_weights(self.planned.run.store, self.planned.folder)
