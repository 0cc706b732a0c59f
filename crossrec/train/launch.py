"""Stage 2, finetune: choose on the validation slice, then refit on everything up to as_of.

Time is cut train | valid | hold-out. The phase `select` trains on what lies before valid, stops
early by NDCG@10 on it, and its best weights are judged on the hold-out; the phase `refit` trains
with the chosen number of epochs on all events, and its weights are published. One run of Ray Train
does both. Then `train.fuse` learns how much the sequence counts beside text, neighbours and time.

    models/<model_id>/                      the refitted model
    runs/<run_id>/train/selected/           the model that the hold-out judges, in the same form
    runs/<run_id>/train/<digest>/           checkpoints of Ray Train
    runs/<run_id>/finetune.json             written last: a rerun of a finished stage does nothing

    summary = finetune(config, store)
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
import ray.train
from ray.data import ExecutionOptions
from ray.train.torch import TorchTrainer

from crossrec.config import Config
from crossrec.data.histories import Prepared, open_prepared
from crossrec.data.stream import stream_histories
from crossrec.encode import BackboneSource, encode_catalogue
from crossrec.errors import ConfigError, CrossrecError, explain
from crossrec.runlog import log, stage
from crossrec.schema import US_PER_DAY
from crossrec.storage import Store
from crossrec.train.continued import Start, find_start
from crossrec.train.export import Phase
from crossrec.train.fuse import FusePlan, fuse
from crossrec.train.loop import train_loop
from crossrec.train.progress import Progress, read_checkpoint
from crossrec.train.task import TrainJob
from crossrec.train.watch import log_epochs

CPUS_A_WORKER = 8
"""At most; more would not fit beside a GPU on common nodes, and the loop has no use for them."""

WORKER_FAILURES = 2
"""Times that Ray Train restarts its workers from the last checkpoint before the stage fails."""


def finetune(config: Config, store: Store) -> dict[str, Any]:
    """Run the stage on an initialised Ray; return what finetune.json holds.

    Raises:
        CrossrecError: training failed, or this run_id was fine-tuned with other settings or input.
    """
    run = f"runs/{config.run_id}"
    prepared = open_prepared(store, store.read_json(f"{run}/prepare.json")["prepared"])
    digest = training_digest(config, prepared)
    if store.exists(f"{run}/finetune.json"):
        finished: dict[str, Any] = store.read_json(f"{run}/finetune.json")
        if finished["digest"] != digest:
            found = (
                f"one fine-tuned with other settings or input ({finished['digest']}, now {digest})"
            )
            raise ConfigError(
                explain(
                    f"run_id {config.run_id}", "a run of this config", found, "give a new run_id"
                )
            )
        log.info("finetune: already done, %s", store.uri(finished["model"]))
        return finished
    folders = Folders(
        f"{run}/train", f"{run}/train/selected", f"models/{config.run_id}-{digest[:8]}"
    )
    BackboneSource(store, config.model).check()
    with stage("finetune") as facts:
        summary = train_models(config, store, prepared, folders)
        facts |= {
            "epochs": len(summary["training"]["curve"]) - 1,
            "best_epoch": summary["training"]["best_epoch"],
            "model": store.uri(summary["model"]),
        }
    summary |= {"digest": digest, "seconds": facts["seconds"]}
    store.write_json(
        f"{summary['model']}/metrics.json", {name: summary[name] for name in ("training", "refit")}
    )
    store.write_json(f"{run}/finetune.json", summary)
    return summary


@dataclass(frozen=True)
class Folders:
    """Where a training writes: checkpoints, the model that the hold-out judges, the published one.

    Without a folder for the last there is no refit.
    """

    checkpoints: str
    selected: str
    refitted: str | None = None


def train_models(
    config: Config, store: Store, prepared: Prepared, folders: Folders
) -> dict[str, Any]:
    """Train on an initialised Ray, continuing where an earlier call ended; say what came of it.

    Returns:
        model, selected: folders. days: on which valid, holdout and night begin. training, refit:
        epochs of both phases. fusion: what was learned of the parts' weights.

    Raises:
        CrossrecError: training failed.
    """
    known = prepared
    if config.evaluate.protocol == "leave_one_out":
        known = prepared.without_newest()
    night, holdout, valid = time_cuts(config, prepared)
    notes = {"run_id": config.run_id, "prepared": prepared.digest, "as_of_us": prepared.as_of_us}

    def texts_of(start: Start | None) -> dict[str, Any]:
        source = BackboneSource(store, config.model, start.folder if start else None)
        vectors = encode_catalogue(store, prepared, source)
        return {"source": source, "vectors": vectors, "start": start}

    earlier = find_start(config, store)
    select = TrainJob(
        store=store,
        prepared=known,
        model=config.model,
        train=config.train,
        seed=config.seed,
        known_before=valid,
        valid=(valid, holdout),
        epochs=config.train.epochs,
        earlier=earlier.holdout if earlier else None,
        **texts_of(earlier.selected if earlier else None),
    )
    phases = [Phase("select", select, folders.selected, notes)]
    if folders.refitted is not None:
        refit = replace(select, prepared=prepared, known_before=night, valid=None, earlier=None)
        if earlier:
            refit = replace(refit, **texts_of(earlier.refitted))
        phases.append(Phase("refit", refit, folders.refitted, notes))
    chosen, *rest = _train(phases, folders.checkpoints, training_digest(config, prepared))
    horizon = config.evaluate.holdout_days
    plan = FusePlan(valid, holdout, night, horizon, folders.selected, folders.refitted)
    fusion = fuse(plan, store, known, config.train, config.seed)
    return {
        "model": folders.refitted,
        "selected": folders.selected,
        "days": {"valid": valid, "holdout": holdout, "night": night},
        "continues": earlier.refitted.folder if earlier else None,
        "training": {name: getattr(chosen, name) for name in ("best_epoch", "best_ndcg", "curve")},
        "refit": rest[0].curve if rest else [],
        "fusion": fusion,
    }


def time_cuts(config: Config, prepared: Prepared) -> tuple[int, int, int]:
    """Return the days on which the night, the hold-out and the validation slice begin.

    The night is the day after as_of: all accepted events are known. Under leave-one-out the
    hold-out is no stretch of time: all days are known.
    """
    night = prepared.as_of_us // US_PER_DAY + 1
    holdout = night
    if config.evaluate.protocol == "time":
        holdout = night - config.evaluate.holdout_days
    return night, holdout, holdout - config.train.valid_days


def training_digest(config: Config, prepared: Prepared) -> str:
    """Return 16 hex digits that change with the input and the settings that training reads."""
    settings = {
        "seed": config.seed,
        "prepared": prepared.digest,
        "holdout_days": config.evaluate.holdout_days,
        "protocol": config.evaluate.protocol,
    }
    settings |= {
        "model": config.model.model_dump(mode="json"),
        "train": config.train.model_dump(mode="json"),
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _train(phases: Sequence[Phase], folder: str, name: str) -> list[Progress]:
    """Train, from the newest checkpoint under this name; return the progress of each phase."""
    job = phases[0].job
    # In the order of the buckets, so that a night can be repeated.
    options = ExecutionOptions(preserve_order=True)
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"phases": phases, "folder": f"{folder}/{name}"},
        datasets={"histories": stream_histories(job.store, job.prepared)},
        dataset_config=ray.train.DataConfig(execution_options=options),
        scaling_config=_scaling(job.train.num_workers),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=job.store.full_path(folder),
            storage_filesystem=job.store.arrow_filesystem,
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            failure_config=ray.train.FailureConfig(max_failures=WORKER_FAILURES),
        ),
    )
    # Workers pass over a damaged one; here the warning is seen.
    read_checkpoint(job.store, f"{folder}/{name}")
    try:
        with log_epochs(job.store, f"{folder}/{name}"):
            trainer.fit()
    except ray.train.TrainingFailedError as error:
        where = job.store.uri(f"{folder}/{name}")
        raise CrossrecError(
            explain(where, "training to end", str(error), "mend it and rerun: it continues")
        ) from error
    saved = read_checkpoint(job.store, f"{folder}/{name}")
    if saved is None:
        where = job.store.uri(f"{folder}/{name}")
        raise CrossrecError(
            explain(where, "a checkpoint", "none that is whole", "rerun under a new run_id")
        )
    return saved.phases


def _scaling(workers: int) -> ray.train.ScalingConfig:
    """Give each worker a GPU where the cluster has them, else an equal share of the CPUs.

    One CPU in two stays free: Ray Data needs some to stream beside the workers, or nothing moves at
    all.
    """
    resources = ray.cluster_resources()
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    each = max(1, min(cpus // 2 // workers, CPUS_A_WORKER))
    if workers * each >= cpus or (gpus and workers > gpus):
        found = f"{cpus} CPUs and {gpus} GPUs in the cluster"
        expected = f"room for {workers} workers and at least one CPU beside them"
        raise ConfigError(
            explain("train.num_workers", expected, found, "use fewer workers or a larger cluster")
        )
    return ray.train.ScalingConfig(
        num_workers=workers,
        use_gpu=gpus > 0,
        resources_per_worker={"CPU": each, "GPU": min(gpus, 1)},
    )
