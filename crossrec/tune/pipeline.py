"""The search for settings: trials drawn from a space train side by side, ASHA stops the worse ones.

In: a config with `tune.space`. Out, in the store:

    runs/<run_id>/tune/<trial>/trial.json   a trial: what it drew, how far it came (tune.records)
    runs/<run_id>/tune/tune.json            all trials, best first
    runs/<run_id>/tune/best.yaml            the best one's config, which jobs/nightly.py takes

    summary = tune(config, store)

Trials are compared by the validation slice alone; nothing here reads the hold-out. A rerun of the
same command does what is missing: Ray Tune's own state is not used, since it would pickle the
store's filesystem, credentials included. What Ray Tune must write goes to a temporary folder.
"""

import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import ray.tune
import yaml
from ray.tune.schedulers import ASHAScheduler

from crossrec.config import Config
from crossrec.data.histories import Prepared, open_prepared
from crossrec.data.prepare import prepare
from crossrec.errors import ConfigError, CrossrecError, explain
from crossrec.model.source import BackboneSource
from crossrec.runlog import log, stage
from crossrec.storage import Store
from crossrec.train.adapt import check_adapt
from crossrec.train.launch import Folders, plan_training, training_digest
from crossrec.train.tracking import check_tracking
from crossrec.train.workers import Run, scale_workers
from crossrec.tune.records import (
    FAILED,
    FINISHED,
    SELECTED,
    STOPPED,
    Record,
    best_epoch,
    best_trial,
    best_value,
    measure_name,
    read_record,
    remove_weights,
)
from crossrec.tune.report import TellTrials, say_record
from crossrec.tune.space import Trial, draw_trials
from crossrec.tune.trial import TrainTrial, TrialPlan

TRIAL_BYTES = 256 * 2**20
"""Memory of a trial's actor, which waits while workers train. Ray Tune wants some resource; a share
of a CPU would be missing beside workers that hold all but one."""

TUNE_ENVIRONMENT = {
    # The old output can be silent; the new one prints failures to stdout, whatever `verbose` says.
    "RAY_AIR_NEW_OUTPUT": "0",
    # Tables of results in its folder: nobody reads them.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Ctrl-C ends the job at once, as it does the other jobs: what counts is stored.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}


def tune(config: Config, store: Store) -> dict[str, Any]:
    """Run the search on an initialised Ray; return what was found.

    Raises:
        CrossrecError: no trial came to an end, or this run_id has trials of another search.
    """
    trials = draw_trials(config)
    runs_at_once = min(config.tune.max_concurrent, len(trials))
    _check(trials, store, runs_at_once)
    # That of a trial: whether ratings are read is for the objective to say.
    prepared = open_prepared(store, prepare(trials[0].config, store)["prepared"])
    folder = f"runs/{config.run_id}/tune"
    measure = measure_name(trials[0].config.train)
    with stage("tune") as facts:
        records = read_records(store, folder, trials, prepared)
        over = [record for record in records if record.is_over]
        for record in over:
            log.info("tune: %s", say_record(record, measure))
        left = [trial for trial in trials if trial.name not in {record.trial for record in over}]
        error = None
        if left:
            plans = {trial.name: plan_trial(trial, store, prepared, runs_at_once) for trial in left}
            scheduler = make_scheduler(config, trials, over, measure)
            error = _search(plans, scheduler, runs_at_once)
        records = read_records(store, folder, trials, prepared)
        for record in records:
            # A trial that was killed as it ended could not.
            remove_weights(store, f"{folder}/{record.trial}")
        best = best_trial(records, measure)
        if best is None:
            mend = "mend it and rerun: it continues"
            said = explain(store.uri(folder), "a trial that ends", "none", mend)
            raise CrossrecError(said) from error
        facts |= _count(records) | {"best": say_record(best, measure)}
    _write_results(store, folder, trials, records, best)
    return {
        **_count(records),
        "best": _describe(best, measure),
        "best_config": store.uri(f"{folder}/best.yaml"),
        "records": store.uri(f"{folder}/tune.json"),
        "seconds": facts["seconds"],
    }


def _check(trials: Sequence[Trial], store: Store, runs_at_once: int) -> None:
    """Fail before any work where a trial could not train."""
    for trial in trials:
        scale_workers(_run_of(trial, store, "", runs_at_once))
        BackboneSource(store, trial.config.model).check()
        check_adapt(trial.config, store)
        check_tracking(trial.config.train.tracking)


def read_records(
    store: Store, folder: str, trials: Sequence[Trial], prepared: Prepared
) -> list[Record]:
    """Return the records of the trials that have begun.

    Raises:
        ConfigError: one is of other settings or other input.
    """
    found = []
    for trial in trials:
        record = read_record(store, f"{folder}/{trial.name}")
        if record is None:
            continue
        if record.digest != training_digest(trial.config, prepared):
            said = "one with other settings, seed, space or input"
            where = f"run_id {trial.config.run_id}: {trial.name}"
            raise ConfigError(explain(where, "a trial of this search", said, "give a new run_id"))
        found.append(record)
    return found


def plan_trial(trial: Trial, store: Store, prepared: Prepared, runs_at_once: int) -> TrialPlan:
    """Return what a trial trains; texts are encoded once for all that read them alike."""
    config, folder = trial.config, f"runs/{trial.config.run_id}/tune/{trial.name}"
    # Without a folder for a refit: the phase that looks at the validation slice is all there is.
    plan = plan_training(config, store, prepared, Folders(folder, f"{folder}/{SELECTED}"))
    run = _run_of(trial, store, training_digest(config, prepared), runs_at_once)
    return TrialPlan(folder, plan, run, trial.parameters, measure_name(config.train))


def _run_of(trial: Trial, store: Store, name: str, runs_at_once: int) -> Run:
    train, folder = trial.config.train, f"runs/{trial.config.run_id}/tune/{trial.name}"
    return Run(store, folder, name, train.num_workers, train.min_workers, runs_at_once)


def make_scheduler(
    config: Config, trials: Sequence[Trial], over: Sequence[Record], measure: str
) -> ASHAScheduler:
    """Return an ASHA that knows already what the trials that are over have shown."""
    longest = max(trial.config.train.epochs for trial in trials)
    scheduler = ASHAScheduler(
        time_attr="epoch",
        metric="value",
        mode="max",
        max_t=longest,
        grace_period=min(config.tune.grace_epochs, longest),
        reduction_factor=config.tune.reduction,
    )
    for record in over:
        # All that ASHA asks of a trial is its id.
        trial: Any = SimpleNamespace(trial_id=record.trial)
        controller: Any = None
        scheduler.on_trial_add(controller, trial)
        for count in range(1, len(record.epochs) + 1):
            so_far = Record(record.trial, "", {}, epochs=record.epochs[:count])
            epoch, value = so_far.epochs[-1]["epoch"], best_value(so_far, measure)
            scheduler.on_trial_result(controller, trial, {"epoch": epoch, "value": value})
    return scheduler


def _search(
    plans: Mapping[str, TrialPlan], scheduler: ASHAScheduler, runs_at_once: int
) -> Exception | None:
    """Run trials until each has ended, was stopped or failed; return the first error of these."""
    for name, value in TUNE_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Warns that it finds no tables of results.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    trainable = ray.tune.with_resources(
        # In Ray's memory, so that no file of Ray Tune has the store's options.
        ray.tune.with_parameters(TrainTrial, plans=dict(plans)),
        {"memory": TRIAL_BYTES},
    )
    with tempfile.TemporaryDirectory(prefix="crossrec-tune-") as scratch:
        tuner = ray.tune.Tuner(
            trainable,
            param_space={"trial": ray.tune.grid_search(list(plans))},
            tune_config=ray.tune.TuneConfig(
                scheduler=scheduler, max_concurrent_trials=runs_at_once
            ),
            run_config=ray.tune.RunConfig(
                name="search",
                storage_path=scratch,
                verbose=0,
                # The training inside keeps its own.
                checkpoint_config=ray.tune.CheckpointConfig(checkpoint_at_end=False),
                callbacks=[TellTrials(plans)],
            ),
        )
        errors: Sequence[Exception] = tuner.fit().errors
    return errors[0] if errors else None


def _write_results(
    store: Store, folder: str, trials: Sequence[Trial], records: Sequence[Record], best: Record
) -> None:
    """Write tune.json and best.yaml."""
    config = next(trial.config for trial in trials if trial.name == best.trial)
    measure = measure_name(config.train)
    ranked = sorted(
        (record for record in records if record.is_over and record.epochs),
        key=lambda record: best_value(record, measure),
        reverse=True,
    )
    others = [record for record in records if record not in ranked]
    said = [asdict(record) | {"best": _describe(record, measure)} for record in ranked]
    said += [asdict(record) | {"best": None} for record in others]
    store.write_json(f"{folder}/tune.json", {"measure": measure, "trials": said})
    # A night's name is its date, not that of the search.
    settings = {
        name: value for name, value in config.public().items() if name not in ("run_id", "tune")
    }
    head = (
        f"# {say_record(best, measure)}\n"
        f"# is the best of {len(trials)} trials by the validation slice.\n"
        "#   python jobs/nightly.py best.yaml\n"
        "# storage.options are not in here: give them again, or by the standard variables.\n"
    )
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    store.write_bytes(f"{folder}/best.yaml", (head + text).encode())


def _count(records: Sequence[Record]) -> dict[str, int]:
    states = [record.state for record in records]
    return {"trials": len(states)} | {
        state: states.count(state) for state in (FINISHED, STOPPED, FAILED)
    }


def _describe(record: Record, measure: str) -> dict[str, Any]:
    point = best_epoch(record, measure)
    return {
        "trial": record.trial,
        "parameters": dict(record.parameters),
        "epoch": point["epoch"],
        measure: point[measure],
    }
