"""The part of the report that shows what data the run saw.

In: the summary of the prepared data and the hold-out's days. Out: a section with events by week,
domains, rejected rows and input files; parts that the summary lacks are left out.

>>> "3 rows were refused" in data_section({"rejects": {"events": {"null item_id": 3}}}, None)
True
"""

from collections.abc import Mapping
from datetime import date
from typing import Any

from crossrec.evaluate.charts import grid
from crossrec.evaluate.curves import weeks
from crossrec.evaluate.markup import Markup, Rows, count, render, share, size, table, tag

MOST_DOMAINS = 12
"""Domains drawn; the tables have all of them."""


def data_section(summary: Mapping[str, Any], holdout_start: str | None) -> Markup:
    """Return events by week, domains, rejects and inputs."""
    parts = [
        _weeks(summary.get("events_by_week") or {}, holdout_start),
        tag(
            "div",
            _domains(summary.get("domains") or []),
            _rejects(summary.get("rejects") or {}, summary.get("inputs") or []),
            class_="tables",
        ),
        _notes(summary),
        _inputs(summary.get("inputs") or []),
    ]
    return render(parts)


def rejected(summary: Mapping[str, Any]) -> int:
    """Return the number of refused rows in all tables.

    >>> rejected({"rejects": {"events": {"null item_id": 3}, "items": {"no domain": 1}}})
    4
    """
    tables = (summary.get("rejects") or {}).values()
    return sum(sum(reasons.values()) for reasons in tables)


def _weeks(by_domain: Mapping[str, Mapping[str, int]], holdout_start: str | None) -> Markup | None:
    """Return a chart for each of the largest domains, over the same weeks."""
    cut = date.fromisoformat(holdout_start[:10]) if holdout_start else None
    totals = {domain: sum(events.values()) for domain, events in by_domain.items() if events}
    if not totals:
        return None
    # The first and last week of all, so that the charts can be read against each other.
    ends = {week: 0 for name in totals for week in (min(by_domain[name]), max(by_domain[name]))}
    ends = dict.fromkeys((min(ends), max(ends)), 0)
    charts = []
    largest = sorted(totals, key=lambda name: -totals[name])[:MOST_DOMAINS]
    for domain in (name for name in totals if name in largest):
        events = {
            date.fromisoformat(week): n for week, n in (ends | dict(by_domain[domain])).items()
        }
        charts.append(weeks(domain, events, cut, note=f"{count(totals[domain])} events"))
    return Markup(tag("h3", "Events by week") + grid(charts))


def _domains(domains: list[Mapping[str, Any]]) -> Markup | None:
    """Return the sizes of the domains."""
    if not domains:
        return None
    rows = [
        [d["name"], count(d["users"]), count(d["stop"] - d["start"]), count(d["events"])]
        for d in domains
    ]
    head = ["domain", ">users", ">items", ">events"]
    return table("Domains", head, [Rows(None, rows)])


def _rejects(rejects: Mapping[str, Mapping[str, int]], inputs: list[Mapping[str, Any]]) -> Markup:
    """Return the refused rows by table and reason, with their share of the table's rows."""
    read: dict[str, int] = {}
    for source in inputs:
        read[source["table"]] = read.get(source["table"], 0) + (source.get("rows") or 0)
    parts = [
        Rows(name, [[reason, count(n), share(n, read.get(name, 0))] for reason, n in by_count])
        for name, reasons in rejects.items()
        if (by_count := sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0])))
    ]
    refused = rejected({"rejects": rejects})
    if not refused:
        return tag("p", "No row of the input was refused.", class_="note")
    caption = f"{count(refused)} row{'s were' if refused > 1 else ' was'} refused"
    return table(caption, ["reason", ">rows", ">share of the table"], parts)


def _notes(summary: Mapping[str, Any]) -> Markup | None:
    """Say what else was left out."""
    notes = []
    if late := summary.get("ignored_after_as_of"):
        notes.append(f"{count(late)} events after {summary.get('as_of', 'the cut')} were ignored.")
    if empty := summary.get("users_without_accepted_events"):
        notes.append(f"{count(empty)} users had refused events only and get no list.")
    return tag("p", " ".join(notes), class_="note") if notes else None


def _inputs(inputs: list[Mapping[str, Any]]) -> Markup | None:
    """Return the files that were read."""
    if not inputs:
        return None
    rows = [
        [source["path"], source["table"], count(source.get("rows") or 0), size(source["bytes"])]
        for source in inputs
    ]
    whole = f"{count(len(rows))} input file{'s' if len(rows) > 1 else ''}"
    listing = table(whole, ["path", "table", ">rows", ">size"], [Rows(None, rows)])
    return tag("details", tag("summary", whole), listing)
