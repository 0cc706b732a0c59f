"""What training measures, as it goes: TensorBoard always, Weights & Biases or MLflow by one key.

    tracker = open_tracker(Tracked(store, "runs/1/train", "select", "none", facts), step=0)
    tracker.step(10, {"loss": 5.8, "learning_rate": 2e-4, "gradient_norm": 0.7})
    tracker.epoch(120, {"epoch": 1, "loss": 5.1, "ndcg@10": 0.13})
    tracker.close()

The event files lie in <folder>/tensorboard/<phase> of the store: written to a local folder, and
stored whole after each epoch, because object stores cannot append. W&B and MLflow are set up by
their own variables, on the machine of the first worker (WANDB_MODE=offline and WANDB_DIR;
MLFLOW_TRACKING_URI), and keep one run a phase, which a restart goes on with.
"""

import hashlib
import importlib.util
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from crossrec.errors import ConfigError, explain
from crossrec.storage import Store

STEPS_A_POINT = 10
"""Every so many steps one is written; epochs all are."""

PROJECT = "crossrec"
"""What W&B calls a project and MLflow an experiment."""

Values = Mapping[str, float]


@dataclass(frozen=True)
class Tracked:
    """A phase of training whose figures are kept.

    folder: of the training. kind: `train.tracking`. facts: settings, without secrets.
    """

    store: Store
    folder: str
    phase: str
    kind: str
    facts: Mapping[str, Any]

    @property
    def key(self) -> str:
        """What names it where names are short, 16 hex digits."""
        return hashlib.sha256(f"{self.store.uri(self.folder)}|{self.phase}".encode()).hexdigest()[
            :16
        ]

    @property
    def name(self) -> str:
        """What people read."""
        return f"{self.facts.get('run_id', self.folder)} {self.phase}"


class Sink(Protocol):
    """A place that figures go to."""

    def write(self, step: int, values: Values) -> None:
        """Keep the values of an optimizer step."""

    def flush(self) -> None:
        """Make what was written safe."""

    def close(self) -> None:
        """End."""


class Tracker:
    """Passes figures on to all sinks; without any, to nobody."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self.sinks = sinks

    def step(self, step: int, values: Values) -> None:
        """Keep the figures of every tenth step."""
        if step % STEPS_A_POINT == 0:
            self._write(step, {f"step/{name}": value for name, value in values.items()})

    def epoch(self, step: int, point: Mapping[str, float | None]) -> None:
        """Keep an epoch's point of the curve, and store what was written."""
        known = {f"epoch/{name}": value for name, value in point.items() if value is not None}
        self._write(step, known)
        for sink in self.sinks:
            sink.flush()

    def close(self) -> None:
        """End all sinks."""
        for sink in self.sinks:
            sink.close()

    def _write(self, step: int, values: Values) -> None:
        for sink in self.sinks:
            sink.write(step, values)


def check_tracking(kind: str) -> None:
    """Fail before any work where the package of `train.tracking` is not there.

    Raises:
        ConfigError: it is not installed.
    """
    if kind != "none" and importlib.util.find_spec(kind) is None:
        mend = "pip install crossrec[tracking]"
        raise ConfigError(explain("train.tracking", f"the package {kind}", "none installed", mend))


def open_tracker(tracked: Tracked, step: int, rank: int = 0) -> Tracker:
    """Return the tracker of a worker: only the first one writes.

    Args:
        tracked: what is tracked.
        step: optimizer steps taken; what an earlier try wrote of later ones is replaced.
        rank: of the worker.
    """
    if rank:
        return Tracker([])
    sinks: list[Sink] = [TensorBoard(tracked, step)]
    if tracked.kind == "wandb":
        sinks.append(WeightsAndBiases(tracked))
    elif tracked.kind == "mlflow":
        sinks.append(MLflow(tracked))
    return Tracker(sinks)


class TensorBoard:
    """Event files: local while they grow, then whole in the store."""

    def __init__(self, tracked: Tracked, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.tracked = tracked
        self.scratch = tempfile.TemporaryDirectory()
        # Hides what an earlier try wrote of this step and later ones.
        self.writer = SummaryWriter(self.scratch.name, purge_step=step)

    def write(self, step: int, values: Values) -> None:
        """Keep the values of an optimizer step."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Store the files."""
        self.writer.flush()
        folder = f"{self.tracked.folder}/tensorboard/{self.tracked.phase}"
        for path in sorted(Path(self.scratch.name).iterdir()):
            self.tracked.store.write_bytes(f"{folder}/{path.name}", path.read_bytes())

    def close(self) -> None:
        """Store the files for the last time."""
        self.flush()
        self.writer.close()
        self.scratch.cleanup()


class WeightsAndBiases:
    """A run of Weights & Biases."""

    def __init__(self, tracked: Tracked) -> None:
        import wandb

        self.run = wandb.init(
            project=PROJECT,
            id=tracked.key,
            name=tracked.name,
            config=dict(tracked.facts),
            resume="allow",
            settings=wandb.Settings(console="off", silent=True),
        )

    def write(self, step: int, values: Values) -> None:
        """Keep the values of an optimizer step."""
        self.run.log(dict(values), step=step)

    def flush(self) -> None:
        """Do nothing: W&B does it beside."""

    def close(self) -> None:
        """End the run."""
        import wandb

        self.run.finish()
        # Its own process may still be writing; this waits for it.
        wandb.teardown()


class MLflow:
    """A run of MLflow."""

    def __init__(self, tracked: Tracked) -> None:
        from mlflow import MlflowClient

        self.client = MlflowClient()
        experiment = self.client.get_experiment_by_name(PROJECT)
        identity = (
            experiment.experiment_id if experiment else self.client.create_experiment(PROJECT)
        )
        tag = "crossrec.key"
        found = self.client.search_runs([identity], f"tags.`{tag}` = '{tracked.key}'")
        tags = {tag: tracked.key}
        run = found[0] if found else self.client.create_run(identity, None, tags, tracked.name)
        self.run_id = run.info.run_id
        if not found:
            for name, value in _flat(tracked.facts).items():
                self.client.log_param(self.run_id, name, value)

    def write(self, step: int, values: Values) -> None:
        """Keep the values of an optimizer step."""
        for name, value in values.items():
            # MLflow's names have no @.
            self.client.log_metric(self.run_id, name.replace("@", "_at_"), value, step=step)

    def flush(self) -> None:
        """Do nothing: each value is safe once written."""

    def close(self) -> None:
        """End the run."""
        self.client.set_terminated(self.run_id)


def _flat(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested facts by dotted names.

    >>> _flat({"seed": 17, "model": {"width": 64}})
    {'seed': 17, 'model.width': 64}
    """
    found: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, Mapping):
            found |= {f"{name}.{inner}": part for inner, part in _flat(value).items()}
        else:
            found[name] = value
    return found
