"""Verification: every file of a run read back and held against its record and its input.

In: runs/<run_id>/ with done/*.json, scores/ and defaults.parquet, and the prepared folder.
Out: what the manifest says of the files, or the first thing that is not as recorded.

    verified = verify_run(store, "runs/2014-06-08", plan)
    verified.files[0]    # {"path", "domain", "rows", "bytes", "sha256"}

A domain is checked after the other, because each takes an index of its items; its files at once, as
many as memory allows.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crossrec import schema
from crossrec.data.candidates import Candidates, read_candidates
from crossrec.data.editors import Edits, read_edits
from crossrec.data.histories import (
    DomainRange,
    Prepared,
    catalogue_path,
    histories_path,
    open_prepared,
)
from crossrec.data.traits import with_traits
from crossrec.errors import CrossrecError, explain
from crossrec.runlog import log
from crossrec.storage import Store
from crossrec.storage_errors import MissingObject
from crossrec.verify_because import Reasons, check_because, read_keys
from crossrec.verify_lists import (
    BATCH_BYTES,
    Allowed,
    BucketUsers,
    ItemIndex,
    WrongLists,
    bucket_users,
    check_batch,
    check_lists,
)
from crossrec.verify_pins import check_pins
from crossrec.verify_records import RERUN, files_of_bucket, read_record

THREADS = 16
"""Files checked at once: they wait for storage more than they compute."""

BYTES_IN_FLIGHT = 1024 * 2**20
"""The most that the files under check may take together, unless a single one takes more."""

EVENT_BYTES = 40
"""What an event of a bucket takes while its users and what they have seen are made."""

DEFAULTS_AGAIN = "delete {path} and run score again"

RECORDED = ("path", "domain", "bucket", "rows", "bytes", "sha256")
"""What the manifest says of a file."""


@dataclass(frozen=True)
class Verified:
    """A run that is whole.

    scored_users: those whose lists were not taken over. files: of RECORDED, sorted by path.
    defaults: the same of defaults.parquet, without domain.
    """

    users: int
    scored_users: int
    files: list[dict[str, Any]]
    defaults: dict[str, Any]


def verify_run(store: Store, folder: str, plan: dict[str, Any]) -> Verified:
    """Check all files of a run; return what the manifest says of them.

    Raises:
        CrossrecError: a file or record is missing, not as recorded, or says what it must not.
    """
    prepared = open_prepared(store, plan["prepared"])
    ranges = {domain.name: domain for domain in prepared.domains}
    if prepared.buckets != plan["buckets"] or not set(plan["domains"]) <= set(ranges):
        expected = f"buckets and domains of {plan['prepared']}"
        mend = "give a new run_id"
        raise CrossrecError(explain(store.uri(f"{folder}/plan.json"), expected, "others", mend))
    records = [f"{folder}/done/{schema.bucket_name(n)}.json" for n in range(plan["buckets"])]
    with ThreadPoolExecutor(THREADS) as pool:
        buckets = list(pool.map(lambda path: read_record(store, path, "run score again"), records))
    files = [
        file
        for bucket, (record, done) in enumerate(zip(records, buckets, strict=True))
        for file in files_of_bucket(store, (folder, record), plan, bucket, done)
    ]
    reasons = None
    if plan.get("explain"):
        reasons = Reasons(read_keys(store, prepared), plan["explain"], plan["top_k"])
    defaults = _read_defaults(store, f"{folder}/defaults.parquet", plan["domains"])
    for domain in plan["domains"]:
        candidates = _candidates(store, f"runs/{plan.get('full', plan['run_id'])}", ranges[domain])
        traits = None if candidates.requires is None else f"{folder}/traits"
        allowed = _allowed(store, prepared, ranges[domain], candidates, plan["top_k"])
        check = _Check(store, prepared, ranges[domain], allowed, reasons, traits)
        if plan.get("rules"):
            folder_of_rules = f"runs/{plan.get('full', plan['run_id'])}/candidates"
            edits = read_edits(store, folder_of_rules, domain)
            check = replace(check, pinned=_pinned(edits, allowed))
        _check_default(check, defaults)
        check_files(check, [file for file in files if file["domain"] == domain])
        log.info("publish: verified %r", domain)
    files.sort(key=lambda file: file["path"])
    return Verified(
        sum(done["users"] for done in buckets),
        sum(done.get("scored_users", done["users"]) for done in buckets),
        [{key: file[key] for key in RECORDED} for file in files],
        defaults.record,
    )


def _candidates(store: Store, folder: str, domain: DomainRange) -> Candidates:
    """Return which items of a domain the run's rules let through."""
    path = f"{folder}/candidates"
    mend = f"delete {path} and run score again"
    try:
        found = read_candidates(store, path, domain.name)
    except MissingObject as error:
        raise CrossrecError(
            explain(store.uri(path), "all of its files", str(error), mend)
        ) from error
    items = domain.stop - domain.start
    if len(found.allowed) != items:
        expected = f"one row for each of the {items} items of {domain.name!r}"
        raise CrossrecError(explain(store.uri(path), expected, f"{len(found.allowed)}", mend))
    return found


def _allowed(
    store: Store, prepared: Prepared, domain: DomainRange, candidates: Candidates, top_k: int
) -> Allowed:
    ids = store.read_parquet(catalogue_path(prepared.folder, domain.name), [schema.ITEM_ID])
    return Allowed(ItemIndex(ids[schema.ITEM_ID]), candidates, top_k)


def _pinned(edits: Edits | None, allowed: Allowed) -> np.ndarray | None:
    """Return the rows that lists of a domain must begin with; None where pins may give way."""
    # A list holds no more of one brand than its rule says, pinned or not.
    if edits is None or allowed.candidates.groups:
        return None
    rows: np.ndarray = edits.pinned[allowed.candidates.allowed[edits.pinned]]
    return rows


@dataclass(frozen=True)
class _Check:
    """What the files of one domain are held against; traits: folder of those of users."""

    store: Store
    prepared: Prepared
    domain: DomainRange
    allowed: Allowed
    reasons: Reasons | None
    traits: str | None
    pinned: np.ndarray | None = None

    def check_lists(self, parquet: pq.ParquetFile, bucket: int) -> None:
        """Hold the lists of a bucket against who is in it and what they have had."""
        columns = [schema.USER_ID, "rows"]
        histories = self.store.read_parquet(histories_path(self.prepared.folder, bucket), columns)
        histories = with_traits(self.store, self.traits, bucket, histories)
        users = bucket_users(histories, self.domain.start, self.domain.stop)
        check_lists(parquet, users, self.allowed)
        if self.pinned is not None:
            check_pins(parquet, users, self.allowed, self.pinned)
        if self.reasons is not None:
            check_because(parquet, histories, self.reasons)


def check_files(check: _Check, files: Sequence[dict[str, Any]]) -> None:
    """Check files of a domain, as many at once as memory allows; raise the first failure."""
    largest = max((file["bytes"] for file in files), default=0)
    events = check.prepared.events // check.prepared.buckets
    threads = BYTES_IN_FLIGHT // (largest + BATCH_BYTES + EVENT_BYTES * events)
    with ThreadPoolExecutor(min(THREADS, max(1, threads))) as pool:
        # list() raises the first failure; the rest of the queue is not started.
        try:
            list(pool.map(lambda file: _verify(check, file), files))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _verify(check: _Check, file: dict[str, Any]) -> None:
    """Read a file and hold it against its record and against the users and items of the input."""
    store, where = check.store, check.store.uri(file["path"])
    mend = RERUN.format(record=file["record"])
    try:
        data = store.read_bytes(file["path"])
    except MissingObject as error:
        raise CrossrecError(explain(where, "a scores file", "none", mend)) from error
    found = (len(data), hashlib.sha256(data).hexdigest())
    if found != (file["bytes"], file["sha256"]):
        expected = f"{file['bytes']} bytes with sha256 {file['sha256']}"
        raise CrossrecError(explain(where, expected, f"{found[0]} with {found[1]}", mend))
    reasons = 0 if check.reasons is None else check.reasons.most
    parquet = _open_parquet(where, data, schema.scores_schema(reasons), mend)
    rows = parquet.metadata.num_rows
    if rows != file["rows"]:
        raise CrossrecError(explain(where, f"{file['rows']} rows", str(rows), mend))
    try:
        check.check_lists(parquet, file["bucket"])
    except (WrongLists, pa.ArrowException, OSError) as error:
        raise _refusal(where, error, mend) from error


def _refusal(where: str, error: Exception, mend: str) -> CrossrecError:
    if isinstance(error, WrongLists):
        return CrossrecError(explain(where, error.expected, error.found, mend))
    return CrossrecError(explain(where, "pages that can be read", str(error), mend))


def _open_parquet(where: str, data: bytes, expected: pa.Schema, mend: str) -> pq.ParquetFile:
    """Return a Parquet file that has the columns of a schema, in its order."""
    try:
        parquet = pq.ParquetFile(pa.BufferReader(data))
    except pa.ArrowException as error:
        raise CrossrecError(explain(where, "a Parquet file", str(error), mend)) from error
    columns = [(field.name, field.type) for field in parquet.schema_arrow]
    wanted = [(field.name, field.type) for field in expected]
    if columns != wanted:
        raise CrossrecError(explain(where, f"columns {_said(wanted)}", _said(columns), mend))
    return parquet


def _said(columns: list[tuple[str, pa.DataType]]) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in columns)


@dataclass(frozen=True)
class _Defaults:
    record: dict[str, Any]
    table: pa.Table


def _read_defaults(store: Store, path: str, domains: Sequence[str]) -> _Defaults:
    """Return the lists for unknown users and their record; every domain must have one."""
    where, mend = store.uri(path), DEFAULTS_AGAIN.format(path=path)
    try:
        data = store.read_bytes(path)
    except MissingObject as error:
        raise CrossrecError(explain(where, "a file", "none", "run score again")) from error
    try:
        table = _open_parquet(where, data, schema.DEFAULTS, mend).read()
    except (pa.ArrowException, OSError) as error:
        raise _refusal(where, error, mend) from error
    found = table[schema.DOMAIN].to_pylist()
    if sorted(found) != sorted(domains):
        expected = f"one row of each of the domains {sorted(domains)}"
        raise CrossrecError(explain(where, expected, str(sorted(found)), mend))
    digest = hashlib.sha256(data).hexdigest()
    record = {"path": path, "rows": len(table), "bytes": len(data), "sha256": digest}
    return _Defaults(record, table.combine_chunks())


def _check_default(check: _Check, defaults: _Defaults) -> None:
    """Check the list that a domain has for unknown users."""
    place = defaults.table[schema.DOMAIN].to_pylist().index(check.domain.name)
    (row,) = defaults.table.slice(place, 1).to_batches()
    nobody = BucketUsers(row.column(0), np.zeros(2, np.int64), np.zeros(0, np.int64))
    try:
        check_batch(row, nobody, check.allowed)
    except WrongLists as error:
        path = defaults.record["path"]
        mend = DEFAULTS_AGAIN.format(path=path)
        raise _refusal(check.store.uri(path), error, mend) from error
