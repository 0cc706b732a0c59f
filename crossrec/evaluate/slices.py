"""The part of the report that shows where the lists are good: new items, new users, long histories.

In: what metrics.json holds. Out: a section, or None where nothing was judged.

>>> slices_section({}) is None
True
"""

from crossrec.evaluate.charts import bars, grid, highest
from crossrec.evaluate.curves import Series, series
from crossrec.evaluate.judged import (
    MODEL,
    Metrics,
    best_baseline,
    by_number,
    depth_of,
    judged_systems,
    name_of,
    ndcg_of,
    pairs_of,
    parts_of,
)
from crossrec.evaluate.markup import (
    Markup,
    Rows,
    count,
    folded,
    measure,
    none,
    note,
    render,
    table,
    tag,
)
from crossrec.evaluate.quality import beside, exact, lists_in

SLICES = {
    "cold_item": "New items",
    "warm_item": "Known items",
    "cold_in_domain": "Users new to the domain",
}

BANDS = {
    "events_in_domain": ("By the user's events in the domain", "events"),
    "history_length": ("By the user's events in all domains", "events"),
    "item_popularity_decile": ("By how popular the item was", "tenth of the items, 10 the most"),
}
"""Title and axis of what metrics.json cuts into bands."""


def slices_section(metrics: Metrics) -> Markup | None:
    """Return the figures on new items, known items, users new to a domain, and by bands."""
    if not judged_systems(metrics):
        return None
    judged = {name: SLICES[name] for name in SLICES if pairs_of(metrics, name)}
    missing = [SLICES[name].lower() for name in SLICES if name not in judged]
    explained = (
        f"NDCG@{depth_of(metrics)} again. New items had no event before the judged ones; users new "
        "to a domain had none in it. Each chart has its own scale."
    )
    parts: list[Markup | None] = [note(explained)] if judged else []
    if judged:
        charts = [
            bars(title, rows, highest(rows), lists_in(metrics, name))
            for name, title in judged.items()
            for rows in [beside(metrics, name)]
        ]
        figures = exact(
            metrics, "Exact figures by slice", [(title, name, "") for name, title in judged.items()]
        )
        parts += [grid(charts), folded("Exact figures by slice", figures)]
    if missing:
        parts.append(none(f"Nothing to judge for {', '.join(missing)}."))
    parts.append(_bands(metrics))
    return render(parts)


def _bands(metrics: Metrics) -> Markup | None:
    """Return the model beside the best baseline of each band."""
    cut = {name: bands for name in BANDS if (bands := by_number(parts_of(metrics, name)))}
    if not cut:
        return None
    charts, groups = [], []
    for name, bands in cut.items():
        title, axis = BANDS[name]
        best = [best_baseline(metrics, name, band) for band in bands]
        own = [ndcg_of(metrics, MODEL, name, band) for band in bands]
        peers = [
            ndcg_of(metrics, system, name, band) if system else None
            for system, band in zip(best, bands, strict=True)
        ]
        lines = [Series("crossrec", own, "model"), Series("best baseline", peers, "base")]
        charts.append(series(title, bands, lines, axis))
        rows = [
            [
                band,
                count(pairs_of(metrics, name, band)),
                measure(mine),
                measure(peer),
                name_of(system or "–"),
            ]
            for band, mine, peer, system in zip(bands, own, peers, best, strict=True)
        ]
        groups.append(Rows(f"{title} ({axis})", rows))
    head = ["band", ">lists", ">crossrec", ">best baseline", "which"]
    exactly = table(f"NDCG@{depth_of(metrics)} by band", head, groups)
    explained = "In each band crossrec stands beside whichever baseline is best there."
    title = tag("h3", "Short and long histories, rare and popular items")
    return render([title, note(explained), grid(charts), folded("Exact figures by band", exactly)])
