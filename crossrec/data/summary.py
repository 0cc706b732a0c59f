"""What prepare tells of its work: summary.json of a prepared folder.

In: the counts that the tasks returned. Out: JSON-ready values.

    summary = summarise(job, footers, items, chunks, buckets)
    summary["events_by_week"]["shop"]["2014-06-02"]     # accepted events of the week of that Monday
"""

import datetime as dt
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from crossrec.data.histories import FORMAT
from crossrec.data.inputs import Footer, Input
from crossrec.data.rejects import DUPLICATE
from crossrec.data.strangers import RETIRED_DOMAIN, UNKNOWN_DOMAIN, add_up, retired_events
from crossrec.data.tasks import BucketCounts, CatalogueCounts, ChunkCounts, Job
from crossrec.runlog import log

MOST_TOLD = 3
"""Domains that the catalogue lacks, in the log."""

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def reasons_of(job: Job, table: str, chunks: Sequence[ChunkCounts]) -> Counter[str]:
    """Return the rejected rows of a table by reason; events of retired domains have their own."""
    total = sum((chunk.reasons for chunk in chunks if chunk.table == table), Counter[str]())
    as_of = as_of_us(job, chunks)
    if table == "events" and as_of is not None:
        retired = retired_events(add_up(chunk.strangers for chunk in chunks), as_of)
        # Adding leaves out what is 0.
        total += Counter({RETIRED_DOMAIN: retired, UNKNOWN_DOMAIN: -retired})
    return total


def as_of_us(job: Job, chunks: Sequence[ChunkCounts]) -> int | None:
    """Return `data.as_of`, else the newest accepted event; None where there is neither."""
    if job.limits.as_of_us is not None:
        return job.limits.as_of_us
    newest = (chunk.newest_us for chunk in chunks if chunk.newest_us is not None)
    return max(newest, default=None)


def tell_strangers(job: Job, chunks: Sequence[ChunkCounts]) -> None:
    """Name the domains that the catalogue lacks though their events still come in."""
    as_of = as_of_us(job, chunks)
    found = add_up(chunk.strangers for chunk in chunks)
    lost = [name for name in found if as_of is not None and not found[name].is_retired(as_of)]
    for name in lost[:MOST_TOLD]:
        said = "prepare: data.items has nothing of the domain %r, which %s events name, the last %s"
        log.warning(said, name, f"{found[name].events:,}", _said(found[name].newest_us))


def summarise(
    job: Job,
    footers: Mapping[str, Sequence[Footer]],
    items: CatalogueCounts,
    chunks: Sequence[ChunkCounts],
    buckets: Sequence[BucketCounts],
) -> dict[str, Any]:
    """Return all of the summary but the digest."""
    reasons = {name: reasons_of(job, name, chunks) for name in job.inputs}
    reasons["items"] = items.reasons
    duplicates = sum(bucket.duplicates for bucket in buckets)
    if duplicates:
        reasons["events"][DUPLICATE] = duplicates
    as_of = as_of_us(job, chunks)
    assert as_of is not None, "there is an accepted event"
    inputs = [entry for name in job.inputs for entry in _files(job.inputs[name], footers[name])]
    return {
        "format": FORMAT,
        "as_of": _said(as_of),
        "as_of_us": as_of,
        "users": sum(bucket.users for bucket in buckets),
        "users_without_accepted_events": sum(bucket.unheard for bucket in buckets),
        "events": sum(chunk.accepted for chunk in chunks) - duplicates,
        "items": int(items.starts[-1]),
        "buckets": job.buckets,
        "ignored_after_as_of": sum(chunk.ignored for chunk in chunks),
        "forgotten_rows": sum(chunk.forgotten for chunk in chunks),
        "rejects": {name: dict(sorted(counts.items())) for name, counts in reasons.items()},
        "inputs": inputs,
        "domains": _domains(items, buckets),
        "events_by_week": _weeks(items.domains, buckets),
    }


def _said(moment_us: int) -> str:
    return (EPOCH + dt.timedelta(microseconds=moment_us)).isoformat()


def _files(source: Input, footers: Sequence[Footer]) -> list[dict[str, Any]]:
    return [
        {
            "table": source.table,
            "path": file.uri,
            "bytes": file.bytes,
            "version": file.version,
            "rows": footer.rows,
        }
        for file, footer in zip(source.files, footers, strict=True)
    ]


def _domains(items: CatalogueCounts, buckets: Sequence[BucketCounts]) -> list[dict[str, Any]]:
    events = np.sum([bucket.domain_events for bucket in buckets], axis=0).tolist()
    users = np.sum([bucket.domain_users for bucket in buckets], axis=0).tolist()
    ranges = itertools.pairwise(items.starts.tolist())
    return [
        {"name": name, "start": start, "stop": stop, "events": events[i], "users": users[i]}
        for i, (name, (start, stop)) in enumerate(zip(items.domains, ranges, strict=True))
    ]


def _weeks(domains: Sequence[str], buckets: Sequence[BucketCounts]) -> dict[str, dict[str, int]]:
    weeks: dict[str, Counter[str]] = {name: Counter() for name in domains}
    for bucket in buckets:
        for domain, monday, events in bucket.weeks.tolist():
            day = (EPOCH + dt.timedelta(days=monday)).date().isoformat()
            weeks[domains[domain]][day] += events
    return {name: dict(sorted(counts.items())) for name, counts in weeks.items()}
