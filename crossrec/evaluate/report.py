"""report.html: one page that says in a minute how good a run's lists are, and on what data.

In: what metrics.json holds, and a sample of users (see `crossrec.evaluate.browse`). Out: one HTML
page that needs no other file: stylesheet, charts and script are inside it. Parts that the metrics
lack are left out, or the page says that they are missing.

>>> page = render_report({"run_id": "2026-06-01", "k": 10, "systems": {}}, sample=[])
>>> "Nothing could be judged" in page
True
"""

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any

from crossrec.evaluate.browse import browse
from crossrec.evaluate.charts import Bar, bars, grid
from crossrec.evaluate.inputs import data_section, rejected
from crossrec.evaluate.markup import Markup, Rows, count, measure, render, table, tag
from crossrec.evaluate.progress import training_section
from crossrec.evaluate.verdict import (
    MODEL,
    OWN,
    Metrics,
    figures_of,
    headline,
    judged_domains,
    judged_systems,
    name_of,
    ndcg_of,
    remarks,
)

SLICES = {
    "cold_item": "New items",
    "warm_item": "Known items",
    "cold_in_domain": "Users new to the domain",
}
MOST_DOMAINS = 11
"""Domains drawn beside the chart of all pairs; the table has every one."""


def render_report(metrics: Metrics, sample: Sequence[Mapping[str, Any]]) -> str:
    """Return the page of a run.

    Args:
        metrics: what metrics.json holds; every key may be missing or null.
        sample: users to look at, in this order; may be empty.
    """
    run, script = str(metrics.get("run_id", "")), _asset("report.js")
    written = [(name, title, write(metrics)) for name, title, write in SECTIONS]
    written.append(("users", "Look at users", browse(sample)))
    sections = [section for section in written if section[2] is not None]
    links = [tag("li", tag("a", title, href=f"#{name}")) for name, title, _ in sections]
    main = [
        tag("section", tag("h2", title, id=f"{name}-title"), content, id=name)
        for name, title, content in sections
    ]
    body = tag(
        "body",
        tag("a", "Skip to the figures", href="#main", class_="skip"),
        _header(metrics, run),
        tag("nav", tag("ul", links), aria_label="Parts of this report"),
        tag("main", main, id="main"),
        tag("footer", tag("p", f"Written by crossrec for run {run}.")),
        tag("script", script),
    )
    return f'<!doctype html>\n<html lang="en">{_head(run, script)}{body}</html>\n'


def _asset(name: str) -> Markup:
    """Return a file of this package that goes into the page as it is."""
    return Markup(resources.files("crossrec.evaluate").joinpath(name).read_text(encoding="utf-8"))


def _head(run: str, script: str) -> Markup:
    """Return the head, with a policy under which no script runs but the page's own."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "img-src data:"
    )
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"crossrec report, run {run}"),
        tag("link", rel="icon", href="data:,"),
        tag("style", _asset("report.css")),
    )


def _header(metrics: Metrics, run: str) -> Markup:
    """Return the name of the run, the verdict, and the counts behind it."""
    data, holdout = metrics.get("data") or {}, metrics.get("holdout") or {}
    about = [f"Run {run}"]
    if data.get("as_of"):
        about.append(f"data up to {_day(data['as_of'])}")
    if holdout.get("start"):
        about.append(f"judged on what users did from {_day(holdout['start'])} on")
    counts = [
        (holdout.get("pairs"), f"lists judged{_of_users(holdout.get('users'))}"),
        (data.get("users"), "users"),
        (data.get("events"), "events"),
        (data.get("items"), "items"),
        (len(data.get("domains") or []) or None, "domains"),
        (rejected(data) if data else None, "rows refused"),
    ]
    cards = [
        tag("div", tag("dt", label), tag("dd", count(number)))
        for number, label in counts
        if number is not None
    ]
    return tag(
        "header",
        tag("p", " · ".join(about), class_="about"),
        tag("h1", "Recommendations report"),
        tag("p", headline(metrics), class_="verdict"),
        tag("p", " ".join(remarks(metrics))),
        tag("dl", cards, class_="cards") if cards else None,
    )


def _of_users(users: int | None) -> str:
    """Return what stands beside the number of judged lists."""
    return f", of {count(users)} users" if users else ""


def _day(moment: object) -> str:
    """Return the day of an ISO date and time."""
    return str(moment)[:10]


def _quality(metrics: Metrics) -> Markup | None:
    """Return the model beside the baselines: all pairs, then each domain."""
    if not judged_systems(metrics):
        return None
    k, domains = metrics.get("k", 10), judged_domains(metrics)
    if len(domains) < 2:
        domains = []  # the only domain is all there is
    largest = sorted(domains, key=lambda name: -_pairs(metrics, "domain", name))[:MOST_DOMAINS]
    drawn = [("all", "")] + [("domain", name) for name in domains if name in largest]
    limit = max(bar.value for place in drawn for bar in _bars(metrics, *place))
    charts = [
        bars(name or "All lists", _bars(metrics, part, name), limit, _lists(metrics, part, name))
        for part, name in drawn
    ]
    explained = (
        f"The bars are NDCG@{k}: 1 if all that a user chose next stands at the top of the list, 0 "
        f"if none of it is among the first {k}. All items of a domain compete, and a list counts "
        "the same however much its user did."
    )
    figures = [
        tag("p", explained, class_="note"),
        grid(charts),
        _exact(metrics, "All lists, exact figures", [("all", "")]),
    ]
    if domains:
        by_domain = _exact(metrics, "Exact figures by domain", [("domain", d) for d in domains])
        figures.append(_folded("Exact figures by domain", by_domain))
    return render(figures)


def _slices(metrics: Metrics) -> Markup | None:
    """Return the figures on new items, known items and users new to a domain."""
    if not judged_systems(metrics):
        return None
    judged = {name: SLICES[name] for name in SLICES if _pairs(metrics, name)}
    missing = [SLICES[name].lower() for name in SLICES if name not in judged]
    parts: list[Markup] = []
    if judged:
        explained = (
            f"NDCG@{metrics.get('k', 10)} again. New items had no event before the judged days; "
            "users new to a domain had none in it. Each chart has its own scale."
        )
        charts = []
        for name, title in judged.items():
            rows = _bars(metrics, name)
            limit = max(row.value for row in rows)
            charts.append(bars(title, rows, limit, _lists(metrics, name)))
        exact = _exact(metrics, "Exact figures by slice", [(name, "") for name in judged])
        parts += [tag("p", explained, class_="note"), grid(charts)]
        parts.append(_folded("Exact figures by slice", exact))
    if missing:
        parts.append(tag("p", f"Nothing to judge for {', '.join(missing)}.", class_="none"))
    return render(parts)


def _data(metrics: Metrics) -> Markup | None:
    """Return the data checks."""
    data = metrics.get("data")
    return data_section(data, (metrics.get("holdout") or {}).get("start")) if data else None


SECTIONS: tuple[tuple[str, str, Callable[[Metrics], Markup | None]], ...] = (
    ("quality", "crossrec and the baselines", _quality),
    ("slices", "New items, new users", _slices),
    ("training", "Training", training_section),
    ("data", "Data", _data),
)
"""The parts of the page in order: anchor, title, and what writes it or returns None."""


def _pairs(metrics: Metrics, part: str, domain: str = "") -> int:
    """Return the number of judged lists in a part."""
    found = [figures_of(metrics, system, part, domain) for system in judged_systems(metrics)]
    return max((int(figures["pairs"]) for figures in found if figures), default=0)


def _lists(metrics: Metrics, part: str, domain: str = "") -> str:
    """Return how many lists were judged, in words."""
    number = _pairs(metrics, part, domain)
    return f"{count(number)} list{'' if number == 1 else 's'}"


def _bars(metrics: Metrics, part: str, domain: str = "") -> list[Bar]:
    """Return a bar for each system that has figures in a part."""
    kinds = dict.fromkeys(OWN, "own") | {MODEL: "model"}
    return [
        Bar(name_of(system), value, kinds.get(system, "base"))
        for system in judged_systems(metrics)
        if (value := ndcg_of(metrics, system, part, domain)) is not None
    ]


def _exact(metrics: Metrics, caption: str, places: Sequence[tuple[str, str]]) -> Markup:
    """Return every figure of the places (part, domain), a group of rows for each."""
    k = metrics.get("k", 10)
    columns = {f"ndcg@{k}": f"NDCG@{k}", f"hr@{k}": f"HR@{k}", f"recall@{k}": f"Recall@{k}"}
    groups = []
    for part, domain in places:
        own = ndcg_of(metrics, MODEL, part, domain)
        rows = []
        for system in judged_systems(metrics):
            figures = figures_of(metrics, system, part, domain)
            if figures is None:
                continue
            peer = figures.get(f"ndcg@{k}")
            ratio = f"{own / peer:.2f} times" if own is not None and peer else "–"
            values = [measure(figures.get(name)) for name in columns]
            name = tag("b", name_of(system)) if system == MODEL else name_of(system)
            rows.append([name, *values, "" if system == MODEL else ratio])
        title = domain or (SLICES.get(part, ""))
        heading = f"{title}, {_lists(metrics, part, domain)}" if title else None
        groups.append(Rows(heading, rows))
    head = ["system", *(f">{name}" for name in columns.values()), ">crossrec has"]
    return table(caption, head, groups)


def _folded(title: str, content: Markup) -> Markup:
    """Return content that opens on demand."""
    return tag("details", tag("summary", title), content)
