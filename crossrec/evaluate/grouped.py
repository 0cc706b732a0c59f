"""The part of the report that tells groups of users and items apart.

In: `groups` of metrics.json, as `crossrec.evaluate.groups` finds them. Out: a section, or None
where no column was asked for.

>>> groups_section({}) is None
True
"""

from collections.abc import Mapping
from typing import Any

from crossrec.evaluate.charts import Bar, bars, grid, highest
from crossrec.evaluate.judged import Metrics, depth_of
from crossrec.evaluate.markup import Markup, Rows, count, folded, measure, note, render, table, tag

MEASURES = {"ndcg": "NDCG", "hr": "HR", "coverage": "coverage"}

Found = Mapping[str, Any]


def groups_section(metrics: Metrics) -> Markup | None:
    """Return the figures of every column that was asked for."""
    columns = metrics.get("groups") or []
    if not columns:
        return None
    k = depth_of(metrics)
    explained = (
        "Groups of users by their lists; groups of items by the lists of users who chose one of "
        f"them, judged on these alone. Coverage: the share of the catalogue, or of the group's "
        f"items, that equally many users of each group are shown in their first {k}. Small groups "
        "are taken together. Intervals are 95\u00a0%."
    )
    return render([note(explained), *(_column(found, k) for found in columns)])


def _column(found: Found, k: int) -> Markup:
    title = f"{'Users' if found['table'] == 'users' else 'Items'} by {found['column']}"
    groups = found["groups"]
    rows: list[Bar | str] = [
        Bar(group["name"], group[f"ndcg@{k}"]["mean"], "own")
        for group in groups
        if group.get(f"ndcg@{k}")
    ]
    gaps = [
        _gap(found["gaps"][f"{name}@{k}"], name, k) for name in MEASURES if _has(found, name, k)
    ]
    exact = folded(f"Exact figures, {title.lower()}", _table(found, title, k))
    chart = grid([bars(f"NDCG@{k}", rows, highest(rows), f"by {found['column']}")])
    return render([tag("h3", title), tag("ul", gaps) if gaps else None, chart, exact])


def _has(found: Found, name: str, k: int) -> bool:
    return f"{name}@{k}" in found["gaps"]


def _gap(gap: Found, name: str, k: int) -> Markup:
    """Return a sentence on the gap in a measure."""
    said = (
        f"{MEASURES[name]}@{k}: highest for {gap['best']}, lowest for {gap['worst']}, a gap of "
        f"{measure(gap['difference'])} ({_ends(gap)})."
    )
    chance = gap.get("by_chance")
    if chance is not None:
        is_small = gap["difference"] <= chance
        said += f" Up to {measure(chance)} would be chance" + (
            ": groups may well be served alike." if is_small else " if all were served alike."
        )
    return tag("li", said)


def _ends(found: Found) -> str:
    return f"{_measure(found['low'])} to {_measure(found['high'])}"


def _measure(value: float) -> str:
    return measure(value) if value >= 0 else f"−{measure(-value)}"


def _table(found: Found, title: str, k: int) -> Markup:
    of_items = found["table"] == "items"
    head = [found["column"], ">lists", ">users", *(f">{said}@{k}" for said in MEASURES.values())]
    head += [">items", ">share chosen", ">share shown"] if of_items else []
    rows = []
    for group in found["groups"]:
        row: list[object] = [group["name"], count(group["lists"]), count(group["users"])]
        for name in MEASURES:
            told = group.get(f"{name}@{k}")
            row.append(f"{measure(told['mean'])} ({_ends(told)})" if told else "–")
        if of_items:
            row += [count(group["items"]), measure(group["chosen"]), measure(group["shown"])]
        rows.append(row)
    caption = f"{title}; coverage of {count(found['coverage_users'])} users"
    return table(caption, head, [Rows(None, rows)])
