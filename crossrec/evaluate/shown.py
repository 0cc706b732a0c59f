"""The part of the report that shows what lists show of the catalogue, and what baselines cost.

In: what metrics.json holds. Out: a section, or None if nothing is known of either.

>>> lists = {"film": {"coverage@10": 0.5, "gini@10": 0.25, "novelty@10": 7.123}}
>>> figures = {"all": {"pairs": 9, "ndcg@10": 0.1}, "lists": lists}
>>> section = shown_section({"systems": {"als": figures}, "baselines": {"als": {"seconds": 2.5}}})
>>> all(text in section for text in ("50 %", ".25", "7.1", "2.5 s"))
True
"""

from collections.abc import Sequence
from typing import Any

from crossrec.evaluate.judged import (
    MODEL,
    Metrics,
    best_baseline,
    depth_of,
    judged_systems,
    name_of,
    ndcg_of,
    parts_of,
)
from crossrec.evaluate.markup import (
    Markup,
    Rows,
    folded,
    measure,
    note,
    render,
    seconds,
    share,
    table,
    tag,
)


def shown_section(metrics: Metrics) -> Markup | None:
    """Return coverage, Gini and novelty by domain and system, and the seconds of baselines."""
    parts = [_exposure(metrics), _costs(metrics)]
    return render(parts) if any(parts) else None


def _exposure(metrics: Metrics) -> Markup | None:
    """Return how much of each domain's catalogue the lists show, and how evenly."""
    domains, systems = parts_of(metrics, "lists"), judged_systems(metrics)
    if not domains:
        return None
    k, best = depth_of(metrics), best_baseline(metrics)
    explained = (
        f"Of the first {k} of each list. Coverage: the share of the domain's items that anybody is "
        "shown. Gini: 0 if all items are shown alike, 1 if one takes every place. Novelty: how "
        "little known the shown items are, in bits; one bit more is half as many events."
    )
    pair = [system for system in systems if system in (MODEL, best)]
    parts = [note(explained), _shown(metrics, "Beside the best baseline", pair)]
    if len(systems) > len(pair):
        parts.append(folded("Every system", _shown(metrics, "Every system", systems)))
    return render(parts)


def _shown(metrics: Metrics, caption: str, systems: Sequence[str]) -> Markup:
    """Return coverage, Gini and novelty of systems by domain."""
    groups = []
    for domain in parts_of(metrics, "lists"):
        rows = []
        for system in systems:
            found = (metrics["systems"][system].get("lists") or {}).get(domain)
            if found:
                name = tag("b", name_of(system)) if system == MODEL else name_of(system)
                rows.append([name, *_told(found, depth_of(metrics))])
        groups.append(Rows(domain, rows))
    return table(caption, ["system", ">coverage", ">Gini", ">novelty"], groups)


def _told(found: dict[str, Any], k: int) -> list[str]:
    """Return coverage, Gini and novelty as people read them."""
    coverage, gini, novelty = (found.get(f"{name}@{k}") for name in ("coverage", "gini", "novelty"))
    return [
        "–" if coverage is None else share(coverage, 1.0),
        "–" if gini is None else f"{gini:.2f}".removeprefix("0"),
        "–" if novelty is None else f"{novelty:.1f}",
    ]


def _costs(metrics: Metrics) -> Markup | None:
    """Return what each baseline took and gives, beside the epochs of the model."""
    baselines = metrics.get("baselines") or {}
    times = {system: (found or {}).get("seconds") for system, found in baselines.items()}
    epochs = (metrics.get("training") or {}).get("curve") or []
    training = sum(
        epoch.get(key) or 0.0 for epoch in epochs for key in ("seconds", "valid_seconds")
    )
    rows: list[list[object]] = []
    if training and ndcg_of(metrics, MODEL) is not None:
        name = [tag("b", name_of(MODEL)), ", its epochs alone"]
        rows.append([name, seconds(training), measure(ndcg_of(metrics, MODEL))])
    rows += [
        [name_of(system), seconds(took), measure(ndcg_of(metrics, system))]
        for system, took in sorted(times.items(), key=lambda pair: pair[1] or 0.0)
        if took is not None
    ]
    if not times or not rows:
        return None
    head = ["system", ">time", f">NDCG@{depth_of(metrics)}"]
    return render(
        [
            tag("h3", "What they cost"),
            table("Time to learn and to write the lists", head, [Rows(None, rows)]),
        ]
    )
