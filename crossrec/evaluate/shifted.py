"""The part of the report that shows what is left of the model's quality where data go wrong.

In: `study.shifts` of metrics.json, as `study.robustness` has it. Out: a section, or None where no
shift was asked for.

>>> part = {"pairs": 9, "before": 0.2, "after": 0.15, "popularity": 0.05}
>>> part |= {"lead": {"difference": 0.1, "low": 0.08, "high": 0.12}}
>>> "1 of 1 ahead" in shifts_section({"study": {"shifts": [{"name": "wrong", "all": part}]}})
True
"""

from collections.abc import Mapping, Sequence
from typing import Any

from crossrec.evaluate.charts import Bar, Lead, bars, grid, highest, leads
from crossrec.evaluate.judged import Metrics, depth_of, interval_of, study_of
from crossrec.evaluate.markup import (
    Markup,
    Rows,
    count,
    folded,
    measure,
    note,
    render,
    seconds,
    table,
    tag,
)
from crossrec.evaluate.verdict import compact

WHAT = {
    "translated": "texts of {} in made-up words",
    "truncated": "texts of {} cut to ten characters",
    "shock": "five items of {} rise to a third of its events",
    "wrong": "a tenth of all events wrong",
    "scarce": "100 events left in {}",
}
LABELS = {
    "translated": "made-up words",
    "truncated": "texts cut short",
    "shock": "popularity shock",
    "wrong": "wrong events",
    "scarce": "100 events",
}
ALL = "all lists"


def shifts_section(metrics: Metrics) -> Markup | None:
    """Return the model before and after each shift, beside popularity, with exact figures."""
    found = [shift for shift in study_of(metrics, "shifts") or [] if shift.get("all")]
    if not found:
        return None
    ahead = [
        Lead(LABELS.get(shift["name"], shift["name"]), lead)
        for shift in found
        if (lead := interval_of(shift["all"].get("lead")))
    ]
    drawn = _levels(found)
    charts = [bars(f"NDCG@{depth_of(metrics)}", drawn, highest(drawn), "all lists")]
    if ahead:
        charts.append(leads("Ahead of the best popularity", ahead, "after, 95 % intervals"))
    explained = (
        "The model was trained anew, and made its lists, on an input with one thing gone wrong "
        "before the judged days; popularity was counted on the same. What is judged is what users "
        "really did, but under the popularity shock, which goes on in the judged days. Loss and "
        "lead are of the same lists."
    )
    exact = table(
        "What each shift costs",
        ["lists", ">lists", ">before", ">after", ">loss", ">best popularity", ">ahead of it"],
        [Rows(_told(shift), _rows(shift)) for shift in found],
    )
    return render(
        [tag("p", _summary(found)), note(explained), grid(charts), folded("By domain", exact)]
    )


def _summary(found: Sequence[Mapping[str, Any]]) -> str:
    """Return whether the model stays ahead of popularity, and where not."""
    sure = [shift for shift in found if (lead := _lead(shift["all"])) and lead.is_ahead]
    said = f"Of the shifts, {len(sure)} of {len(found)} ahead of the best popularity for certain."
    below = [
        f"{LABELS.get(shift['name'], shift['name'])} in {domain}"
        for shift in found
        for domain, part in (shift.get("domains") or {}).items()
        if part and (lead := _lead(part)) and lead.is_behind
    ]
    return f"{said} Behind it for certain: {', '.join(below) or 'nowhere'}."


def _lead(part: Mapping[str, Any]) -> Any:
    return interval_of(part.get("lead"))


def _levels(found: Sequence[Mapping[str, Any]]) -> list[Bar | str]:
    kinds = {"before": "model", "after": "own", "popularity": "base"}
    rows: list[Bar | str] = []
    for shift in found:
        rows.append(LABELS.get(shift["name"], shift["name"]))
        rows += [
            Bar(name, shift["all"][name], kind)
            for name, kind in kinds.items()
            if shift["all"].get(name) is not None
        ]
    return rows


def _told(shift: Mapping[str, Any]) -> str:
    said = WHAT.get(shift["name"], shift["name"]).format(shift.get("domain") or "a domain")
    spent = shift.get("seconds")
    return f"{said}; training {seconds(spent)}" if spent is not None else said


def _rows(shift: Mapping[str, Any]) -> list[list[object]]:
    parts = {ALL: shift["all"]} | dict(shift.get("domains") or {})
    return [
        [
            name,
            count(part.get("pairs") or 0),
            measure(part.get("before")),
            measure(part.get("after")),
            compact(interval_of(part.get("lost"))),
            measure(part.get("popularity")),
            compact(_lead(part)),
        ]
        for name, part in parts.items()
        if part
    ]
