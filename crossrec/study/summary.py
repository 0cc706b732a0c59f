"""What a study found, as metrics.json holds it.

    {"seeds": {"seeds": [17, 18, 19], "ndcg@10": {"values", "mean", "deviation"}, "hr@10": {...}},
     "ablation": [{"name", "ndcg@10", "seconds", "comparison": {...}}, ...],
     "transfer": {domain: {"all": T, "0": T, "1-4": T, "5+": T}},
     "backbone": [{"name", "ndcg@10", "seconds", "trained"}, ...]}   # with a backbone that learned
                                                        # also "items_read" and "comparison"

and, of `evaluate.shifts`, "shifts" as `study.robustness` has it; with comparison = the run's model
minus the variant (`evaluate.bootstrap`), and T = {"pairs", "together", "alone", "popularity",
"difference", "low", "high", "better"}: NDCG@10 of the model that knows all domains, of its twin
that knows this one alone, and of the best popularity window; by the events that the users had in
the domain. A part without pairs is None.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from crossrec.config import Config
from crossrec.evaluate.bootstrap import compare
from crossrec.evaluate.metrics import BANDS, bands, number_users
from crossrec.evaluate.pipeline import K
from crossrec.schema import DOMAIN, USER_ID
from crossrec.score.catalogue import WINDOWS_DAYS
from crossrec.study.variants import FROZEN, Variant, backbone_name

NDCG, HR = f"ndcg@{K}", f"hr@{K}"


@dataclass(frozen=True)
class Judged:
    """A judged model.

    pairs: a row a pair with user_id, domain, events_in_domain, NDCG, HR, sorted by pair. seconds:
    of its training, None where it was not trained. trained: weights that learned. items_read: times
    that an item went through a backbone that learns.
    """

    name: str
    pairs: pl.DataFrame
    seconds: float | None = None
    trained: int | None = None
    items_read: int | None = None

    def mean(self, measure: str = NDCG) -> float | None:
        """Return the mean over all pairs; None without pairs."""
        if self.pairs.is_empty():
            return None
        return round(float(self.pairs[measure].to_numpy().mean()), 5)


def summarise(
    config: Config,
    whole: Mapping[str, Judged],
    variants: Sequence[tuple[Variant, Judged]],
    seconds: float,
    trained: int | None = None,
) -> dict[str, Any]:
    """Return the study.

    Args:
        config: of the run.
        whole: the run's model and the systems beside it, by name.
        variants: what was trained beside them.
        seconds: of the training of the run's model.
        trained: weights that learned in it.
    """
    model = whole["model"]
    by_kind: dict[str, list[tuple[Variant, Judged]]] = {}
    for variant, judged in variants:
        by_kind.setdefault(variant.kind, []).append((variant, judged))
    twins = {
        variant.domain.name: judged
        for variant, judged in by_kind.get("domain", [])
        if variant.domain is not None
    }
    parts = [judged for _, judged in by_kind.get("ablation", [])]
    if twins:
        pairs = pl.concat([judged.pairs for judged in twins.values()]).sort(USER_ID, DOMAIN)
        cost = sum(judged.seconds or 0.0 for judged in twins.values())
        parts.append(Judged("without other domains", pairs, round(cost, 2)))
    own = Judged(backbone_name(config), model.pairs, seconds, trained)
    backbones = [own, *(judged for _, judged in by_kind.get("backbone", []))]
    # The frozen one first: before and after.
    backbones.sort(key=lambda judged: judged.name != FROZEN)
    untrained = Judged("untrained backbone", whole["untrained_backbone"].pairs)
    return {
        "seeds": _seeds(config, [model, *(judged for _, judged in by_kind.get("seed", []))]),
        "ablation": [
            _describe(part) | {"comparison": compare_judged(model, part)} for part in parts
        ],
        "transfer": {name: _transfer(name, whole, twin) for name, twin in twins.items()},
        "backbone": [_describe_backbone(model, judged) for judged in (untrained, *backbones)],
    }


def _seeds(config: Config, models: Sequence[Judged]) -> dict[str, Any]:
    found: dict[str, Any] = {"seeds": [config.seed + index for index in range(len(models))]}
    for measure in (NDCG, HR):
        values = [value for judged in models if (value := judged.mean(measure)) is not None]
        if values:
            found[measure] = {
                "values": values,
                "mean": round(float(np.mean(values)), 5),
                "deviation": round(float(np.std(values, ddof=min(1, len(values) - 1))), 5),
            }
    return found


def _describe(judged: Judged) -> dict[str, Any]:
    return {"name": judged.name, NDCG: judged.mean(), "seconds": judged.seconds}


def _describe_backbone(model: Judged, judged: Judged) -> dict[str, Any]:
    found = _describe(judged) | {"trained": judged.trained}
    if judged.items_read:
        found["items_read"] = judged.items_read
        found["comparison"] = compare_judged(judged, model)
    return found


def compare_judged(model: Judged, other: Judged) -> dict[str, float] | None:
    """Return by how much the model is better than another on the pairs of both."""
    both = model.pairs.join(
        other.pairs, on=[USER_ID, DOMAIN], suffix="_other", maintain_order="left"
    )
    beside = {"other": both[f"{NDCG}_other"].to_numpy()}
    return compare(both[NDCG].to_numpy(), beside, number_users(both)).get("other")


def _transfer(domain: str, whole: Mapping[str, Judged], twin: Judged) -> dict[str, Any]:
    """Return what the other domains add in one, to all of its users and by their events there."""
    parts = {"all": pl.lit(True), **bands("events_in_domain", BANDS["events_in_domain"])}
    inside = {
        name: Judged(name, judged.pairs.filter(pl.col(DOMAIN) == domain))
        for name, judged in whole.items()
    }
    return {name: _transfer_part(inside, twin, part) for name, part in parts.items()}


def _transfer_part(
    inside: Mapping[str, Judged], twin: Judged, part: pl.Expr
) -> dict[str, Any] | None:
    model, alone = (
        Judged(judged.name, judged.pairs.filter(part)) for judged in (inside["model"], twin)
    )
    if model.pairs.is_empty():
        return None
    popularity = max(
        Judged(name, inside[name].pairs.filter(part)).mean() or 0.0 for name in WINDOWS_DAYS
    )
    levels = {"together": model.mean(), "alone": alone.mean(), "popularity": popularity}
    return levels | (compare_judged(model, alone) or {})
