"""The part of the report that says whether the night's model took the published one's place.

In: what metrics.json holds. Out: a section, or None where no gate has been passed.

>>> gate_section({}) is None
True
"""

from typing import Any

from crossrec.evaluate.judged import PUBLISHED, Metrics, depth_of, lead_over, ndcg_of
from crossrec.evaluate.markup import Markup, Rows, measure, note, render, table, tag
from crossrec.evaluate.verdict import written


def gate_section(metrics: Metrics) -> Markup | None:
    """Return the decision, its reasons, and all checks."""
    found = metrics.get("gate")
    if not found:
        return None
    return render([note(decision(metrics)), _reasons(found), _checks(found.get("checks") or [])])


def decision(metrics: Metrics) -> str:
    """Return what became of the night's model, in a sentence or two."""
    found, before = metrics.get("gate") or {}, ndcg_of(metrics, PUBLISHED)
    lead = lead_over(metrics, PUBLISHED)
    if found.get("decision") == "keep":
        said = (
            "The published model stays: this run's lists were made with it, from the newest events."
        )
    elif found.get("alert"):
        said = "The lists were made with this run's model, but somebody should look at the data."
    else:
        said = "The lists were made with this run's model."
    if before is None:
        return said
    named = f"The published model (run {found.get('published')}) reaches NDCG@{depth_of(metrics)} "
    named += f"{measure(before)} on the same lists"
    return f"{said} {named}." if lead is None else f"{said} {named}; the lead is {written(lead)}."


def _reasons(found: dict[str, Any]) -> Markup | None:
    reasons = found.get("reasons") or []
    return tag("ul", [tag("li", reason) for reason in reasons]) if reasons else None


def _checks(checks: list[dict[str, Any]]) -> Markup | None:
    if not checks:
        return None
    rows = [
        [
            check["said"],
            "–" if check["found"] is None else f"{check['found']:.4g}",
            f"{'at most' if check['is_most'] else 'at least'} {check['limit']:.4g}",
            "yes" if check["is_passed"] else "no",
        ]
        for check in checks
    ]
    return table(
        "What was checked", ["Measured", ">Found", ">Expected", "As expected"], [Rows(None, rows)]
    )
