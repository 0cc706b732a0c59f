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
from math import isfinite
from typing import Any

from crossrec.evaluate.browse import browse
from crossrec.evaluate.charts import Bar, bars, grid, line
from crossrec.evaluate.inputs import data_section, rejected
from crossrec.evaluate.markup import Markup, Rows, count, measure, table, tag
from crossrec.evaluate.verdict import (
    MODEL,
    STEP_0,
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
    "cold_item": ("New items", "nobody had touched them before the cut"),
    "warm_item": ("Known items", "touched before the cut"),
    "cold_in_domain": ("Users new to the domain", "no event in it before the cut"),
}
MOST_DOMAINS = 11
"""Domains drawn beside the chart of all pairs; the table has every one."""


def render_report(metrics: Metrics, sample: Sequence[Mapping[str, Any]]) -> str:
    """Return the page; see INTERFACES of metrics.json in `crossrec.evaluate`."""
    sections = [
        (name, title, content)
        for name, title, write in SECTIONS
        if (content := write(metrics)) is not None
    ]
    sections.append(("users", "Look at users", browse(sample)))
    links = [tag("li", tag("a", title, href=f"#{name}")) for name, title, _ in sections]
    main = [
        tag("section", tag("h2", title, id=f"{name}-title"), content, id=name, aria_labelledby=f"{name}-title")
        for name, title, content in sections
    ]
    run = str(metrics.get("run_id", ""))
    body = tag(
        "body",
        tag("a", "Skip to the figures", href="#main", class_="skip"),
        _header(metrics, run),
        tag("nav", tag("ul", links), aria_label="Parts of this report"),
        tag("main", main, id="main"),
        tag("footer", tag("p", f"Written by crossrec for run {run}.")),
        tag("script", script := _asset("report.js")),
    )
    return f'<!doctype html>\n<html lang="en">{_head(run, script)}{body}</html>\n'


def _asset(name: str) -> Markup:
    """Return a file of this package that goes into the page as it is."""
    return Markup(resources.files("crossrec.evaluate").joinpath(name).read_text(encoding="utf-8"))


def _head(run: str, script: str) -> Markup:
    """Return the head, with a policy under which no script runs but the page's own."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:"
    )
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"crossrec report, run {run}"),
        tag("link", rel="icon", href="data:,"),
        tag("style", _asset("report.css")),
    )
