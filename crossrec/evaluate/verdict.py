"""What the figures say, in sentences: the head of the report.

In: what metrics.json holds. Out: plain sentences, honest when a baseline is better and when a lead
could be chance.

>>> def system(ndcg):
...     return {"all": {"pairs": 900, "hr@10": 2 * ndcg, "recall@10": ndcg, "ndcg@10": ndcg}}
>>> metrics = {"k": 10, "holdout": {"days": 14}, "systems": {
...     "model": system(0.0812), "popularity_7d": system(0.058)}}
>>> print(headline(metrics))  # 0.0812 / 0.058 = 1.4
On the last 14 days, crossrec's lists reach NDCG@10 .0812, 1.4 times the best baseline \
(popularity, 7 days: .0580).
>>> metrics["comparison"] = {"popularity_7d": {"difference": 0.0232, "low": 0.01, "high": 0.036}}
>>> print(headline(metrics).replace(chr(160), " "))
On the last 14 days, crossrec is better than every baseline: NDCG@10 .0812, 1.4 times the closest \
(popularity, 7 days), which is behind by .0232 (95 % interval .0100 to .0360).
"""

from crossrec.evaluate.judged import (
    MODEL,
    STEP_0,
    WITHOUT_SEQUENCE,
    Interval,
    Metrics,
    baselines_of,
    best_baseline,
    depth_of,
    figures_of,
    interval_of,
    judged_domains,
    lead_over,
    name_of,
    ndcg_of,
)
from crossrec.evaluate.markup import count, measure, signed

FEW_PAIRS = 200
"""Fewer pairs than these get a caution (a choice: one list found or not then moves HR by 0.005)."""

LEAVE_ONE_OUT = "leave_one_out"
"""The protocol that judges each user's last event, whenever that was."""


def headline(metrics: Metrics) -> str:
    """Return the verdict in one sentence."""
    when, measured = _when(metrics), f"NDCG@{depth_of(metrics)}"
    own, best = ndcg_of(metrics, MODEL), best_baseline(metrics)
    if own is None:
        return f"Nothing could be judged: {when[0].lower()}{when[1:]}, no list was put to the test."
    reached = f"{when}, crossrec's lists reach {measured} {measure(own)}"
    if best is None:
        return f"{reached}; no baseline was judged beside them."
    peer, lead = ndcg_of(metrics, best) or 0.0, lead_over(metrics, best)
    if measure(own) == measure(peer):
        return f"{reached}, no more and no less than the best baseline ({name_of(best)})."
    if own < peer:
        return _behind(when, measured, (own, peer), best, lead)
    if not peer:
        return f"{reached}, while every baseline scores 0."
    ratio = (
        f"{own / peer:.1f} times"
        if own >= 1.1 * peer
        else f"{100 * (own / peer - 1):.0f}\u00a0% above"
    )
    above = f"{ratio} the best baseline ({name_of(best)}: {measure(peer)})"
    if lead is None:
        return f"{reached}, {above}."
    if not lead.is_ahead:
        return f"{reached}, {above}, but that could be chance: the lead is {written(lead)}."
    doubtful = uncertain(metrics)
    if doubtful:
        names = _listed([name_of(system) for system in doubtful])
        return f"{reached}, {above}, {written(lead)} ahead; over {names} the lead could be chance."
    return (
        f"{when}, crossrec is better than every baseline: {measured} {measure(own)}, {ratio} the "
        f"closest ({name_of(best)}), which is behind by {written(lead)}."
    )


def written(lead: Interval) -> str:
    r"""Return a difference and its interval in words.

    >>> written(Interval(0.0295, 0.0217, 0.0372)), written(Interval(0.001, -0.002, 0.004))
    ('.0295 (95\xa0% interval .0217 to .0372)', '.0010 (95\xa0% interval −.0020 to +.0040)')
    """
    write = signed if lead.low < 0 else measure
    difference = signed(lead.difference) if lead.difference < 0 else measure(lead.difference)
    return f"{difference} (95\u00a0% interval {write(lead.low)} to {write(lead.high)})"


def compact(lead: Interval | None) -> str:
    """Return a difference and its interval as a cell of a table whose head says what they are.

    >>> compact(Interval(0.0295, 0.0217, 0.0372)), compact(None)
    ('+.0295 (+.0217 to +.0372)', '–')
    """
    if lead is None:
        return "–"
    return f"{signed(lead.difference)} ({signed(lead.low)} to {signed(lead.high)})"


def uncertain(metrics: Metrics) -> list[str]:
    """Return the baselines whose interval does not lie above 0, best first."""
    leads = {system: lead_over(metrics, system) for system in baselines_of(metrics)}
    return [system for system, lead in leads.items() if lead is not None and not lead.is_ahead]


def remarks(metrics: Metrics) -> list[str]:
    """Return what else a person should know before trusting the headline, a sentence each."""
    found = [
        _by_domain(metrics),
        _by_training(metrics),
        _by_sequence(metrics),
        _in_words(metrics),
        _on_new_items(metrics),
        _caution(metrics),
    ]
    return [sentence for sentence in found if sentence]


def _when(metrics: Metrics) -> str:
    """Return what the lists were judged on, as a sentence begins."""
    if metrics.get("protocol") == LEAVE_ONE_OUT:
        return "On the last event of every user"
    days = (metrics.get("holdout") or {}).get("days")
    return f"On the last {count(days)} day{'s' if days > 1 else ''}" if days else "On the hold-out"


def _behind(
    when: str, measured: str, figures: tuple[float, float], best: str, lead: Interval | None
) -> str:
    """Say that a baseline is better than the model, figures (own, peer), and how sure that is."""
    own, peer = figures
    if lead is not None and not lead.is_behind:
        return (
            f"{when}, crossrec is not ahead of every baseline: {name_of(best)} reaches {measured} "
            f"{measure(peer)}, crossrec {measure(own)}; the difference of {written(lead)} could be "
            "chance."
        )
    less = f"{100 * (1 - own / peer):.0f}\u00a0% less"
    sure = f"({less})" if lead is None else f"({less}); the difference is {written(lead)}"
    return (
        f"{when}, a baseline is better than crossrec: {name_of(best)} reaches {measured} "
        f"{measure(peer)}, crossrec {measure(own)} {sure}."
    )


def _listed(names: list[str], most: int = 3) -> str:
    """Return names as a list in a sentence.

    >>> _listed(["a"]), _listed(["a", "b", "c"]), _listed(["a", "b", "c", "d"])
    ('a', 'a; b and c', 'a; b; c and 1 more')
    """
    if len(names) > most:
        return f"{'; '.join(names[:most])} and {len(names) - most} more"
    return " and ".join(filter(None, ["; ".join(names[:-1]), names[-1]]))


def _by_domain(metrics: Metrics) -> str:
    """Say in which domains the model leads; nothing where there is only one."""
    names, behind, doubtful = judged_domains(metrics), [], []
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
        lead = lead_over(metrics, best, domain)
        if lead is not None and not lead.is_ahead:
            doubtful.append(domain)
    if compared < 2:
        return ""
    if not behind:
        every = "both" if compared == 2 else f"all {compared}"
        said = f"crossrec is ahead of every baseline in {every} domains"
        return f"{said}; in {_listed(doubtful)} that could be chance." if doubtful else f"{said}."
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
    return f"Training raised the NDCG from {measure(before)} to {measure(own)}."


def _by_sequence(metrics: Metrics) -> str:
    """Say if the model is no better than itself without its sequence."""
    own, without = ndcg_of(metrics, MODEL), ndcg_of(metrics, WITHOUT_SEQUENCE)
    if own is None or without is None or own >= without:
        return ""
    said = f"Its sequence part did not help: without it, the model has {measure(without)}"
    lead = lead_over(metrics, WITHOUT_SEQUENCE)
    return f"{said}, a difference that could be chance." if lead and lead.high > 0 else f"{said}."


def _in_words(metrics: Metrics) -> str:
    """Say HR as a count that needs no definition."""
    k, best = depth_of(metrics), best_baseline(metrics)
    figures = figures_of(metrics, MODEL)
    if figures is None or f"hr@{k}" not in figures:
        return ""
    said = (
        f"Of 100 lists, {100 * figures[f'hr@{k}']:.0f} have something in their first {k} "
        "that the user really chose next"
    )
    peer = figures_of(metrics, best) if best else None
    return said + (f" (best baseline: {100 * peer[f'hr@{k}']:.0f})." if peer else ".")


def _on_new_items(metrics: Metrics) -> str:
    """Say what the model does with items that nobody has touched, where text alone can help."""
    compared = (metrics.get("comparison_cold_item") or {}).get("untrained_backbone")
    lead = interval_of(compared)
    if lead is None:
        return ""
    if lead.is_ahead or lead.is_behind:
        side = "ahead of" if lead.is_ahead else "behind"
        lead = lead if lead.is_ahead else Interval(-lead.difference, -lead.high, -lead.low)
        return (
            f"On new items crossrec is {side} the untrained backbone by {written(lead)} in HR@50."
        )
    return (
        "On new items crossrec is neither surely ahead of the untrained backbone nor behind: the "
        f"difference in HR@50 is {written(lead)}."
    )


def _caution(metrics: Metrics) -> str:
    """Warn where few pairs were judged."""
    figures = figures_of(metrics, MODEL)
    if figures is None or figures["pairs"] >= FEW_PAIRS:
        return ""
    return f"Only {count(figures['pairs'])} lists could be judged: take these figures as a hint."
