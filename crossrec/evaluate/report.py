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
from crossrec.evaluate.doubtful import doubtful_section
from crossrec.evaluate.gated import decision, gate_section
from crossrec.evaluate.grouped import groups_section
from crossrec.evaluate.inputs import data_section, rejected
from crossrec.evaluate.judged import Metrics
from crossrec.evaluate.markup import Markup, count, tag
from crossrec.evaluate.meaning import meaning_section
from crossrec.evaluate.progress import training_section
from crossrec.evaluate.quality import quality_section
from crossrec.evaluate.shifted import shifts_section
from crossrec.evaluate.shown import shown_section
from crossrec.evaluate.slices import slices_section
from crossrec.evaluate.steered import steering_section
from crossrec.evaluate.study import study_section
from crossrec.evaluate.transfer import transfer_section
from crossrec.evaluate.verdict import LEAVE_ONE_OUT, headline, remarks
from crossrec.evaluate.why import why_section


def render_report(metrics: Metrics, sample: Sequence[Mapping[str, Any]]) -> str:
    """Return the page of a run.

    Args:
        metrics: what metrics.json holds; every key may be missing or null.
        sample: users to look at, in this order; may be empty.
    """
    run, script = str(metrics.get("run_id", "")), _asset("report.js")
    written = [(name, title, write(metrics)) for name, title, write in SECTIONS]
    written.append(("users", "Users", browse(sample)))
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
    kept = (metrics.get("gate") or {}).get("alert")
    said = [*([decision(metrics)] if kept else []), *remarks(metrics)]
    about = [f"Run {run}"]
    if data.get("as_of"):
        about.append(f"data up to {_day(data['as_of'])}")
    if metrics.get("protocol") == LEAVE_ONE_OUT:
        about.append("judged on the last event of every user (leave-one-out)")
    elif holdout.get("start"):
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
        tag("ul", [tag("li", remark) for remark in said], class_="remarks") if said else None,
        tag("dl", cards, class_="cards") if cards else None,
    )


def _of_users(users: int | None) -> str:
    """Return what stands beside the number of judged lists."""
    return f", of {count(users)} users" if users else ""


def _day(moment: object) -> str:
    """Return the day of an ISO date and time."""
    return str(moment)[:10]


def _data(metrics: Metrics) -> Markup | None:
    """Return the data checks."""
    data = metrics.get("data")
    if not data:
        return None
    is_by_time = metrics.get("protocol") != LEAVE_ONE_OUT
    start = (metrics.get("holdout") or {}).get("start")
    return data_section(data, start if is_by_time else None)


SECTIONS: tuple[tuple[str, str, Callable[[Metrics], Markup | None]], ...] = (
    ("quality", "Beside the baselines", quality_section),
    ("gate", "Which model serves", gate_section),
    ("transfer", "What other domains add", transfer_section),
    ("slices", "New items, new users", slices_section),
    ("groups", "Group by group", groups_section),
    ("meaning", "What scores promise", meaning_section),
    ("study", "The longer study", study_section),
    ("shifts", "When data go wrong", shifts_section),
    ("training", "Training", training_section),
    ("shown", "What lists show", shown_section),
    ("why", "Why items are shown", why_section),
    ("steering", "What steering costs", steering_section),
    ("texts", "Texts held back", doubtful_section),
    ("data", "Data", _data),
)
"""The parts of the page in order: anchor, title, and what writes it or returns None."""
