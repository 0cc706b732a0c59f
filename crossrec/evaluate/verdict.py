"""What the figures say, in sentences: the head of the report.

In: what metrics.json holds. Out: plain sentences, honest when a baseline is better.

>>> def system(ndcg):
...     return {"all": {"pairs": 900, "hr@10": 2 * ndcg, "recall@10": ndcg, "ndcg@10": ndcg}}
>>> metrics = {"k": 10, "holdout": {"days": 14}, "systems": {
...     "model": system(0.0812), "popularity_7d": system(0.058)}}
>>> print(headline(metrics))  # 0.0812 / 0.058 = 1.4
On the last 14 days, crossrec's lists reach NDCG@10 .0812, 1.4 times the best baseline \
(popularity, 7 days: .0580).
"""

from collections.abc import Mapping
from typing import Any

from crossrec.evaluate.markup import count, measure

Metrics = Mapping[str, Any]
"""What metrics.json holds."""

MODEL = "model"
WITHOUT_SEQUENCE = "without_sequence"
STEP_0 = "step0"
OWN = (MODEL, WITHOUT_SEQUENCE, STEP_0)
"""The model and what is left of it without a part: not baselines, but shown beside it."""

NAMES = {
    MODEL: "crossrec",
    WITHOUT_SEQUENCE: "without the sequence",
    STEP_0: "before training",
    "untrained_backbone": "untrained backbone",
    "popularity_all": "popularity, all time",
    "popularity_30d": "popularity, 30 days",
    "popularity_7d": "popularity, 7 days",
}
FEW_PAIRS = 200
"""Fewer pairs than these get a caution (a choice: one list found or not then moves HR by 0.005)."""


def name_of(system: str) -> str:
    """Return what a person calls a system; a system without a name goes by its key.

    >>> name_of("popularity_7d"), name_of("als")
    ('popularity, 7 days', 'als')
    """
    return NAMES.get(system, system)


def figures_of(
    metrics: Metrics, system: str, part: str = "all", domain: str = ""
) -> dict[str, Any] | None:
    """Return a system's figures in a part ("all", a slice, "domain"), or None without pairs."""
    found = ((metrics.get("systems") or {}).get(system) or {}).get(part)
    if part == "domain":
        found = (found or {}).get(domain)
    return found if found and found.get("pairs") else None


def ndcg_of(metrics: Metrics, system: str, part: str = "all", domain: str = "") -> float | None:
    """Return a system's NDCG@k in a part, or None without pairs."""
    figures = figures_of(metrics, system, part, domain)
    return None if figures is None else figures.get(f"ndcg@{metrics.get('k', 10)}")


def judged_systems(metrics: Metrics) -> list[str]:
    """Return the judged systems: the model, itself without a part, then baselines best first."""

    def rank(system: str) -> int:
        return OWN.index(system) if system in OWN else len(OWN)

    judged = {
        system: value
        for system in metrics.get("systems") or {}
        if (value := ndcg_of(metrics, system)) is not None
    }
    return sorted(judged, key=lambda system: (rank(system), -judged[system], system))


def judged_domains(metrics: Metrics) -> list[str]:
    """Return the domains that have figures, in the order in which the systems name them."""
    names: dict[str, None] = {}
    for system in judged_systems(metrics):
        names |= dict.fromkeys((metrics["systems"][system].get("domain") or {}).keys())
    return list(names)


def best_baseline(metrics: Metrics, part: str = "all", domain: str = "") -> str | None:
    """Return the baseline with the highest NDCG; the model without a part counts as none."""
    scored = {
        system: value
        for system in judged_systems(metrics)
        if system not in OWN and (value := ndcg_of(metrics, system, part, domain)) is not None
    }
    return max(scored, key=lambda system: scored[system]) if scored else None


def headline(metrics: Metrics) -> str:
    """Return the verdict in one sentence."""
    days, measured = (metrics.get("holdout") or {}).get("days"), f"NDCG@{metrics.get('k', 10)}"
    when = f"On the last {count(days)} day{'s' if days > 1 else ''}" if days else "On the hold-out"
    own, best = ndcg_of(metrics, MODEL), best_baseline(metrics)
    if own is None:
        return f"Nothing could be judged: {when[0].lower()}{when[1:]}, no list was put to the test."
    reached = f"{when}, crossrec's lists reach {measured} {measure(own)}"
    if best is None:
        return f"{reached}; no baseline was judged beside them."
    peer = ndcg_of(metrics, best) or 0.0
    if measure(own) == measure(peer):
        return f"{reached}, no more and no less than the best baseline ({name_of(best)})."
    if own < peer:
        return (
            f"{when}, a baseline is better than crossrec: {name_of(best)} reaches {measured} "
            f"{measure(peer)}, crossrec {measure(own)} ({100 * (1 - own / peer):.0f}\u00a0% less)."
        )
    if not peer:
        return f"{reached}, while every baseline scores 0."
    ratio = (
        f"{own / peer:.1f} times"
        if own >= 1.1 * peer
        else f"{100 * (own / peer - 1):.0f}\u00a0% above"
    )
    return f"{reached}, {ratio} the best baseline ({name_of(best)}: {measure(peer)})."


def remarks(metrics: Metrics) -> list[str]:
    """Return what else a person should know before trusting the headline, a sentence each."""
    found = [_by_domain(metrics), _by_training(metrics), _in_words(metrics), _caution(metrics)]
    return [sentence for sentence in found if sentence]


def _by_domain(metrics: Metrics) -> str:
    """Say in which domains the model leads; nothing where there is only one."""
    names, behind = judged_domains(metrics), []
    compared = 0
    for domain in names:
        own = ndcg_of(metrics, MODEL, "domain", domain)
        best = best_baseline(metrics, "domain", domain)
        if own is None or best is None:
            continue
        compared += 1
        peer = ndcg_of(metrics, best, "domain", domain) or 0.0
        if own <= peer:
            behind.append(f"{domain} ({measure(own)}; {name_of(best)} {measure(peer)})")
    if compared < 2:
        return ""
    if not behind:
        return f"crossrec is ahead of every baseline in all {compared} domains."
    if len(behind) == compared:
        return f"crossrec leads in none of the {compared} domains."
    listed = ", ".join(behind[:3]) + (f" and {len(behind) - 3} more" if len(behind) > 3 else "")
    return f"crossrec leads in {compared - len(behind)} of {compared} domains, and not in {listed}."


def _by_training(metrics: Metrics) -> str:
    """Say what training brought."""
    own, before = ndcg_of(metrics, MODEL), ndcg_of(metrics, STEP_0)
    if own is None or before is None:
        return ""
    if own <= before:
        return f"Training did not help: before it, the same model had {measure(before)}."
    return f"Training raised its NDCG from {measure(before)} to {measure(own)}."


def _in_words(metrics: Metrics) -> str:
    """Say HR as a count that needs no definition."""
    k, best = metrics.get("k", 10), best_baseline(metrics)
    figures = figures_of(metrics, MODEL)
    if figures is None or f"hr@{k}" not in figures:
        return ""
    said = (
        f"Of 100 lists, {100 * figures[f'hr@{k}']:.0f} have something in their first {k} "
        "that the user really chose next"
    )
    peer = figures_of(metrics, best) if best else None
    return said + (f" (best baseline: {100 * peer[f'hr@{k}']:.0f})." if peer else ".")


def _caution(metrics: Metrics) -> str:
    """Warn where few pairs were judged."""
    figures = figures_of(metrics, MODEL)
    if figures is None or figures["pairs"] >= FEW_PAIRS:
        return ""
    return f"Only {count(figures['pairs'])} lists could be judged: take these figures as a hint."
