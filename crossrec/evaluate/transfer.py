"""The part of the report that shows what the other domains add to each.

In: `study.transfer` of metrics.json: by domain and by the user's events in it, NDCG@10 of the model
that learned from all domains, of its twin that learned from this one alone, and of the best
popularity. Out: a section; without a study it says how to get one.

>>> "evaluate.study=true" in transfer_section({"systems": {"model": {"all": {
...     "pairs": 9, "ndcg@10": 0.1}}}})
True
"""

from collections.abc import Mapping, Sequence
from typing import Any

from crossrec.evaluate.charts import Bar, Lead, bars, grid, highest, leads, reach_of
from crossrec.evaluate.judged import (
    Interval,
    Metrics,
    by_number,
    depth_of,
    interval_of,
    judged_systems,
    study_of,
)
from crossrec.evaluate.markup import (
    Markup,
    Rows,
    count,
    folded,
    measure,
    none,
    note,
    render,
    table,
    tag,
)
from crossrec.evaluate.verdict import compact, written

MOST_DOMAINS = 9
"""Domains drawn; the table has every one."""

FEW_DOMAINS = 3
"""So many get a sentence each."""

ALL = "all"
TWIN = "this domain alone"

Found = Mapping[str, Mapping[str, Any]]
"""By band: pairs, together, alone, popularity, difference, low, high; bands without pairs left out.
"""


def transfer_section(metrics: Metrics) -> Markup | None:
    """Return what the other domains add, by domain and by the user's events in it."""
    if not judged_systems(metrics):
        return None
    found = _read(study_of(metrics, "transfer") or {})
    if not found:
        return not_measured("what the domains add to each other")
    drawn = sorted(found, key=lambda name: -_pairs(found[name]))[:MOST_DOMAINS]
    by_domain = {name: found[name] for name in found if name in drawn}
    explained = (
        "For each domain a twin of the model learned from this domain alone, under the same "
        "budget. Its lists are judged on the same users as those of the model that learned from "
        f"all domains; the difference in NDCG@{depth_of(metrics)} is what the other domains add."
    )
    return render(
        [
            tag("p", _summary(found)),
            note(explained),
            grid(_leads(by_domain)),
            tag("h3", "Together, alone, and popularity"),
            grid(_levels(by_domain)),
            folded("Exact figures", _exact(found)),
        ]
    )


def not_measured(what: str) -> Markup:
    """Return the line that says how to have something measured."""
    how = tag("code", "evaluate.study=true")
    return none(f"Not measured in this run: {what}. Run it again with ", how, " to have it.")


def _read(transfer: Mapping[str, Any]) -> dict[str, Found]:
    """Return the bands that have pairs, all users first, by domain."""
    read: dict[str, Found] = {}
    for domain, bands in transfer.items():
        known = {band: figures for band, figures in (bands or {}).items() if figures}
        if known:
            read[domain] = {band: known[band] for band in by_number(known)}
    return read


def _pairs(bands: Found) -> int:
    """Return the lists judged in a domain."""
    return max(int(figures.get("pairs") or 0) for figures in bands.values())


def _summary(found: Mapping[str, Found]) -> str:
    """Return what the other domains add: a sentence each for a few domains, else a count."""
    added = {
        domain: interval
        for domain, bands in found.items()
        if (interval := interval_of(bands.get(ALL))) is not None
    }
    if len(added) <= FEW_DOMAINS:
        return " ".join(_said(domain, interval) for domain, interval in added.items())
    gain = [domain for domain, interval in added.items() if interval.is_ahead]
    lose = [domain for domain, interval in added.items() if interval.is_behind]
    parts = [
        f"they add something certain to {len(gain)}{_named(gain)}",
        f"take something from {len(lose)}{_named(lose)}" if lose else "",
        f"and do nothing certain for {len(added) - len(gain) - len(lose)}",
    ]
    return f"What the {len(added)} domains do for each other: {', '.join(filter(None, parts))}."


def _named(domains: Sequence[str]) -> str:
    """Return names in brackets, or nothing for none."""
    return f" ({', '.join(domains)})" if domains else ""


def _said(domain: str, added: Interval) -> str:
    """Return in a sentence what the other domains add to one."""
    if added.is_ahead:
        return f"To {domain}, the other domains add {written(added)}."
    if added.is_behind:
        taken = Interval(-added.difference, -added.high, -added.low)
        return f"From {domain}, the other domains take {written(taken)}."
    return f"To {domain}, the other domains add nothing certain: {written(added)}."


def _who(band: str) -> str:
    """Return the users of a band.

    >>> _who("all"), _who("0"), _who("1-4")
    ('all users', 'new to the domain', '1–4 events')
    """
    names = {ALL: "all users", "0": "new to the domain"}
    return names.get(band) or f"{band.replace('-', '–')} events"


def _leads(by_domain: Mapping[str, Found]) -> list[Markup]:
    """Return a chart of differences for each domain, all on one axis."""
    rows = {
        domain: [
            Lead(_who(band), added)
            for band, figures in bands.items()
            if (added := interval_of(figures)) is not None
        ]
        for domain, bands in by_domain.items()
    }
    axis = reach_of([row for part in rows.values() for row in part])
    return [
        leads(domain, part, "added by the others, 95 % intervals", axis)
        for domain, part in rows.items()
        if part
    ]


def _levels(by_domain: Mapping[str, Found]) -> list[Markup]:
    """Return a chart of the three systems for each domain, all on one axis."""
    names = {"together": "all domains", "alone": TWIN, "popularity": "best popularity"}
    kinds = {"together": "model", "alone": "own", "popularity": "base"}
    drawn: dict[str, list[Bar | str]] = {}
    for domain, bands in by_domain.items():
        rows: list[Bar | str] = []
        for band, figures in bands.items():
            rows.append(f"{_who(band)}, {count(figures.get('pairs') or 0)} lists")
            rows += [
                Bar(label, figures[name], kinds[name])
                for name, label in names.items()
                if figures.get(name) is not None
            ]
        drawn[domain] = rows
    limit = max(map(highest, drawn.values()))
    return [bars(domain, rows, limit) for domain, rows in drawn.items()]


def _exact(found: Mapping[str, Found]) -> Markup:
    """Return every figure of the study."""
    groups = []
    for domain, bands in found.items():
        rows = []
        for band, figures in bands.items():
            added = interval_of(figures)
            levels = [measure(figures.get(name)) for name in ("together", "alone", "popularity")]
            pairs = count(figures.get("pairs") or 0)
            rows.append([_who(band), pairs, *levels, compact(added)])
        groups.append(Rows(domain, rows))
    head = ["users", ">lists", ">all domains", f">{TWIN}", ">best popularity"]
    return table("What the other domains add", [*head, ">added (95\u00a0% interval)"], groups)
