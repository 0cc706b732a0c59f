"""The part of the report that shows what each part of the model earns, seeds, and the backbone.

In: `study` of metrics.json. Out: a section; without a study it says how to get one.

>>> seeds = {"ndcg@10": {"values": [0.08, 0.09], "mean": 0.085, "deviation": 0.007}}
>>> "NDCG@10 .0850 ± .0070" in study_section({"study": {"seeds": seeds}})
True
"""

from collections.abc import Mapping, Sequence
from typing import Any

from crossrec.evaluate.charts import Bar, Lead, bars, grid, highest, leads
from crossrec.evaluate.judged import (
    MODEL,
    Metrics,
    depth_of,
    interval_of,
    judged_systems,
    ndcg_of,
    study_of,
)
from crossrec.evaluate.markup import (
    Markup,
    Rows,
    count,
    measure,
    note,
    render,
    seconds,
    table,
    tag,
)
from crossrec.evaluate.transfer import not_measured
from crossrec.evaluate.verdict import compact


def study_section(metrics: Metrics) -> Markup | None:
    """Return the ablation, the seeds, and the table of before and after."""
    parts = {
        "what each part of the model earns": _ablation(metrics),
        "other seeds": _seeds(metrics),
        "before and after fine-tuning": _backbones(metrics),
    }
    missing = [what for what, part in parts.items() if part is None]
    if len(missing) == len(parts) and not judged_systems(metrics):
        return None
    said = not_measured("; ".join(missing)) if missing else None
    return render([list(parts.values()), said])


def _ablation(metrics: Metrics) -> Markup | None:
    """Return the model beside itself without each part, largest loss first."""
    variants: Sequence[Mapping[str, Any]] = study_of(metrics, "ablation") or []
    if not variants:
        return None
    measured, whole = f"ndcg@{depth_of(metrics)}", ndcg_of(metrics, MODEL)
    parts = {v["name"].removeprefix("without "): v for v in variants}
    earned = [
        Lead(part, lead) for part, v in parts.items() if (lead := interval_of(v.get("comparison")))
    ]
    levels: list[Bar | str] = [] if whole is None else [Bar("crossrec", whole, "model")]
    levels.append("crossrec without")
    levels += [Bar(part, v[measured], "own") for part, v in parts.items() if v.get(measured)]
    charts = [bars(measured.upper(), levels, highest(levels))]
    if earned:
        charts.append(leads("What each part adds", earned, "95 % intervals"))
    rows = [] if whole is None else [[tag("b", "crossrec"), measure(whole), "", ""]]
    for variant in variants:
        rows.append(
            [
                variant["name"],
                measure(variant.get(measured)),
                compact(interval_of(variant.get("comparison"))),
                seconds(variant.get("seconds")),
            ]
        )
    head = ["model", f">{measured.upper()}", ">the part adds (95\u00a0% interval)", ">time"]
    return render(
        [
            tag("h3", "What each part earns"),
            note("The model was trained again without one of its parts."),
            grid(charts),
            table("Without a part", head, [Rows(None, rows)]),
        ]
    )


def _seeds(metrics: Metrics) -> Markup | None:
    """Return mean and deviation over seeds, and the figures of each."""
    study: Mapping[str, Any] = study_of(metrics, "seeds") or {}
    measured = {name: found for name, found in study.items() if "@" in name and found}
    if not measured:
        return None
    seeds = study.get("seeds") or []
    said, rows = [], []
    for name, found in measured.items():
        mean, deviation = measure(found.get("mean")), measure(found.get("deviation"))
        said.append(f"{name.upper()} {mean} ± {deviation}")
        values = [measure(value) for value in found.get("values") or []]
        rows.append([name.upper(), mean, deviation, ", ".join(values)])
    among = f"Over {len(seeds)} seeds ({', '.join(map(str, seeds))})" if seeds else "Over seeds"
    head = ["measure", ">mean", ">deviation", ">each seed"]
    return render(
        [
            tag("h3", "How much chance there is in training"),
            tag("p", f"{among}: {'; '.join(said)}."),
            table("All lists, by seed", head, [Rows(None, rows)]),
        ]
    )


def _backbones(metrics: Metrics) -> Markup | None:
    """Return the model before and after fine-tuning, with what each costs."""
    stages: Sequence[Mapping[str, Any]] = study_of(metrics, "backbone") or []
    if not stages:
        return None
    measured = f"ndcg@{depth_of(metrics)}"
    levels = [Bar(s["name"], s[measured], "own") for s in stages if s.get(measured) is not None]
    chart = bars(measured.upper(), levels, highest(levels)) if levels else None
    rows = [
        [
            stage["name"],
            measure(stage.get(measured)),
            compact(interval_of(stage.get("comparison"))),
            *(
                "–" if (n := stage.get(key)) is None else count(n)
                for key in ("trained", "items_read")
            ),
            seconds(stage.get("seconds")),
        ]
        for stage in stages
    ]
    head = ["backbone", f">{measured.upper()}", ">it adds (95\u00a0% interval)"]
    head += [">weights that learn", ">items read", ">time"]
    return render(
        [
            tag("h3", "Before and after fine-tuning"),
            grid([chart]) if chart else None,
            table("What fine-tuning brings and costs", head, [Rows(None, rows)]),
        ]
    )
