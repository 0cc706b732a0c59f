"""Stage 2, finetune: choose on the validation slice, then refit on everything up to as_of.

Time is cut train | valid | hold-out; under leave-one-out so is each user's history, whose newest
event is held out and the one before it the validation slice. The phase `select` trains on what lies
before valid, stops early by NDCG@10 on it, and its best weights are judged on the hold-out; the
phase `refit` trains with the chosen number of epochs on all events, and its weights are published.
One run of Ray Train does both. Then `train.fuse` learns how much the sequence counts beside text,
neighbours and time, and where `score.encoder` is small, `train.distil` makes small encoders.

    models/<model_id>/                      the refitted model, with a card and checksums
    runs/<run_id>/train/selected/           the model that the hold-out judges, in the same form
    runs/<run_id>/train/<digest>/           checkpoints of Ray Train
    runs/<run_id>/finetuning.json           what has begun: a rerun with other settings is refused
    runs/<run_id>/finetune.json             written last: a rerun of a finished stage does nothing

    summary = finetune(config, store)
"""

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

from crossrec.config import Config
from crossrec.data.histories import Prepared, open_prepared
from crossrec.data.stream import stream_histories
from crossrec.encode import encode_catalogue
from crossrec.errors import ConfigError, UserError, explain
from crossrec.model.integrity import write_checksums
from crossrec.model.source import BackboneSource
from crossrec.runlog import log, stage
from crossrec.storage import Store
from crossrec.train.adapt import adapt, check_adapt
from crossrec.train.card import write_card
from crossrec.train.continued import Earlier, Start, find_start
from crossrec.train.distil import distil
from crossrec.train.export import Phase, describe_scores
from crossrec.train.fuse import FusePlan, fuse
from crossrec.train.loop import train_loop
from crossrec.train.progress import Progress
from crossrec.train.span import check_span, time_cuts
from crossrec.train.task import TrainJob
from crossrec.train.tracking import check_tracking
from crossrec.train.workers import Run, run_workers

BEGUN = "finetuning.json"

NOT_IN_DIGEST = {"tracking", "strategy", "num_workers", "min_workers"}
"""Settings that may change from a night to its rerun, which goes on all the same."""


def finetune(config: Config, store: Store) -> dict[str, Any]:
    """Run the stage on an initialised Ray; return what finetune.json holds.

    Raises:
        ConfigError: this run_id was fine-tuned, or began to be, with other settings or input.
        CrossrecError: training failed.
    """
    run = f"runs/{config.run_id}"
    prepared = open_prepared(store, store.read_json(f"{run}/prepare.json")["prepared"])
    digest = training_digest(config, prepared)
    _refuse_another(config, store, digest)
    if store.exists(f"{run}/finetune.json"):
        finished: dict[str, Any] = store.read_json(f"{run}/finetune.json")
        log.info("finetune: already done, %s", store.uri(finished["model"]))
        return finished
    BackboneSource(store, config.model).check()
    check_adapt(config, store)
    check_tracking(config.train.tracking)
    check_span(config, store, prepared, time_cuts(config, prepared))
    folders = Folders(
        f"{run}/train", f"{run}/train/selected", f"models/{config.run_id}-{digest[:8]}"
    )
    with stage("finetune") as facts:
        store.write_json(f"{run}/{BEGUN}", {"digest": digest})
        try:
            summary = train_models(config, store, prepared, folders)
            if config.score.encoder == "small":
                summary["small"] = _distil(config, store, prepared, summary)
        except UserError:
            # Nothing was made of what the user will mend.
            store.delete(f"{run}/{BEGUN}")
            raise
        facts |= {
            "epochs": len(summary["training"]["curve"]) - 1,
            "best_epoch": summary["training"]["best_epoch"],
            "model": store.uri(summary["model"]),
        }
    summary |= {"digest": digest, "seconds": facts["seconds"]}
    store.write_json(
        f"{summary['model']}/metrics.json", {name: summary[name] for name in ("training", "refit")}
    )
    write_card(config, store, summary)
    summary["model_sha256"] = write_checksums(store, summary["model"])
    store.write_json(f"{run}/finetune.json", summary)
    return summary


def _distil(
    config: Config, store: Store, prepared: Prepared, summary: dict[str, Any]
) -> dict[str, Any]:
    """Give the models of both phases a small encoder; say how near the published one's comes."""
    known = prepared
    if config.evaluate.protocol == "leave_one_out":
        known = prepared.without_newest()
    days = summary["days"]
    until = {summary["selected"]: days["valid"], summary["model"]: days["night"]}
    return distil(store, known, until, config.seed)


def _refuse_another(config: Config, store: Store, digest: str) -> None:
    """Raise where the run was fine-tuned, or began to be, with other settings or another input."""
    paths = [f"runs/{config.run_id}/{name}" for name in (BEGUN, "finetune.json")]
    begun = {store.read_json(path)["digest"] for path in paths if store.exists(path)}
    if begun - {digest}:
        others = ", ".join(sorted(begun - {digest}))
        found = f"one fine-tuned with other settings or input ({others}, now {digest})"
        raise ConfigError(
            explain(f"run_id {config.run_id}", "a run of this config", found, "give a new run_id")
        )


@dataclass(frozen=True)
class Folders:
    """Where a training writes: checkpoints, the model that the hold-out judges, the published one.

    Without a folder for the last there is no refit.
    """

    checkpoints: str
    selected: str
    refitted: str | None = None


def train_models(
    config: Config,
    store: Store,
    prepared: Prepared,
    folders: Folders,
    start: Start | None = None,
) -> dict[str, Any]:
    """Train on an initialised Ray, continuing where an earlier call ended; say what came of it.

    Args:
        config: of the training.
        store: of the run.
        prepared: the input.
        folders: where to.
        start: a model to go on from, in place of `train.continue_from`; there is no refit then.

    Returns:
        model, selected: folders. days: on which valid, holdout and night begin. training, refit:
        epochs of both phases; adapt: rounds of what came before them. fusion: what was learned of
        the parts' weights.

    Raises:
        CrossrecError: training failed.
    """
    plan = plan_training(config, store, prepared, folders, start)
    run = Run(
        store,
        folders.checkpoints,
        training_digest(config, prepared),
        config.train.num_workers,
        config.train.min_workers,
    )
    chosen, *rest = run_phases(plan, run)
    valid, holdout, night = (plan.days[name] for name in ("valid", "holdout", "night"))
    horizon = config.evaluate.holdout_days
    models = folders.selected, folders.refitted
    fuse_plan = FusePlan(valid, holdout, night, horizon, *models, config.train.moments)
    select = plan.phases[0].job
    known = select.newest_of or select.prepared
    fusion = fuse(fuse_plan, store, known, config.train, config.seed)
    return {
        "model": folders.refitted,
        "selected": folders.selected,
        "days": plan.days,
        "continues": plan.continues,
        "adapt": plan.adapt_curve,
        "training": {name: getattr(chosen, name) for name in ("best_epoch", "best_ndcg", "curve")},
        "refit": rest[0].curve if rest else [],
        "fusion": fusion,
    }


@dataclass(frozen=True)
class Plan:
    """What a training does once backbone and text vectors are there.

    days: on which valid, holdout and night begin. continues: folder of the model it goes on from.
    """

    phases: list[Phase]
    days: dict[str, int]
    continues: str | None
    adapt_curve: list[dict[str, float]]


def plan_training(
    config: Config,
    store: Store,
    prepared: Prepared,
    folders: Folders,
    start: Start | None = None,
) -> Plan:
    """Adapt the backbone where the config asks for it, encode the catalogue, and lay out phases.

    Raises:
        CrossrecError: the adaptation failed.
    """
    night, holdout, valid = time_cuts(config, prepared)
    known, newest_of, known_before = prepared, None, valid
    if config.evaluate.protocol == "leave_one_out":
        # What epochs are judged by is the newest event but the one that is held out.
        newest_of = prepared.without_newest()
        known, known_before = newest_of.without_newest(), night
    notes: dict[str, Any] = {
        "run_id": config.run_id,
        "prepared": prepared.digest,
        "as_of_us": prepared.as_of_us,
    }
    notes["scores"] = describe_scores(config)
    earlier = Earlier(start, start) if start else find_start(config, store)
    backbone, adapt_curve = config.model, list[dict[str, float]]()
    if earlier is None:
        backbone, adapt_curve = adapt(config, store, known, known_before, folders.checkpoints)

    def texts_of(start: Start | None) -> dict[str, Any]:
        folder = start.folder if start else None
        source = BackboneSource(store, backbone, folder).pinned(config.run_id)
        vectors = encode_catalogue(store, prepared, source)
        return {"source": source, "vectors": vectors, "start": start}

    select = TrainJob(
        store=store,
        prepared=known,
        model=config.model,
        train=config.train,
        seed=config.seed,
        known_before=known_before,
        valid=None if newest_of else (valid, holdout),
        newest_of=newest_of,
        epochs=config.train.epochs,
        earlier=earlier.holdout if earlier else None,
        **texts_of(earlier.selected if earlier else None),
    )
    phases = [Phase("select", select, folders.selected, notes)]
    if folders.refitted is not None:
        refit = replace(
            select, prepared=prepared, known_before=night, valid=None, newest_of=None, earlier=None
        )
        if earlier:
            refit = replace(refit, **texts_of(earlier.refitted))
        phases.append(Phase("refit", refit, folders.refitted, notes))
    days = {"valid": valid, "holdout": holdout, "night": night}
    return Plan(phases, days, earlier.refitted.folder if earlier else None, adapt_curve)


def run_phases(plan: Plan, run: Run) -> list[Progress]:
    """Train, from the run's newest checkpoint on; return the progress of each phase.

    Raises:
        CrossrecError: training failed.
    """
    datasets = {
        phase.histories: stream_histories(phase.job.store, phase.job.prepared, run.workers)
        for phase in plan.phases
    }
    config = {"phases": plan.phases, "tracked": run.folder}
    return run_workers(run, train_loop, config, datasets).phases


def training_digest(config: Config, prepared: Prepared) -> str:
    """Return 16 hex digits that change with the input and the settings that training reads.

    How many workers share it, and how, is not among them: any go on from any checkpoint.
    """
    settings = {
        "seed": config.seed,
        "prepared": prepared.digest,
        "holdout_days": config.evaluate.holdout_days,
        "protocol": config.evaluate.protocol,
    }
    if config.score.encoder != "full":
        # By default what it was: a night that died goes on from its checkpoints.
        settings["encoder"] = config.score.encoder
    settings |= {
        "model": config.model.model_dump(mode="json"),
        "train": config.train.model_dump(mode="json", exclude=NOT_IN_DIGEST),
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
