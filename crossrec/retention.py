"""What is kept of old runs: the newest publications, the current one, and what they are made from.

In: the store. Out: the runs that were removed, with the models and prepared folders that only they
used. A run that was never published is left alone: it may be at work, or be no night. But nights
that failed, and that nobody has gone on with since before the oldest publication that stays, go.
So do prepared folders that were never finished and that no run names.

    remove_old_runs(store, current="2014-06-08", keep=7)    # ["2014-05-30"]
    remove_unfinished(store)                                # ["prepared/0123456789abcdef"]

A removal begins with a mark in the run's folder and ends with it, so that a crash half-way is
finished by the next call, and nobody takes half a run for a publication.
"""

import datetime as dt
import logging
from typing import Any

from crossrec.current import MARK, read_current
from crossrec.data.histories import SUMMARY
from crossrec.increment import RECORD
from crossrec.lease import seconds_since_beat
from crossrec.runsummary import read_summary
from crossrec.storage import Store
from crossrec.storage_errors import MissingObject

log = logging.getLogger("crossrec")

NIGHTLY = "nightly"
"""The command whose runs are nights: searches and runs of single stages are somebody's own."""

IDLE_S = 3_600.0
"""Without a beat for so long, by the clocks of two machines, no job is at work on a run."""

NAMES_REFERENCES = ("plan.json", "prepare.json", "finetune.json", MARK)
"""Files of a run that name its model and prepared folder."""


def published_runs(store: Store) -> list[dict[str, Any]]:
    """Return run_id and created of every publication that is whole, newest first."""
    runs = []
    for run_id in store.list("runs"):
        try:
            manifest = store.read_json(f"runs/{run_id}/manifest.json")
        except MissingObject:
            continue
        if not store.exists(f"runs/{run_id}/{MARK}"):
            runs.append({"run_id": run_id, "created": manifest["created"]})
    return sorted(runs, key=lambda run: (run["created"], run["run_id"]), reverse=True)


def remove_old_runs(store: Store, current: str, keep: int) -> list[str]:
    """Remove the published runs beyond the newest `keep` ones, and failed nights; return them.

    Never the current one, nor one that a run which stays stands on or has files of.
    """
    everyone = store.list("runs")
    published = published_runs(store)
    half_removed = [run for run in everyone if store.exists(f"runs/{run}/{MARK}")]
    old = [run["run_id"] for run in published[keep:]] + half_removed
    if len(published) >= keep:
        old += _abandoned(store, everyone, since=published[keep - 1]["created"])
    # Each once: a night that failed may be half removed.
    old = [run for run in dict.fromkeys(old) if run != current]
    if not old:
        return []
    kept = {run for run in everyone if run not in old}
    more = kept
    while more := {name for run in more for name in _stands_on(store, run)} - kept:
        kept |= more
    old = [run for run in old if run not in kept or run in half_removed]
    used = {name for run in everyone if run not in old for name in _references(store, run)}
    return sorted(run for run in old if _remove(store, run, used))


def _abandoned(store: Store, runs: list[str], since: str) -> list[str]:
    """Return the nights that came to nothing and that no job has worked on since a moment."""
    found = []
    for run in runs:
        summary = read_summary(store, run)
        if summary is None or summary["command"] != NIGHTLY:
            continue
        if store.exists(f"runs/{run}/manifest.json"):
            continue
        began, moment = (dt.datetime.fromisoformat(t) for t in (summary["attempt_began"], since))
        beat = seconds_since_beat(store, run)
        if began < moment and (beat is None or beat > IDLE_S):
            found.append(run)
    return found


def _remove(store: Store, run: str, used: set[str]) -> bool:
    """Remove a run, unless readers have been switched to it since; return whether it is gone."""
    folder = f"runs/{run}"
    unused = sorted(_references(store, run) - used)
    store.write_json(f"{folder}/{MARK}", {"references": unused})
    # Who switches readers does it the other way round: switches, then looks for the mark.
    pointer = read_current(store)
    if pointer and pointer["run_id"] == run:
        store.delete(f"{folder}/{MARK}")
        return False
    for name in (*unused, *(f"{folder}/{name}" for name in store.list(folder) if name != MARK)):
        store.delete(name)
    store.delete(folder)
    log.info("publish: removed run %s%s", run, "".join(f", {name}" for name in unused))
    return True


def remove_unfinished(store: Store) -> list[str]:
    """Remove prepared folders that are not finished and that no run names; return them.

    A run names its own once that is finished: nothing goes while a job may be at one.
    """
    # Before the runs: who prepares a folder holds its run before.
    folders = [f"prepared/{name}" for name in store.list("prepared")]
    folders = [folder for folder in folders if not store.exists(f"{folder}/{SUMMARY}")]
    if not folders:
        return []
    runs = store.list("runs")
    if any(_may_prepare(store, run) for run in runs):
        return []
    named = {name for run in runs for name in _references(store, run)}
    removed = [folder for folder in folders if folder not in named]
    for folder in removed:
        store.delete(folder)
        log.info("publish: removed %s, which was never finished", folder)
    return removed


def _may_prepare(store: Store, run: str) -> bool:
    """Whether a job is at work on a run whose input is not prepared yet."""
    if store.exists(f"runs/{run}/prepare.json"):
        return False
    beat = seconds_since_beat(store, run)
    return beat is not None and beat <= IDLE_S


def _stands_on(store: Store, run: str) -> set[str]:
    """Return the runs that a run needs.

    Of a publication the one that trained its model, which later ones are compared with; of an
    incremental one the full night too, and those it has files of.
    """
    folder = f"runs/{run}"
    try:
        manifest = store.read_json(f"{folder}/manifest.json")
    except MissingObject:
        record = f"{folder}/{RECORD}"
        # At work: it still takes lists over.
        return set(store.read_json(record).values()) if store.exists(record) else set()
    found = {str(file["path"]).split("/")[1] for file in manifest["files"]}
    found |= {str(manifest.get("full", run)), *_trained_by(store, manifest)}
    return found - {run}


def _trained_by(store: Store, manifest: dict[str, Any]) -> set[str]:
    try:
        model = str(manifest["model"]).removeprefix("models/")
        facts = store.read_json(f"models/{model}/config.json")["facts"]
    except (MissingObject, KeyError):
        return set()
    return {str(facts["run_id"])} if "run_id" in facts else set()


def _references(store: Store, run: str) -> set[str]:
    """Return the models/... and prepared/... folders that a run's files name."""
    found = set()
    for name in NAMES_REFERENCES:
        try:
            says = store.read_json(f"runs/{run}/{name}")
        except MissingObject:
            continue
        named = [
            *says.get("references", []),
            *(
                f"{kind}/{str(says[key]).removeprefix(f'{kind}/')}"
                for kind, key in (("models", "model"), ("prepared", "prepared"))
                if says.get(key)
            ),
        ]
        # One folder below models or prepared, never these themselves.
        found |= {name for name in named if name.count("/") == 1 and not name.endswith("/")}
    return found
