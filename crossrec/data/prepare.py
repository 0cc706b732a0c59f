"""Stage 1, prepare: from Parquet of events and items to checked, bucketed, time-ordered histories.

In: `data.events`, `data.items`, `data.users`, `data.forget`, `data.relations`. Out: a folder
prepared/<digest>/ of the store, which ends with summary.json; a later run on the same input and
settings finds it and reuses it.

    summary = prepare(config, Store(config.storage.root, config.storage.options))

Timestamps are kept in whole microseconds. The wall clock that decides what lies in the future is
that of the first run on an input. Which files a run reads, its first prepare decides (`pins`).
"""

import datetime as dt
import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from crossrec.config import Config
from crossrec.data import images, tasks
from crossrec.data.columns import check_columns, check_values, read_all_footers, wanted_values
from crossrec.data.events import UNKNOWN_ITEM, TimeLimits
from crossrec.data.forget import read_forgotten
from crossrec.data.histories import FORMAT, SUMMARY, open_prepared
from crossrec.data.inputs import CHUNK_ROWS, Footer, Input, plan_chunks
from crossrec.data.pins import Pins, pin_inputs, unpin_inputs
from crossrec.data.rejects import Origins, bad_share, check_share
from crossrec.data.relations import relate
from crossrec.data.strangers import UNKNOWN_DOMAIN
from crossrec.data.summary import EPOCH, reasons_of, summarise, tell_strangers
from crossrec.errors import ConfigError, InputError, explain
from crossrec.increment import Increment, find_increment
from crossrec.runlog import log, stage
from crossrec.schema import US_PER_DAY
from crossrec.storage import Store

RECORD = "prepare.json"
ROWS_PER_BUCKET = 250_000
"""An actor that scored buckets of 800,000 held 1 GB beside model and items."""
MIN_BUCKETS, MAX_BUCKETS = 32, 100_000


def prepare(config: Config, store: Store) -> dict[str, Any]:
    """Run the stage on an initialised Ray and return its summary.

    Raises:
        ConfigError: the run began with other settings.
        InputError: the input cannot be used, is not what the run began with, or too much of it was
            rejected; the rejected rows lie in runs/<run_id>/rejects/.
        StorageError: the input or the store cannot be reached.
    """
    with stage("prepare") as facts:
        increment = find_increment(config, store)
        pins = pin_inputs(config, store)
        folder = f"prepared/{input_digest(config, pins.inputs, increment)}"
        try:
            summary = _find_or_prepare(config, store, pins, folder, increment)
        except (ConfigError, InputError):
            store.delete(f"{folder}/pieces")
            if not store.exists(f"runs/{config.run_id}/{RECORD}"):
                unpin_inputs(store, config.run_id)
            raise
        # Of a folder that is reused too: the job that made it may have been killed before.
        store.delete(f"{folder}/pieces")
        rows = sum(entry["rows"] for entry in summary["inputs"])
        counts = ("users", "events", "items", "buckets")
        facts |= {"rows": rows, **{name: summary[name] for name in counts}}
        facts["rejected"] = sum(sum(table.values()) for table in summary["rejects"].values())
        shares = _bad_shares(config, summary)
        facts["rejected_share"] = round(max(shares.values()), 6)
        facts["folder"] = store.uri(folder)
    result = {"prepared": folder, "seconds": facts["seconds"], **summary}
    store.write_json(f"runs/{config.run_id}/{RECORD}", result)
    return result


def _find_or_prepare(
    config: Config, store: Store, pins: Pins, folder: str, increment: Increment | None
) -> dict[str, Any]:
    if not store.exists(f"{folder}/{SUMMARY}"):
        return _prepare(config, store, pins, folder, increment)
    log.info("prepare: the input is that of %s", store.uri(folder))
    summary: dict[str, Any] = store.read_json(f"{folder}/{SUMMARY}")
    _copy_rejects(store, folder, config.run_id)
    _check_shares(config, store, summary)
    return summary


def input_digest(
    config: Config, inputs: Mapping[str, Input], increment: Increment | None = None
) -> str:
    """Return 16 hex digits that change with the input's files and the settings that matter here."""
    files = {
        name: [[file.uri, file.bytes, file.version] for file in source.files]
        for name, source in inputs.items()
    }
    as_of = None if config.data.as_of is None else to_microseconds(config.data.as_of)
    data = config.data
    settings: list[Any] = [FORMAT, data.text_columns, as_of, data.buckets, data.available_from]
    settings += [wanted_values(config), config.model.image_backbone is not None]
    settings += [increment.plan["prepared"]] if increment else []
    text = json.dumps([files, settings], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def to_microseconds(moment: dt.datetime) -> int:
    """Return microseconds since 1970 UTC; a naive moment is UTC.

    >>> to_microseconds(dt.datetime(1970, 1, 2))
    86400000000
    """
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    return (moment - EPOCH) // dt.timedelta(microseconds=1)


def _prepare(
    config: Config, store: Store, pins: Pins, folder: str, increment: Increment | None
) -> dict[str, Any]:
    inputs = pins.inputs
    footers = read_all_footers(config, inputs)
    columns = check_columns(config, inputs, footers)
    for left in ("rejects", "images"):
        store.delete(f"{folder}/{left}")
    as_of = None if config.data.as_of is None else to_microseconds(config.data.as_of)
    job = tasks.Job(
        store,
        folder,
        increment.plan["buckets"] if increment else _buckets(config, footers["events"]),
        inputs,
        {name: Origins.of(source, footers[name]) for name, source in inputs.items()},
        TimeLimits(to_microseconds(pins.now) + US_PER_DAY, as_of),
        config.data.available_from,
        check_values(config, inputs["events"], footers["events"]),
        config.model.image_backbone is not None and increment is None,
    )
    shared = ray.put(job)
    if increment:
        index, items = _adopt_catalogue(shared, store, increment.plan["prepared"])
    else:
        index, items = _write_catalogue(shared, footers["items"], columns)
        _stop_where_useless(config, job, "items", items.reasons, int(items.starts[-1]))
    forgotten = _forgotten(inputs.get("forget"), footers.get("forget", ()))
    chunks = _split(shared, index, forgotten, footers)
    accepted = sum(chunk.accepted for chunk in chunks)
    tell_strangers(job, chunks)
    _stop_where_useless(config, job, "events", reasons_of(job, "events", chunks), accepted)
    pieces = sorted(piece for chunk in chunks for piece in chunk.pieces)
    found = _group(shared, index, pieces, job.buckets, accepted)
    summary = {"digest": folder.rpartition("/")[2], **summarise(job, footers, items, chunks, found)}
    summary |= relate(shared, index, job, footers, summary["rejects"])
    summary["values"] = list(job.values)
    summary["images"] = _keep_images(shared, job, footers["items"], int(items.starts[-1]))
    store.write_json(f"{folder}/{SUMMARY}", summary)
    _copy_rejects(store, folder, config.run_id)
    return summary


def _buckets(config: Config, footers: Sequence[Footer]) -> int:
    return config.data.buckets or count_buckets(sum(footer.rows for footer in footers))


def count_buckets(rows: int) -> int:
    """Return how many buckets that many events get where the config does not say.

    >>> count_buckets(5_000_000), count_buckets(50_000_001)
    (32, 201)
    """
    return min(max(MIN_BUCKETS, math.ceil(rows / ROWS_PER_BUCKET)), MAX_BUCKETS)


def _write_catalogue(
    job: Any, footers: Sequence[Footer], columns: tuple[list[str], tuple[str, ...]]
) -> tuple[Any, tasks.CatalogueCounts]:
    """Return a reference to the items' index, which the driver never holds, and the counts."""
    chunk = tuple(itertools.chain(*plan_chunks(footers, CHUNK_ROWS)))
    write = ray.remote(num_cpus=1, num_returns=2)(tasks.write_catalogue)
    references: Any = write.remote(job, chunk, *columns)
    with tasks.plain_errors():
        return references[0], ray.get(references[1])


def _adopt_catalogue(job: Any, store: Store, folder: str) -> tuple[Any, tasks.CatalogueCounts]:
    """Do what `_write_catalogue` does with the catalogue of another prepared folder."""
    domains = open_prepared(store, folder).domains
    names = tuple(domain.name for domain in domains)
    starts = np.array([0, *(domain.stop for domain in domains)])
    adopt = ray.remote(num_cpus=1, num_returns=2)(tasks.adopt_catalogue)
    references: Any = adopt.remote(job, folder, names, starts)
    with tasks.plain_errors():
        return references[0], ray.get(references[1])


def _keep_images(
    shared: Any, job: tasks.Job, footers: Sequence[Footer], items: int
) -> dict[str, int] | None:
    if not job.with_images:
        return None
    chunks = enumerate(plan_chunks(footers, images.CHUNK_ROWS))
    calls = [(shared, number, chunk) for number, chunk in chunks]
    counts = list(tasks.run_tasks(images.store_images, calls, "chunks of images"))
    found = images.summarise_images(counts, items)
    log.info("prepare: images %s", ", ".join(f"{name} {n:,}" for name, n in found.items()))
    return found


def _forgotten(source: Input | None, footers: Sequence[Footer]) -> Any:
    """Return a reference to the ids of users who asked to be forgotten."""
    if source is None:
        return ray.put(pa.array([], pa.large_string()))
    segments = tuple(itertools.chain(*plan_chunks(footers, CHUNK_ROWS)))
    return ray.remote(num_cpus=1)(read_forgotten).remote(source, segments)


def _split(
    job: Any, index: Any, forgotten: Any, footers: Mapping[str, Sequence[Footer]]
) -> list[tasks.ChunkCounts]:
    calls = [
        (job, index, forgotten, name, number, chunk)
        for name in ("events", "users")
        for number, chunk in enumerate(plan_chunks(footers.get(name, ()), CHUNK_ROWS))
    ]
    return list(tasks.run_tasks(tasks.split_chunk, calls, "chunks"))


def _group(
    job: Any, index: Any, pieces: list[str], buckets: int, events: int
) -> list[tasks.BucketCounts]:
    # Few small buckets a task save requests; an eighth of all at most leaves work for other CPUs.
    size = max(1, min(buckets * CHUNK_ROWS // events, buckets // 8))
    shared = ray.put(pieces)
    calls = [
        (job, index, shared, range(first, min(first + size, buckets)))
        for first in range(0, buckets, size)
    ]
    return list(itertools.chain(*tasks.run_tasks(tasks.group_buckets, calls, "groups of buckets")))


def _stop_where_useless(
    config: Config, job: tasks.Job, table: str, reasons: Mapping[str, int], accepted: int
) -> None:
    rows = int(job.origins[table].starts[-1])
    limit = config.data.max_reject_share
    reasons = _bad_reasons(config, reasons)
    if accepted and bad_share(reasons, rows) <= limit:
        return
    _copy_rejects(job.store, job.folder, config.run_id)
    kept = job.store.uri(_rejects_of(config.run_id))
    check_share(table, reasons, rows, limit, kept)
    found = f"none among {rows:,} rows"
    if table == "events" and job.limits.as_of_us is not None:
        found += " up to data.as_of"
    expected = f"at least one accepted row of {table}"
    mend = f"see {kept} and check data.{table}"
    raise InputError(explain(f"data.{table}={getattr(config.data, table)}", expected, found, mend))


def _check_shares(config: Config, store: Store, summary: Mapping[str, Any]) -> None:
    kept = store.uri(_rejects_of(config.run_id))
    for table in ("items", "events"):
        rows = sum(entry["rows"] for entry in summary["inputs"] if entry["table"] == table)
        limit = config.data.max_reject_share
        check_share(table, _bad_reasons(config, summary["rejects"][table]), rows, limit, kept)


def _bad_shares(config: Config, summary: Mapping[str, Any]) -> dict[str, float]:
    """Return by table the share of its rows that data.max_reject_share is held against."""
    return {
        table: bad_share(
            _bad_reasons(config, summary["rejects"][table]),
            sum(entry["rows"] for entry in summary["inputs"] if entry["table"] == table),
        )
        for table in ("items", "events")
    }


def _bad_reasons(config: Config, reasons: Mapping[str, int]) -> Mapping[str, int]:
    """Leave out what is no fault of the input: what came after the catalogue of the full night."""
    if config.score.mode == "full":
        return reasons
    newer = (UNKNOWN_ITEM, UNKNOWN_DOMAIN)
    return {reason: count for reason, count in reasons.items() if reason not in newer}


def _rejects_of(run_id: str) -> str:
    return f"runs/{run_id}/rejects"


def _copy_rejects(store: Store, folder: str, run_id: str) -> None:
    store.delete(_rejects_of(run_id))
    for name in store.list(f"{folder}/rejects"):
        data = store.read_bytes(f"{folder}/rejects/{name}")
        store.write_bytes(f"{_rejects_of(run_id)}/{name}", data)
