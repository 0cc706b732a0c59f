"""The gate, between evaluate and score: may the night's model take the place of the published one?

It compares the two on the same hold-out, and looks at the night's data. Where something is wrong
the published model stays: the night makes its lists with that one, from the newest events all the
same, and ends with status 3, so that somebody looks.

    runs/<run_id>/gate.json                     what was checked, and what came of it
    runs/<run_id>/metrics.json, report.html     written again, with it

    found = gate(config, store)
    found["keeps"]                              # folder of the model that stays, or None
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from crossrec.config import Config, GateConfig
from crossrec.data.daily import load_activity
from crossrec.data.histories import DomainRange, Prepared, open_prepared
from crossrec.data.rejects import bad_share
from crossrec.data.replay import Activity
from crossrec.evaluate.judged import MODEL, PUBLISHED, lead_over, ndcg_of
from crossrec.evaluate.pipeline import write_report
from crossrec.published import Published, find_published
from crossrec.runlog import log, stage
from crossrec.schema import US_PER_DAY
from crossrec.storage import Store

RECORD = "gate.json"

WEEK = 7
EARLIER_WEEKS = 4
"""What the newest week is held against."""


SAID = {
    "ndcg_loss": "the share of the published model's NDCG@10 that is lost",
    "lead": "the upper end of the 95 % interval of the lead over the published model",
    "volume": "the newest week's events as a share of an ordinary week's",
    "missing_days": "the number of days without events in the newest week",
    "drift": "the change of the domains' shares of the events",
    "rejected": "the share of rejected events",
    "users_growth": "the growth of users since the publication",
    "users_shrinkage": "the shrinkage of users since the publication",
    "items_growth": "the growth of items since the publication",
    "items_shrinkage": "the shrinkage of items since the publication",
    "lost_domains": "the number of published domains that the catalogue lacks",
}
"""What is checked, in words."""


@dataclass(frozen=True)
class Check:
    """Something that was measured, and whether it is as it should be.

    name: of SAID. found: the value; None where there is nothing to measure it by. limit: what it
    may be; is_most: at most that, rather than at least.
    """

    name: str
    found: float | None
    limit: float
    is_most: bool = True

    @property
    def is_passed(self) -> bool:
        """Whether it is within its limit."""
        if self.found is None:
            return True
        return self.found <= self.limit if self.is_most else self.found >= self.limit

    def describe(self) -> dict[str, Any]:
        """Return it for a program, and for the report."""
        return asdict(self) | {"said": SAID[self.name], "is_passed": self.is_passed}

    def complain(self) -> str:
        """Return a sentence on what is wrong."""
        bound = "at most" if self.is_most else "at least"
        return f"{SAID[self.name]} is {self.found:.4g}, expected is {bound} {self.limit:.4g}"


def gate(config: Config, store: Store) -> dict[str, Any]:
    """Run the stage; return what gate.json holds.

    Returns:
        decision: "publish" or "keep". keeps: folder of the model that stays, or None. reasons:
        sentences. alert: whether a person should look. checks: as `Check.describe`. published: the
        run whose publication was compared with, or None.
    """
    run = f"runs/{config.run_id}"
    with stage("gate") as facts:
        metrics: dict[str, Any] = store.read_json(f"{run}/metrics.json")
        summary = store.read_json(f"{run}/prepare.json")
        prepared = open_prepared(store, summary["prepared"])
        published = find_published(config, store)
        checks = [
            *check_model(config.gate, metrics),
            *check_data(config.gate, load_activity(store, prepared), prepared),
            *check_counts(config.gate, summary, published),
        ]
        rests = "rests_on" in store.read_json(f"{run}/finetune.json")
        found = decide(checks, published, prepared, rests)
        store.write_json(f"{run}/{RECORD}", found)
        write_report(metrics | {"gate": found}, store)
        facts |= {"decision": found["decision"], "reasons": found["reasons"]}
    for reason in found["reasons"]:
        log.warning("gate: %s", reason)
    return found | {"seconds": facts["seconds"]}


def decide(
    checks: list[Check], published: Published | None, prepared: Prepared, rests: bool
) -> dict[str, Any]:
    """Return what `gate` does.

    Args:
        checks: of model and data.
        published: what readers follow; None before any publication.
        prepared: the night's input.
        rests: whether the night's model is the published one.
    """
    reasons = [check.complain() for check in checks if not check.is_passed]
    keeps = None
    if reasons and published is not None and not rests:
        if published.domains == tuple(domain.name for domain in prepared.domains):
            keeps = published.model
        else:
            reasons.append(
                "the published model does not know the night's domains, so it cannot stay"
            )
    return {
        "decision": "publish" if keeps is None else "keep",
        "keeps": keeps,
        "reasons": reasons,
        "alert": bool(reasons),
        "checks": [check.describe() for check in checks],
        "published": None if published is None else published.run_id,
    }


def check_model(limits: GateConfig, metrics: Mapping[str, Any]) -> list[Check]:
    """Compare both models on the hold-out: by the mean, and by a paired bootstrap over users."""
    own, before = ndcg_of(metrics, MODEL), ndcg_of(metrics, PUBLISHED)
    if own is None or before is None:
        return []
    lost = (before - own) / before if before else 0.0
    checks = [Check("ndcg_loss", lost, limits.max_ndcg_loss)]
    lead = lead_over(metrics, PUBLISHED)
    if lead is not None:
        # Wholly below 0: the loss is more than chance.
        checks.append(Check("lead", lead.high, 0.0, is_most=False))
    return checks


def check_data(limits: GateConfig, activity: Activity, prepared: Prepared) -> list[Check]:
    """Hold the newest week against the four before it, where the data goes back so far.

    A domain that had no event in the first of them is new, and drifts for nobody.
    """
    night = prepared.as_of_us // US_PER_DAY + 1
    start = night - (EARLIER_WEEKS + 1) * WEEK
    by_domain = np.stack([_daily(activity, start, night, part) for part in prepared.domains])
    newest, earlier = by_domain[:, -WEEK:], by_domain[:, :-WEEK]
    volume = missing = drift = None
    if activity.days.min(initial=night) <= start and earlier.any():
        weeks = earlier.sum(0).reshape(EARLIER_WEEKS, WEEK).sum(1)
        volume = float(newest.sum() / max(np.median(weeks), 1))
        if earlier.any(0).all():
            missing = float((~newest.any(0)).sum())
        is_old = earlier[:, :WEEK].any(1)
        if newest[is_old].any() and earlier[is_old].any():
            shares = [part[is_old].sum(1) / part[is_old].sum() for part in (newest, earlier)]
            drift = float(np.abs(shares[0] - shares[1]).sum() / 2)
    return [
        Check("volume", volume, limits.min_volume, is_most=False),
        Check("missing_days", missing, limits.max_missing_days),
        Check("drift", drift, limits.max_drift),
    ]


def _daily(activity: Activity, start: int, stop: int, domain: DomainRange) -> np.ndarray:
    """Return a domain's events on each day, (stop - start,)."""
    inside = (activity.days >= start) & (activity.days < stop)
    inside &= (activity.rows >= domain.start) & (activity.rows < domain.stop)
    return np.bincount(activity.days[inside] - start, activity.events[inside], stop - start)


def check_counts(
    limits: GateConfig, summary: Mapping[str, Any], published: Published | None
) -> list[Check]:
    """Look at what was rejected, and at what has come and gone since the publication."""
    rows = sum(entry["rows"] for entry in summary["inputs"] if entry["table"] == "events")
    rejected = bad_share(summary["rejects"]["events"], rows) if rows else None
    checks = [Check("rejected", rejected, limits.max_rejected)]
    if published is None:
        return checks
    now = {entry["name"] for entry in summary["domains"]}
    checks.append(Check("lost_domains", float(len({*published.domains} - now)), 0.0))
    for name, before in (("users", published.users), ("items", published.items)):
        growth = summary[name] / max(before, 1) - 1
        checks += [
            Check(f"{name}_growth", growth, limits.max_growth),
            Check(f"{name}_shrinkage", -growth, limits.max_shrinkage),
        ]
    return checks
