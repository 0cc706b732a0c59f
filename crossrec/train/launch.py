"""Stage 2, finetune: choose on the validation slice, then refit on everything up to as_of.

Time is cut train | valid | hold-out. The `select` run trains on what lies before valid, stops early
by NDCG@10 on it, and its best weights are judged on the hold-out; the `refit` run trains with the
chosen number of epochs and blends on all events, and its weights are published.

    models/<model_id>/                      the refitted model
    runs/<run_id>/train/selected/           the model that the hold-out judges, in the same form
    runs/<run_id>/train/{select,refit}/     checkpoints of Ray Train
    runs/<run_id>/finetune.json             written last: a rerun of a finished stage does nothing

    summary = finetune(config, store)
"""

import hashlib
import json
from pathlib import Path
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
from crossrec.model.checkpoint import Model, save_model, tensors_from_bytes
from crossrec.model.recommender import Blend
from crossrec.runlog import log, stage
from crossrec.schema import US_PER_DAY
from crossrec.storage import Store
from crossrec.train.loop import train_loop
from crossrec.train.task import TrainJob, build_task

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
    digest = _digest(config, prepared)
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
    with stage("finetune") as facts:
        source = BackboneSource(store, config.model)
        vectors = encode_catalogue(store, prepared, source)
        night, holdout, valid = time_cuts(config, prepared)
        common = (store, prepared, vectors, source, config.model, config.train, config.seed)
        job = TrainJob(*common, valid, (valid, holdout), config.train.epochs)
        selected = _train(job, f"{run}/train", f"select-{digest}")
        progress = selected["progress"]
        log.info(
            "finetune: best epoch %s, NDCG@10 %s",
            progress["best_epoch"],
            round(progress["best_ndcg"], 5),
        )
        notes = {
            "run_id": config.run_id,
            "prepared": prepared.digest,
            "as_of_us": prepared.as_of_us,
        }
        _export(
            job, selected, progress, f"{run}/train/selected", notes | {"known_before_day": valid}
        )
        refit = TrainJob(*common, night, None, progress["best_epoch"])
        final = _train(refit, f"{run}/train", f"refit-{digest}")
        folder = f"models/{config.run_id}-{digest[:8]}"
        _export(refit, final, progress, folder, notes | {"known_before_day": night})
        facts |= {
            "epochs": progress["epoch"],
            "best_epoch": progress["best_epoch"],
            "model": store.uri(folder),
        }
    summary = {
        "digest": digest,
        "model": folder,
        "selected": f"{run}/train/selected",
        "days": {"valid": valid, "holdout": holdout, "night": night},
        "training": {
            name: progress[name] for name in ("best_epoch", "best_ndcg", "blends", "step0", "curve")
        },
        "refit": final["progress"]["curve"],
        "seconds": facts["seconds"],
    }
    store.write_json(
        f"{folder}/metrics.json", {"training": summary["training"], "refit": summary["refit"]}
    )
    store.write_json(f"{run}/finetune.json", summary)
    return summary


def time_cuts(config: Config, prepared: Prepared) -> tuple[int, int, int]:
    """Return the days on which the night, the hold-out and the validation slice begin.

    The night is the day after as_of: all accepted events are known.
    """
    night = prepared.as_of_us // US_PER_DAY + 1
    holdout = night - config.evaluate.holdout_days
    return night, holdout, holdout - config.train.valid_days


def _digest(config: Config, prepared: Prepared) -> str:
    settings = {
        "seed": config.seed,
        "prepared": prepared.digest,
        "holdout_days": config.evaluate.holdout_days,
    }
    settings |= {
        "model": config.model.model_dump(mode="json"),
        "train": config.train.model_dump(mode="json"),
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _train(job: TrainJob, folder: str, name: str) -> dict[str, Any]:
    """Train, from the newest checkpoint under this name; return progress and best weights."""
    # In the order of the buckets, so that a night can be repeated.
    options = ExecutionOptions(preserve_order=True)
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"job": job},
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
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        where = job.store.uri(f"{folder}/{name}")
        raise CrossrecError(
            explain(where, "training to end", str(error), "mend it and rerun: it continues")
        ) from error
    if result.checkpoint is None:
        raise CrossrecError(
            explain(
                job.store.uri(f"{folder}/{name}"),
                "a checkpoint",
                "none",
                "rerun under a new run_id",
            )
        )
    with result.checkpoint.as_directory() as local:
        progress = json.loads((Path(local) / "progress.json").read_text())
        return {"progress": progress, "best": (Path(local) / "best.safetensors").read_bytes()}


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


def _export(
    job: TrainJob,
    trained: dict[str, Any],
    chosen: dict[str, Any],
    folder: str,
    notes: dict[str, Any],
) -> None:
    """Write the best weights and the blends that validation chose as a model folder."""
    import torch

    task = build_task(job, torch.device("cpu"))
    task.loss.load_state_dict(tensors_from_bytes(trained["best"]))
    backbone = task.texts.backbone if task.texts is not None else job.source.load()
    blends, step0 = (
        {name: Blend(**blend) for name, blend in chosen[key].items()} for key in ("blends", "step0")
    )
    domains = tuple(domain.name for domain in job.prepared.domains)
    facts = notes | {
        "seed": job.seed,
        "backbone": job.model.backbone,
        "valid_ndcg@10": chosen["best_ndcg"],
    }
    model = Model(job.model, task.loss.recommender, task.items, domains, blends, step0, facts)
    save_model(job.store, folder, model, backbone)
