"""Publication: check every file of a run against its record, write the manifest, switch readers.

In: the store, and runs/<run_id>/ with plan.json, done/*.json, scores/ and defaults.parquet.
Out: runs/<run_id>/manifest.json and, last of all, current.json, the one file that readers follow.

    summary = publish(config, Store(config.storage.root, config.storage.options))
    rollback(store)        # readers get the publication before that one

A crash at any moment leaves the old publication or the new one, whole; a rerun does what is left.
"""

import datetime as dt
import hashlib
import json
from typing import Any

from crossrec.config import Config
from crossrec.current import CURRENT, MARK, read_pointer, switch
from crossrec.errors import CrossrecError, UserError, explain
from crossrec.lease import confirm
from crossrec.retention import published_runs, remove_old_runs, remove_unfinished
from crossrec.runlog import stage
from crossrec.storage import Store
from crossrec.storage_errors import MissingObject
from crossrec.verify import verify_run
from crossrec.verify_records import read_record

PLANNED = {"run_id", "model", "model_sha256", "prepared", "buckets", "domains", "top_k", "digest"}
"""Keys of plan.json that publication needs."""


def publish(config: Config, store: Store) -> dict[str, Any]:
    """Verify the run, write its manifest, switch current.json to it, and remove old runs.

    Raises:
        CrossrecError: a file or record is missing or not as recorded, or another job has taken the
            run; current.json is untouched.
        UserError: another publication switched current.json since this one began.
    """
    with stage("publish") as summary:
        folder = f"runs/{config.run_id}"
        plan = _read_plan(store, folder)
        before, current = read_pointer(store)
        manifest, data = _published(store, folder, plan, current)
        if manifest is None:
            manifest, data = _write_manifest(store, folder, plan)
            # A removal that a crash cut short must not go on once the run is whole again.
            store.delete(f"{folder}/{MARK}")
        pointer = {
            "run_id": config.run_id,
            "manifest": f"{folder}/manifest.json",
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        if current != pointer:
            # A job that was paused may have been taken for dead, and another be at work.
            confirm(store, config.run_id)
            switch(store, before, pointer)
        removed = remove_old_runs(store, config.run_id, config.publish.keep_runs)
        remove_unfinished(store)
        files = manifest["files"]
        summary |= {
            "run_id": config.run_id,
            "manifest": store.uri(pointer["manifest"]),
            "created": manifest["created"],
            "files": len(files),
            "rows": sum(file["rows"] for file in files),
            "bytes": sum(file["bytes"] for file in files),
            "users": manifest["users"],
            "scored_users": manifest["scored_users"],
            "pairs": manifest["pairs"],
            "scores": store.uri(f"{folder}/scores"),
            "removed_runs": removed,
        }
    return summary


def switch_back(config: Config, store: Store) -> dict[str, Any]:
    """Do `rollback` as a job; return what readers follow now."""
    with stage("rollback") as summary:
        summary |= {"current": rollback(store)["run_id"]}
    return summary


def rollback(store: Store) -> dict[str, Any]:
    """Switch current.json to the newest publication older than the current one, and return it.

    Raises:
        UserError: there is none, or another publication came in between.
    """
    before, current = read_pointer(store)
    runs = [run["run_id"] for run in published_runs(store)]
    if current and current["run_id"] in runs:
        runs = runs[runs.index(current["run_id"]) + 1 :]
    if not runs:
        where, mend = store.uri(CURRENT), "publish another run"
        raise UserError(explain(where, "a publication older than it", "none", mend))
    path = f"runs/{runs[0]}/manifest.json"
    digest = hashlib.sha256(store.read_bytes(path)).hexdigest()
    older = {"run_id": runs[0], "manifest": path, "sha256": digest}
    switch(store, before, older)
    return older


def _published(
    store: Store, folder: str, plan: dict[str, Any], current: dict[str, Any] | None
) -> tuple[dict[str, Any] | None, bytes]:
    """Return the manifest if this very plan is what readers follow already."""
    path = f"{folder}/manifest.json"
    if not current or current["manifest"] != path:
        return None, b""
    try:
        data = store.read_bytes(path)
    except MissingObject:
        return None, b""
    manifest = json.loads(data)
    same = hashlib.sha256(data).hexdigest() == current.get("sha256")
    if not same or manifest["plan_digest"] != plan["digest"]:
        return None, b""
    return manifest, data


def _write_manifest(
    store: Store, folder: str, plan: dict[str, Any]
) -> tuple[dict[str, Any], bytes]:
    """Verify all files of a run and write its manifest; one that says the same already is kept."""
    verified = verify_run(store, folder, plan)
    manifest: dict[str, Any] = {
        "run_id": plan["run_id"],
        "plan_digest": plan["digest"],
        "model": plan["model"],
        "model_sha256": plan["model_sha256"],
        "prepared": plan["prepared"],
        "scores": plan.get("scores"),
        "created": dt.datetime.now(dt.UTC).isoformat(),
        "domains": plan["domains"],
        "buckets": plan["buckets"],
        "users": verified.users,
        "pairs": sum(file["rows"] for file in verified.files),
        "files": verified.files,
        "defaults": verified.defaults,
        "scored_users": verified.scored_users,
    }
    # What an incremental night stands on; whether lists have reasons.
    manifest |= {name: plan[name] for name in ("full", "previous", "explain") if name in plan}
    path = f"{folder}/manifest.json"
    if store.exists(path):
        written = store.read_json(path)
        if {**written, "created": ""} == {**manifest, "created": ""}:
            return written, store.read_bytes(path)
    store.write_json(path, manifest)
    return manifest, store.read_bytes(path)


def _read_plan(store: Store, folder: str) -> dict[str, Any]:
    path = f"{folder}/plan.json"
    plan = read_record(store, path, "run score first")
    missing = PLANNED - set(plan)
    if missing:
        mend = "delete it and run score again"
        raise CrossrecError(explain(store.uri(path), f"keys {sorted(missing)}", "none", mend))
    return dict(plan)
