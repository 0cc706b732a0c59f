"""A run of Ray Train: its workers, where its checkpoints lie, and what it has come to.

saved = run_workers(Run(store, "runs/1/train", "1f2e3d4c", workers=2), train_loop, config)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.data
import ray.train
from ray.data import ExecutionOptions
from ray.train.torch import TorchTrainer
from ray.train.v2.api.config import ScalingConfig

from crossrec.errors import ConfigError, CrossrecError, explain
from crossrec.nodes import largest_node_cpus
from crossrec.storage import Store
from crossrec.train.network import ByNodeAddress
from crossrec.train.progress import Saved, read_checkpoint
from crossrec.train.watch import log_epochs

CPUS_A_WORKER = 8
"""At most; more would not fit beside a GPU on common nodes, and the loop has no use for them."""

RESIZE_AFTER_S = 600.0
"""Between looks for room for more workers, where there are fewer than could be: those that work
begin again at the last checkpoint, and the epoch in progress is lost."""

WORKER_FAILURES = 2
"""Times that Ray Train restarts its workers from the last checkpoint before the stage fails."""


@dataclass(frozen=True)
class Run:
    """Where a run's checkpoints lie, and its workers.

    folder, name: checkpoints are in folder/name of the store. min_workers: with which it goes on
    where there is no room for all; None: with all alone. runs_at_once: how many such runs share the
    cluster. callbacks: Ray Train's, which hear of every report.
    """

    store: Store
    folder: str
    name: str
    workers: int
    min_workers: int | None = None
    runs_at_once: int = 1
    callbacks: Sequence[Any] = ()

    @property
    def checkpoints(self) -> str:
        """Folder of the checkpoints."""
        return f"{self.folder}/{self.name}"


def run_workers(
    run: Run,
    loop: Callable[[dict[str, Any]], None],
    config: Mapping[str, Any],
    datasets: Mapping[str, ray.data.Dataset] | None = None,
) -> Saved:
    """Run a loop on all workers, which goes on from the newest checkpoint; return the last one.

    The loop's config gets `folder`, where its checkpoints lie.

    Raises:
        CrossrecError: the loop failed, or the cluster is too small.
    """
    store, where = run.store, run.store.uri(run.checkpoints)
    # In the order of the buckets, so that a night can be repeated.
    options = ExecutionOptions(preserve_order=True)
    trainer = TorchTrainer(
        loop,
        train_loop_config={**config, "folder": run.checkpoints},
        datasets=dict(datasets or {}),
        dataset_config=ray.train.DataConfig(execution_options=options),
        torch_config=ByNodeAddress(),
        scaling_config=scale_workers(run),
        run_config=ray.train.RunConfig(
            name=run.name,
            storage_path=store.full_path(run.folder),
            storage_filesystem=store.arrow_filesystem,
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            failure_config=ray.train.FailureConfig(max_failures=WORKER_FAILURES),
            callbacks=list(run.callbacks),
        ),
    )
    # Workers pass over a damaged one; here the warning is seen.
    read_checkpoint(store, run.checkpoints)
    try:
        with log_epochs(store, run.checkpoints):
            trainer.fit()
    except ray.train.TrainingFailedError as error:
        mend = "mend it and rerun: it continues"
        said = explain(where, "training to end", str(error), mend)
        raise _told_by_worker(error) or CrossrecError(said) from error
    saved = read_checkpoint(store, run.checkpoints)
    if saved is None:
        raise CrossrecError(
            explain(where, "a checkpoint", "none that is whole", "rerun under a new run_id")
        )
    return saved


def _told_by_worker(error: ray.train.TrainingFailedError) -> CrossrecError | None:
    """Return what crossrec itself said in a worker, without Ray's pages of traceback around it."""
    failures: Mapping[int, Exception] = getattr(error, "worker_failures", {})
    for _, failure in sorted(failures.items()):
        # Ray 2.60 has no public name for the exception inside.
        inside = getattr(failure, "_base_exc", failure)
        if isinstance(inside, CrossrecError):
            return inside
    return None


def scale_workers(run: Run) -> ScalingConfig:
    """Give each worker a GPU where the cluster has them, else an equal share of the CPUs.

    One CPU in two stays free: Ray Data needs some to stream beside the workers, or nothing moves at
    all. What an autoscaler may add counts as there: Ray waits for it.

    Raises:
        ConfigError: the cluster can never hold the fewest workers of all runs at once.
    """
    now, most = ray.cluster_resources(), _limits()
    cpus, gpus = (int(max(now.get(name, 0), most.get(name, 0))) for name in ("CPU", "GPU"))
    # What an autoscaler may add is no smaller than what there is, or there is nothing yet.
    largest = largest_node_cpus(now.get("GPU", 0) > 0) if now.get("CPU", 0) else CPUS_A_WORKER
    each = max(1, min(cpus // 2 // (run.workers * run.runs_at_once), CPUS_A_WORKER, largest))
    everyone = (run.min_workers or run.workers) * run.runs_at_once
    if everyone * each >= cpus or (gpus and everyone > gpus):
        found = f"{cpus} CPUs and {gpus} GPUs in the cluster"
        expected = f"room for {everyone} workers and at least one CPU beside them"
        where = f"train.{'min' if run.min_workers else 'num'}_workers"
        where += " x tune.max_concurrent" if run.runs_at_once > 1 else ""
        raise ConfigError(explain(where, expected, found, "use fewer workers or a larger cluster"))
    return ScalingConfig(
        num_workers=(run.min_workers, run.workers) if run.min_workers else run.workers,
        elastic_resize_monitor_interval_s=RESIZE_AFTER_S,
        use_gpu=gpus > 0,
        resources_per_worker={"CPU": each, "GPU": min(gpus, 1)},
    )


def _limits() -> dict[str, float]:
    """Return the resources that an autoscaler may bring the cluster to; nothing without one."""
    # Ray 2.60 has no public way to ask; Ray Train itself asks here.
    from ray._private.state import state

    return dict(state.get_max_resources_from_cluster_config() or {})
