"""The part of the report that shows what steering lists costs, and what it brings.

In: `steering` of metrics.json, as `crossrec.evaluate.steering` finds it. Out: a section, or None
where no setting was judged.

>>> steering_section({}) is None
True
"""

from collections.abc import Mapping, Sequence
from typing import Any

from crossrec.evaluate.charts import grid
from crossrec.evaluate.curves import Point, against
from crossrec.evaluate.judged import Metrics, interval_of
from crossrec.evaluate.markup import Markup, Rows, folded, measure, note, render, share, table, tag
from crossrec.evaluate.verdict import compact

Found = Mapping[str, Any]

DIALS = {"popularity_control": "Popularity control", "diversity": "Diversity"}
BRINGS = {"popularity_control": ("coverage", "gini"), "diversity": ("distance",)}
AXES = {"coverage": "coverage", "gini": "Gini", "distance": "distance within a list"}


def steering_section(metrics: Metrics) -> Markup | None:
    """Return a curve for each dial, and all figures."""
    found = metrics.get("steering")
    if not found or not found.get("settings"):
        return None
    k, published = int(found["k"]), found["published"]
    explained = (
        f"NDCG@{k} of the hold-out's lists at several values of score.popularity_control and "
        "score.diversity, from 0, by score alone, on which all other figures of this page are. "
        "Coverage, Gini and the distance between a list's items (1 less the cosine of their texts) "
        "are means over the domains."
    )
    own = ", ".join(f"{DIALS[name].lower()} {published[name]:g}" for name in DIALS)
    charts = [chart for dial in DIALS for chart in _curves(found["settings"], dial, k)]
    return render(
        [
            note(explained),
            tag("p", f"This run's lists are made with {own}."),
            grid(charts) if charts else None,
            _table(found["settings"], k),
            folded("By domain", _domains(found["settings"], k)),
        ]
    )


def _curves(settings: Sequence[Found], dial: str, k: int) -> list[Markup]:
    """Return NDCG against what a dial brings, where it was judged at two values at least."""
    (other,) = (name for name in DIALS if name != dial)
    alone = sorted((part for part in settings if not part[other]), key=lambda part: part[dial])
    charts = []
    for name in BRINGS[dial]:
        points = [
            Point(part[f"{name}@{k}"], part[f"ndcg@{k}"], f"{part[dial]:g}")
            for part in alone
            if part[f"{name}@{k}"] is not None and part[f"ndcg@{k}"] is not None
        ]
        if len(points) > 1:
            title = f"{DIALS[dial]}: NDCG@{k}"
            charts.append(against(title, points, f"{AXES[name]} →", f"against {AXES[name]}"))
    return charts


def _table(settings: Sequence[Found], k: int) -> Markup:
    head = ["popularity control", "diversity", f">NDCG@{k}", ">cost (95\u00a0% interval)"]
    head += [f">HR@{k}", ">coverage", ">Gini", ">novelty, bits", ">distance"]
    rows = []
    for part in settings:
        row: list[object] = [f"{part[dial]:g}" for dial in DIALS]
        row += [measure(part[f"ndcg@{k}"]), compact(interval_of(part.get("cost")))]
        rows.append([*row, measure(part[f"hr@{k}"]), *_told(part, k)])
    return table("What steering costs", head, [Rows(None, rows)])


def _domains(settings: Sequence[Found], k: int) -> Markup:
    groups = []
    for domain in settings[0]["domain"]:
        rows = [
            [*(f"{part[dial]:g}" for dial in DIALS), *_told(part["domain"][domain], k)]
            for part in settings
        ]
        groups.append(Rows(domain, rows))
    head = ["popularity control", "diversity", ">coverage", ">Gini", ">novelty, bits", ">distance"]
    return table("What lists show, by domain", head, groups)


def _told(part: Found, k: int) -> list[str]:
    names = ("coverage", "gini", "novelty", "distance")
    coverage, gini, novelty, distance = (part[f"{name}@{k}"] for name in names)
    return [
        "–" if coverage is None else share(coverage, 1.0),
        "–" if gini is None else f"{gini:.2f}".removeprefix("0"),
        "–" if novelty is None else f"{novelty:.1f}",
        "–" if distance is None else f"{distance:.2f}".removeprefix("0"),
    ]
