"""Users who asked to be forgotten, gone at once from all that earlier runs have left.

    summary = purge(config, store)            # jobs/publish.py purge, with data.forget

Later runs never read them (`data.forget`), and older ones go with retention; this does not wait for
it. Prepared histories, rejects, judged lists, the report's users: each file that names one of them
is written again without. A published file of lists is never changed: a new one, named by its own
content, takes its place in record and manifest, readers are switched to that manifest, and the old
file is removed. A run that was not published loses its lists: its rerun makes them again.

What was added up over many users stays: counts of items by day, weights of models, figures.

It can be repeated: what a crash left is done by the same command.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pyarrow as pa

from crossrec.config import Config
from crossrec.current import MARK, read_current, read_pointer, switch
from crossrec.data.forget import find_forgotten, without
from crossrec.data.hashing import buckets_of
from crossrec.evaluate.pipeline import SAMPLE
from crossrec.evaluate.report import render_report
from crossrec.lease import hold
from crossrec.runlog import stage
from crossrec.schema import USER_ID, bucket_name
from crossrec.storage import Store, encode_parquet
from crossrec.storage_errors import MissingObject

PURGING = "manifest-purging.json"

REMADE = ("done", "scores", "baselines", "holdout", "calibration", "steering", "study")
"""Folders of a run that was not published whose lists its rerun makes again; records before what
they name, so that none is left without its files."""

PIECES = ("pieces", "traits/pieces")
"""In a prepared folder and in a run's: users by bucket, while they are at work on and where a job
was killed at that."""

NO_TABLES = (".json", ".html", ".npy", ".safetensors", ".bin", ".md", ".txt")


def purge(config: Config, store: Store) -> dict[str, Any]:
    """Remove the users of `data.forget` from the store; return how many files named one.

    Raises:
        ConfigError: the config names nobody.
        UserError: another job is at work on a run, or publishes meanwhile.
    """
    with stage("purge") as facts:
        forgotten = find_forgotten(config)
        cleaner = _Cleaner(store, forgotten)
        runs = store.list("runs")
        for run in runs:
            is_held = run == config.run_id  # by this job
            with nullcontext() if is_held else hold(store, run, on_lost=lambda: None):
                _clean_run(cleaner, run)
        for folder in store.list("prepared"):
            store.delete(f"prepared/{folder}/{PIECES[0]}")
            cleaner.clean_tables(f"prepared/{folder}")
        referenced = _referenced(store, runs)
        for run in runs:
            cleaner.remove_replaced(run, referenced)
        facts |= {"users": len(forgotten), "runs": len(runs), "files": cleaner.files}
    return dict(facts)


def _referenced(store: Store, runs: list[str]) -> set[str]:
    """Return the files of lists that any record or manifest names."""
    found = set()
    for run in runs:
        folder = f"runs/{run}"
        paths = [f"{folder}/done/{name}" for name in store.list(f"{folder}/done")]
        if store.exists(f"{folder}/manifest.json"):
            paths.append(f"{folder}/manifest.json")
        found |= {file["path"] for path in paths for file in store.read_json(path)["files"]}
    return found


def _is_published(store: Store, run: str) -> bool:
    """Whether a run is a publication, which its manifest says: not where it is half removed."""
    if not store.exists(f"runs/{run}/manifest.json"):
        return False
    current = read_current(store)
    # What readers follow is whole: its removal was given up.
    is_current = current is not None and current["run_id"] == run
    return is_current or not store.exists(f"runs/{run}/{MARK}")


def _clean_run(cleaner: "_Cleaner", run: str) -> None:
    """Clean what a run left."""
    store, folder = cleaner.store, f"runs/{run}"
    store.delete(f"{folder}/{PIECES[1]}")
    if _is_published(store, run):
        cleaner.clean_lists(folder, f"{folder}/manifest.json")
        others = [name for name in store.list(folder) if name not in ("scores", "done")]
    else:
        for name in REMADE:
            store.delete(f"{folder}/{name}")
        others = [name for name in store.list(folder) if name not in REMADE]
    for name in others:
        if not name.endswith(NO_TABLES):
            cleaner.clean_tables(f"{folder}/{name}")
    cleaner.clean_report(folder)


class _Cleaner:
    """Writes files again without some users.

    files: how many named one. replaced: what is said of the file in whose place there is another,
    by the path of the old one.
    """

    def __init__(self, store: Store, forgotten: pa.LargeStringArray) -> None:
        self.store, self.forgotten = store, forgotten
        self.names = set(forgotten.to_pylist())
        self.files = 0
        self.replaced: dict[str, dict[str, Any]] = {}

    def clean_tables(self, folder: str) -> None:
        """Write again, each in its place, the Parquet files below a folder that name a user."""
        for path in _parquet_files(self.store, folder):
            table = self.store.read_parquet(path)
            if USER_ID not in table.column_names:
                continue
            rest = without(table, self.forgotten)
            if len(rest) < len(table):
                self.store.write_parquet(path, rest)
                self.files += 1

    def clean_lists(self, folder: str, manifest: str) -> None:
        """Put new files of lists into a published run's records and manifest."""
        numbers = self._numbers(folder)
        for number in sorted(numbers):
            path = f"{folder}/done/{bucket_name(number)}.json"
            record = self._rewritten(path, numbers, _of_record)
            if record is not None:
                self.store.write_json(path, record)
        said = self._rewritten(manifest, numbers, _of_manifest)
        if said is not None:
            # Until it is in its place, readers follow a copy: what they see is whole at any moment.
            self._follow(manifest, f"{folder}/{PURGING}", said)
            self.store.write_json(manifest, said)
        if self.store.exists(f"{folder}/{PURGING}"):
            self._follow(f"{folder}/{PURGING}", manifest, None)
            self.store.delete(f"{folder}/{PURGING}")

    def _follow(self, old: str, new: str, said: dict[str, Any] | None) -> None:
        """Let readers of one manifest follow another, which is written first where `said` has it.

        Nothing where they follow neither.
        """
        before, current = read_pointer(self.store)
        if current is None or current["manifest"] != old:
            return
        if said is not None:
            self.store.write_json(new, said)
        digest = hashlib.sha256(self.store.read_bytes(new)).hexdigest()
        switch(self.store, before, {**current, "manifest": new, "sha256": digest})

    def _rewritten(
        self, path: str, numbers: set[int], count: Callable[[dict[str, Any]], dict[str, Any]]
    ) -> dict[str, Any] | None:
        """Return what a record or manifest is to say; None where none of its files names a user."""
        said: dict[str, Any] = self.store.read_json(path)
        files = [
            self._replace(file) if file.get("bucket", said.get("bucket")) in numbers else file
            for file in said["files"]
        ]
        if files == said["files"]:
            return None
        return said | {"files": files} | count(said | {"files": files})

    def _replace(self, file: dict[str, Any]) -> dict[str, Any]:
        """Return what a record says of the file without the users."""
        path = file["path"]
        if path not in self.replaced:
            table = self.store.read_parquet(path)
            rest = without(table, self.forgotten)
            if len(rest) == len(table):
                return file
            data = encode_parquet(rest)
            digest = hashlib.sha256(data).hexdigest()
            head = path.rsplit("/", 1)[0]
            name = path.rsplit("/", 1)[1].split(".")[0]
            new = f"{head}/{name}.{digest[:12]}.parquet"
            self.store.write_bytes(new, data)
            self.files += 1
            self.replaced[path] = {
                "path": new,
                "rows": rest.num_rows,
                "bytes": len(data),
                "sha256": digest,
            }
        return file | self.replaced[path]

    def remove_replaced(self, run: str, referenced: set[str]) -> None:
        """Remove what nothing names any more of the users' buckets, also what a crash left."""
        folder = f"runs/{run}"
        if not self.store.exists(f"{folder}/manifest.json"):
            return
        names = {bucket_name(number) for number in self._numbers(folder)}
        for domain in self.store.list(f"{folder}/scores"):
            for name in self.store.list(f"{folder}/scores/{domain}"):
                path = f"{folder}/scores/{domain}/{name}"
                if name.split(".")[0] in names and path not in referenced:
                    self.store.delete(path)

    def _numbers(self, folder: str) -> set[int]:
        """Return the buckets of a run in which the users are."""
        plan = self.store.read_json(f"{folder}/plan.json")
        return set(buckets_of(self.forgotten, plan["buckets"]).tolist())

    def clean_report(self, folder: str) -> None:
        """Take users out of the report's sample, and render the page again."""
        try:
            sample = self.store.read_json(f"{folder}/{SAMPLE}")
            metrics = self.store.read_json(f"{folder}/metrics.json")
        except MissingObject:
            return
        rest = [user for user in sample if user[USER_ID] not in self.names]
        if len(rest) < len(sample):
            # The sample last: as long as it names a user, this is not done.
            page = render_report(metrics, rest)
            self.store.write_bytes(f"{folder}/report.html", page.encode())
            self.store.write_json(f"{folder}/{SAMPLE}", rest)
            self.files += 2


def _of_record(said: dict[str, Any]) -> dict[str, Any]:
    """Return the count of users that a bucket's record has: each has a list in every file."""
    return {"users": min((file["rows"] for file in said["files"]), default=said["users"])}


def _of_manifest(said: dict[str, Any]) -> dict[str, Any]:
    pairs = sum(file["rows"] for file in said["files"])
    return {"pairs": pairs, "users": pairs // len(said["domains"])}


def _parquet_files(store: Store, folder: str) -> Iterator[str]:
    """Yield the Parquet files below a folder."""
    for name in store.list(folder):
        path = f"{folder}/{name}"
        if name.endswith(".parquet"):
            yield path
        elif not name.endswith(NO_TABLES):
            yield from _parquet_files(store, path)
