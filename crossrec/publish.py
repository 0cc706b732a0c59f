"""Publication: check every file of a run against its record, write the manifest, switch readers.

In: the store, and runs/<run_id>/ with plan.json, done/*.json, scores/ and defaults.parquet.
Out: runs/<run_id>/manifest.json and, last of all, current.json, the one file that readers follow.

    summary = publish(config, Store(config.storage.root, config.storage.options))
    read_current(store)    # {"run_id": "2014-06-08", "manifest": "runs/...", "sha256": "..."}
    rollback(store)        # readers get the publication before that one

A crash at any moment leaves the old publication or the new one, whole; a rerun does what is left.
"""

import datetime as dt
import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from crossrec import schema
from crossrec.config import Config
from crossrec.errors import CrossrecError, UserError, explain
from crossrec.lease import confirm
from crossrec.retention import MARK, published_runs, remove_old_runs
from crossrec.runlog import stage
from crossrec.storage import Store
from crossrec.storage_errors import MissingObject

CURRENT = "current.json"

THREADS = 16
"""Files checked at once: they wait for storage more than they compute."""

BYTES_IN_FLIGHT = 512 * 2**20
"""The most that the files under check may have together, unless a single one is larger."""

RERUN = "delete the record {record} and run score again"


def publish(config: Config, store: Store) -> dict[str, Any]:
    """Verify the run, write its manifest, switch current.json to it, and remove old runs.

    Raises:
        CrossrecError: a file or record is missing or not as recorded, or another job has taken the
            run; current.json is untouched.
    """
    with stage("publish") as summary:
        folder = f"runs/{config.run_id}"
        plan = _read_plan(store, folder)
        current = read_current(store)
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
            store.write_json(CURRENT, pointer)
        removed = remove_old_runs(store, config.run_id, config.publish.keep_runs)
        files = manifest["files"]
        summary |= {
            "run_id": config.run_id,
            "manifest": store.uri(pointer["manifest"]),
            "files": len(files),
            "rows": sum(file["rows"] for file in files),
            "bytes": sum(file["bytes"] for file in files),
            "users": manifest["users"],
            "pairs": manifest["pairs"],
            "scores": store.uri(f"{folder}/scores"),
            "removed_runs": removed,
        }
    return summary


def read_current(store: Store) -> dict[str, Any] | None:
    """Return what readers follow: run_id, manifest and its sha256; None before any publication."""
    try:
        current = store.read_json(CURRENT)
    except MissingObject:
        return None
    if not isinstance(current, dict) or not {"run_id", "manifest"} <= set(current):
        mend = "remove it and run publish again"
        raise CrossrecError(explain(store.uri(CURRENT), "run_id and manifest", "neither", mend))
    return current


def rollback(store: Store) -> dict[str, Any]:
    """Switch current.json to the newest publication older than the current one, and return it.

    Raises:
        UserError: there is none.
    """
    current = read_current(store)
    runs = [run["run_id"] for run in published_runs(store)]
    if current and current["run_id"] in runs:
        runs = runs[runs.index(current["run_id"]) + 1 :]
    if not runs:
        where, mend = store.uri(CURRENT), "publish another run"
        raise UserError(explain(where, "a publication older than it", "none", mend))
    path = f"runs/{runs[0]}/manifest.json"
    digest = hashlib.sha256(store.read_bytes(path)).hexdigest()
    older = {"run_id": runs[0], "manifest": path, "sha256": digest}
    store.write_json(CURRENT, older)
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
    names = [schema.bucket_name(bucket) for bucket in range(plan["buckets"])]
    records = [f"{folder}/done/{name}.json" for name in names]
    with ThreadPoolExecutor(THREADS) as pool:
        buckets = list(pool.map(lambda record: _read(store, record, "run score again"), records))
    files = [
        file
        for bucket, (record, done) in enumerate(zip(records, buckets, strict=True))
        for file in _files_of_bucket(store, (folder, record), plan["domains"], bucket, done)
    ]
    largest = max((file["bytes"] for file in files), default=1)
    threads = min(THREADS, max(1, BYTES_IN_FLIGHT // max(1, largest)))
    with ThreadPoolExecutor(threads) as pool:
        # list() raises the first failure; the rest of the queue is not started.
        try:
            list(pool.map(lambda file: _verify(store, file), files))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    files.sort(key=lambda file: file["path"])
    kept = ("path", "domain", "rows", "bytes", "sha256")
    manifest = {
        "run_id": plan["run_id"],
        "plan_digest": plan["digest"],
        "model": plan["model"],
        "model_sha256": plan["model_sha256"],
        "prepared": plan["prepared"],
        "scores": plan.get("scores"),
        "created": dt.datetime.now(dt.UTC).isoformat(),
        "domains": plan["domains"],
        "users": sum(done["users"] for done in buckets),
        "pairs": sum(file["rows"] for file in files),
        "files": [{key: file[key] for key in kept} for file in files],
        "defaults": _verify_defaults(store, f"{folder}/defaults.parquet", plan["domains"]),
    }
    path = f"{folder}/manifest.json"
    if store.exists(path):
        written = store.read_json(path)
        if {**written, "created": ""} == {**manifest, "created": ""}:
            return written, store.read_bytes(path)
    store.write_json(path, manifest)
    return manifest, store.read_bytes(path)


def _files_of_bucket(
    store: Store, where: tuple[str, str], domains: Sequence[str], bucket: int, done: Any
) -> list[dict[str, Any]]:
    """Return the files that a completion record names, each with its domain and its record.

    Args:
        store: where the record lies; for messages.
        where: folder of the run, path of the record.
        domains: those of the plan; the record must have one file of each.
        bucket: number that the record must have.
        done: what the record says.
    """
    folder, record = where
    mend = RERUN.format(record=record)
    try:
        found = (int(done["bucket"]), int(done["users"]))
        paths = {str(file["path"]): file for file in done["files"]}
        facts = [
            (int(file["rows"]), int(file["bytes"]), str(file["sha256"])) for file in done["files"]
        ]
    except (TypeError, KeyError, ValueError) as error:
        expected = "bucket, users, and files with path, rows, bytes, sha256"
        raise CrossrecError(explain(store.uri(record), expected, repr(error), mend)) from error
    if found[0] != bucket:
        raise CrossrecError(explain(store.uri(record), f"bucket {bucket}", str(found[0]), mend))
    domain_of = {f"{folder}/scores/{schema.domain_folder(domain)}": domain for domain in domains}
    of_paths = sorted(domain_of.get(path.rpartition("/")[0], f"none: {path}") for path in paths)
    if of_paths != sorted(domains):
        expected = f"one file of each of the domains {sorted(domains)}"
        raise CrossrecError(explain(store.uri(record), expected, str(of_paths), mend))
    if any(rows != found[1] for rows, *_ in facts):
        expected = f"{found[1]} rows, one a user, in every file"
        raise CrossrecError(explain(store.uri(record), expected, str([f[0] for f in facts]), mend))
    return [
        {**file, "domain": domain_of[path.rpartition("/")[0]], "record": record}
        for path, file in paths.items()
    ]


def _verify(store: Store, file: dict[str, Any]) -> None:
    """Read a file and compare it with its record: bytes, sha256, schema, rows."""
    where, mend = store.uri(file["path"]), RERUN.format(record=file["record"])
    try:
        data = store.read_bytes(file["path"])
    except MissingObject as error:
        raise CrossrecError(explain(where, "a scores file", "none", mend)) from error
    found = (len(data), hashlib.sha256(data).hexdigest())
    if found != (file["bytes"], file["sha256"]):
        expected = f"{file['bytes']} bytes with sha256 {file['sha256']}"
        raise CrossrecError(explain(where, expected, f"{found[0]} with {found[1]}", mend))
    rows = _rows(where, data, schema.SCORES, mend)
    if rows != file["rows"]:
        raise CrossrecError(explain(where, f"{file['rows']} rows", str(rows), mend))


def _rows(where: str, data: bytes, expected: pa.Schema, mend: str) -> int:
    """Return the rows of a Parquet file that has the columns of a schema, in its order."""
    try:
        parquet = pq.ParquetFile(pa.BufferReader(data))
    except pa.ArrowException as error:
        raise CrossrecError(explain(where, "a Parquet file", str(error), mend)) from error
    columns = [(field.name, field.type) for field in parquet.schema_arrow]
    wanted = [(field.name, field.type) for field in expected]
    if columns != wanted:
        raise CrossrecError(explain(where, f"columns {_said(wanted)}", _said(columns), mend))
    return int(parquet.metadata.num_rows)


def _said(columns: list[tuple[str, pa.DataType]]) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in columns)


def _verify_defaults(store: Store, path: str, domains: Sequence[str]) -> dict[str, Any]:
    """Return the record of the list for unknown users, after looking that every domain has one."""
    where, mend = store.uri(path), f"delete {path} and run score again"
    try:
        data = store.read_bytes(path)
    except MissingObject as error:
        raise CrossrecError(explain(where, "a file", "none", "run score again")) from error
    rows = _rows(where, data, schema.DEFAULTS, mend)
    found = pq.read_table(pa.BufferReader(data), columns=[schema.DOMAIN])[schema.DOMAIN].to_pylist()
    if sorted(found) != sorted(domains):
        expected = f"one row of each of the domains {sorted(domains)}"
        raise CrossrecError(explain(where, expected, str(sorted(found)), mend))
    return {
        "path": path,
        "rows": rows,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def _read_plan(store: Store, folder: str) -> dict[str, Any]:
    path = f"{folder}/plan.json"
    plan = _read(store, path, "run score first")
    missing = {"run_id", "model", "model_sha256", "prepared", "buckets", "domains", "digest"} - set(
        plan
    )
    if missing:
        mend = "delete it and run score again"
        raise CrossrecError(explain(store.uri(path), f"keys {sorted(missing)}", "none", mend))
    return dict(plan)


def _read(store: Store, path: str, mend: str) -> Any:
    try:
        return store.read_json(path)
    except MissingObject as error:
        raise CrossrecError(explain(store.uri(path), "a record", "none", mend)) from error
