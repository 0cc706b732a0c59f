"""How the report reads metrics.json: who was judged, in what order, and with what result.

In: what metrics.json holds, also as older versions wrote it: every key may be missing or null. Out:
figures, or None where there are none.

>>> metrics = {"k": 10, "systems": {
...     "als": {"all": {"pairs": 9, "ndcg@10": 0.2}},
...     "model": {"all": {"pairs": 9, "ndcg@10": 0.1}}}}
>>> judged_systems(metrics), best_baseline(metrics), ndcg_of(metrics, "als")
(['model', 'als'], 'als', 0.2)
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from crossrec.model.fusion import WITHOUT_RELATIONS

Metrics = Mapping[str, Any]
"""What metrics.json holds."""

MODEL = "model"
WITHOUT_SEQUENCE = "without_sequence"
STEP_0 = "step0"
PUBLISHED = "published"
"""The model that readers follow while the run's own is judged."""
FULL_ENCODER = "full_encoder"
"""The model with its own encoder, where it is scored by the small one."""
OWN = (MODEL, PUBLISHED, FULL_ENCODER, WITHOUT_SEQUENCE, WITHOUT_RELATIONS, STEP_0)
"""The model, the one before it, and what is left of it without a part: shown beside it, but no
baselines."""

NAMES = {
    MODEL: "crossrec",
    PUBLISHED: "the published model",
    FULL_ENCODER: "with its whole encoder",
    WITHOUT_SEQUENCE: "without the sequence",
    WITHOUT_RELATIONS: "without the relations",
    STEP_0: "before training",
    "untrained_backbone": "untrained backbone",
    "popularity_all": "popularity, all time",
    "popularity_30d": "popularity, 30 days",
    "popularity_7d": "popularity, 7 days",
    "item_knn": "item-kNN",
    "als": "ALS",
    "item_knn_all_domains": "item-kNN, all domains",
    "als_all_domains": "ALS, all domains",
}


class Interval(NamedTuple):
    """A difference in favour of the model, and its 95 % interval."""

    difference: float
    low: float
    high: float

    @property
    def is_ahead(self) -> bool:
        """Whether the whole interval is above 0."""
        return self.low > 0

    @property
    def is_behind(self) -> bool:
        """Whether the whole interval is below 0."""
        return self.high < 0


def name_of(system: str) -> str:
    """Return what a person calls a system; a system without a name goes by its key.

    >>> name_of("popularity_7d"), name_of("mine")
    ('popularity, 7 days', 'mine')
    """
    return NAMES.get(system, system)


def depth_of(metrics: Metrics) -> int:
    """Return the k of the verdict."""
    return int(metrics.get("k") or 10)


def figures_of(
    metrics: Metrics, system: str, part: str = "all", inside: str = ""
) -> dict[str, Any] | None:
    """Return a system's figures in a part, or None without pairs.

    Args:
        metrics: what metrics.json holds.
        system: its key.
        part: "all", a slice, "domain", or what is cut into bands.
        inside: the domain or the band, where the part has several.
    """
    found = ((metrics.get("systems") or {}).get(system) or {}).get(part)
    if inside:
        found = (found or {}).get(inside)
    return found if found and found.get("pairs") else None


def ndcg_of(metrics: Metrics, system: str, part: str = "all", inside: str = "") -> float | None:
    """Return a system's NDCG@k in a part, or None without pairs."""
    figures = figures_of(metrics, system, part, inside)
    return None if figures is None else figures.get(f"ndcg@{depth_of(metrics)}")


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


def baselines_of(metrics: Metrics) -> list[str]:
    """Return the judged systems that are no part of the model, best first."""
    return [system for system in judged_systems(metrics) if system not in OWN]


def parts_of(metrics: Metrics, part: str) -> list[str]:
    """Return the domains or bands that have figures, in the order in which systems name them."""
    names: dict[str, None] = {}
    for system in judged_systems(metrics):
        names |= dict.fromkeys(metrics["systems"][system].get(part) or {})
    return list(names)


def judged_domains(metrics: Metrics) -> list[str]:
    """Return the domains that have figures."""
    return parts_of(metrics, "domain")


def best_baseline(metrics: Metrics, part: str = "all", inside: str = "") -> str | None:
    """Return the baseline with the highest NDCG; the model without a part counts as none."""
    scored = {
        system: value
        for system in baselines_of(metrics)
        if (value := ndcg_of(metrics, system, part, inside)) is not None
    }
    return max(scored, key=lambda system: scored[system]) if scored else None


def pairs_of(metrics: Metrics, part: str, inside: str = "") -> int:
    """Return the number of judged lists in a part."""
    systems = judged_systems(metrics)
    found = [figures_of(metrics, system, part, inside) for system in systems]
    return max((int(figures["pairs"]) for figures in found if figures), default=0)


def lead_over(metrics: Metrics, system: str | None, domain: str = "") -> Interval | None:
    """Return by how much the model is ahead of a system in NDCG@k, if that was compared.

    In all lists, or in those of a domain.
    """
    compared = metrics.get("comparison")
    if domain:
        compared = (metrics.get("comparison_by_domain") or {}).get(domain)
    return interval_of((compared or {}).get(system))


def interval_of(compared: Mapping[str, Any] | None) -> Interval | None:
    """Return the difference and its interval, or None if one of them is missing."""
    values = [(compared or {}).get(name) for name in Interval._fields]
    return None if None in values else Interval(*(float(value or 0.0) for value in values))


def study_of(metrics: Metrics, name: str) -> Any:
    """Return what a longer study found, or None if it did not run."""
    return (metrics.get("study") or {}).get(name) or None


def by_number(bands: Iterable[str]) -> list[str]:
    """Return bands of a count in its order; what has no number stands first.

    >>> by_number(["10-19", "5-9", "50+", "1", "all"])
    ['all', '1', '5-9', '10-19', '50+']
    """

    def start(band: str) -> int:
        digits = band.split("-")[0].rstrip("+")
        return int(digits) if digits.isdecimal() else -1

    return sorted(bands, key=start)
