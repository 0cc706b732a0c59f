"""The part of the report that shows the model beside the baselines, over all lists and by domain.

In: what metrics.json holds. Out: a section, or None where nothing was judged.

>>> quality_section({}) is None
True
"""

from collections.abc import Sequence

from crossrec.evaluate.charts import Bar, Lead, bars, grid, highest, leads
from crossrec.evaluate.judged import (
    MODEL,
    OWN,
    Metrics,
    baselines_of,
    best_baseline,
    depth_of,
    figures_of,
    judged_domains,
    judged_systems,
    lead_over,
    name_of,
    ndcg_of,
    pairs_of,
)
from crossrec.evaluate.markup import Markup, Rows, count, folded, measure, note, render, table, tag
from crossrec.evaluate.verdict import compact

MOST_DOMAINS = 10
"""Domains drawn beside the chart of all pairs; the table has every one."""

FEW_LISTS = 30
"""Fewer lists than these get a caution (a choice: one list found then moves HR by 0.03)."""

MEASURES = ("ndcg", "hr", "recall", "mrr")


def quality_section(metrics: Metrics) -> Markup | None:
    """Return the model beside the baselines: all pairs, then each domain."""
    if not judged_systems(metrics):
        return None
    k, domains = depth_of(metrics), judged_domains(metrics)
    if len(domains) < 2:
        domains = []  # the only domain is all there is
    largest = sorted(domains, key=lambda name: -pairs_of(metrics, "domain", name))[:MOST_DOMAINS]
    drawn = [name for name in domains if name in largest]
    explained = (
        f"The bars are NDCG@{k}: 1 if all that a user chose next stands at the top of the list, 0 "
        f"if none of it is among the first {k}. All items of a domain compete, and a list counts "
        "the same however much its user did."
    )
    parts = [
        note(explained),
        grid([chart for chart in (_everything(metrics), _leads(metrics)) if chart]),
        exact(metrics, "All lists, exact figures", [("All lists", "all", "")]),
        _lengths(metrics),
    ]
    if domains:
        shown = {name: beside(metrics, "domain", name) for name in drawn}
        limit = max(map(highest, shown.values()))
        charts = [
            bars(name, rows, limit, lists_in(metrics, "domain", name))
            for name, rows in shown.items()
        ]
        places = [(name, "domain", name) for name in domains]
        by_domain = exact(metrics, "Exact figures by domain", places)
        parts += [tag("h3", "By domain"), grid(charts)]
        parts.append(folded("Exact figures by domain", by_domain))
    return render(parts)


def _everything(metrics: Metrics) -> Markup:
    """Return the chart of all lists: the model and itself without a part, then the baselines."""
    own = [system for system in judged_systems(metrics) if system in OWN]
    baselines = baselines_of(metrics)
    rows: list[Bar | str] = [*_rows(metrics, own), *_rows(metrics, baselines)]
    if len(own) > 1 and baselines:
        rows.insert(len(own), "Baselines")
        rows.insert(0, "The model, and parts of it")
    return bars("All lists", rows, highest(rows), lists_in(metrics, "all"))


def _leads(metrics: Metrics) -> Markup | None:
    """Return by how much the model is ahead of each baseline, if that was compared."""
    rows = [
        Lead(name_of(system), lead)
        for system in baselines_of(metrics)
        if (lead := lead_over(metrics, system)) is not None
    ]
    if not rows:
        return None
    return leads(f"crossrec's lead in NDCG@{depth_of(metrics)}", rows, "95 % intervals")


def beside(metrics: Metrics, part: str, inside: str = "") -> list[Bar]:
    """Return bars of the model and of every baseline that has figures in a part."""
    return _rows(metrics, [MODEL, *baselines_of(metrics)], part, inside)


def _rows(
    metrics: Metrics, systems: Sequence[str], part: str = "all", inside: str = ""
) -> list[Bar]:
    """Return a bar for each system with figures in a part; the best baseline stands out."""
    best = best_baseline(metrics, part, inside)
    kinds = dict.fromkeys(OWN, "own") | {best or "": "best"} | {MODEL: "model"}
    return [
        Bar(name_of(system), value, kinds.get(system, "base"))
        for system in systems
        if (value := ndcg_of(metrics, system, part, inside)) is not None
    ]


def lists_in(metrics: Metrics, part: str, inside: str = "") -> str:
    """Return how many lists were judged, in words."""
    number = pairs_of(metrics, part, inside)
    lists = f"{count(number)} list{'' if number == 1 else 's'}"
    return lists if number >= FEW_LISTS else f"{lists}, too few to tell"


def exact(metrics: Metrics, caption: str, places: Sequence[tuple[str, str, str]]) -> Markup:
    """Return every figure of places (title, part, inside), a group of rows for each.

    The lead over each system stands beside the figures of all lists and of domains: others were
    not compared.
    """
    k, systems = depth_of(metrics), judged_systems(metrics)
    known = [figures_of(metrics, MODEL, part, inside) or {} for _, part, inside in places]
    names = [name for name in MEASURES if any(f"{name}@{k}" in f for f in known)]
    head = ["system", *(f">{_measured(name)}@{k}" for name in names), ">crossrec has"]
    is_compared = any(
        part in ("all", "domain") and lead_over(metrics, system, inside) is not None
        for _, part, inside in places
        for system in systems
    )
    if is_compared:
        head.append(">lead (95\u00a0% interval)")
    groups = []
    for title, part, inside in places:
        own, rows = ndcg_of(metrics, MODEL, part, inside), []
        for system in systems:
            figures = figures_of(metrics, system, part, inside)
            if figures is None:
                continue
            peer = figures.get(f"ndcg@{k}")
            ratio = f"{own / peer:.2f} times" if own is not None and peer else "–"
            name = tag("b", name_of(system)) if system == MODEL else name_of(system)
            row = [name, *(measure(figures.get(f"{n}@{k}")) for n in names)]
            row.append("" if system == MODEL else ratio)
            if is_compared:
                row.append("" if system == MODEL else compact(lead_over(metrics, system, inside)))
            rows.append(row)
        heading = f"{title}, {lists_in(metrics, part, inside)}" if len(places) > 1 else None
        groups.append(Rows(heading, rows))
    return table(caption, head, groups)


def _lengths(metrics: Metrics) -> Markup | None:
    """Return every measure of all lists at every k, folded away."""
    ks = metrics.get("ks") or []
    if len(ks) < 2:
        return None
    groups = []
    for name in MEASURES:
        rows = []
        for system in judged_systems(metrics):
            figures = figures_of(metrics, system) or {}
            if all(f"{name}@{k}" in figures for k in ks):
                rows.append([name_of(system), *(measure(figures[f"{name}@{k}"]) for k in ks)])
        if rows:
            groups.append(Rows(_measured(name), rows))
    if not groups:
        return None
    head = ["system", *(f">first {k}" for k in ks)]
    return folded("At other lengths of the list", table("All lists, by their length", head, groups))


def _measured(name: str) -> str:
    """Return a measure as people write it."""
    return {"recall": "Recall"}.get(name, name.upper())
