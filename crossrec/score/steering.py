"""What lists are steered by beside the scores: less popular items, and items that differ.

    steering = Steering(popularity_control=0.5)
    steered = Steered({"model": steering}, read_prices(store, "runs/2014-06-08/items"))

Every item has a price (`score.prices`), and `popularity_control` times it is taken off the item's
score for everybody: one more product of a user's and an item's column, so that top-K stays exact.
`diversity` then orders a shortlist anew (`score.diverse`). A list's scores are what it is ordered
by, so they never rise within it; they are no probabilities and no ratings any more.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from safetensors.torch import load
from torch import Tensor

from crossrec.config_score import ScoreConfig
from crossrec.storage import Store

PRICES = "prices.safetensors"
"""Beside the item side of all scores: a price (items,) for each domain, by its number."""


@dataclass(frozen=True)
class Steering:
    """How lists are steered; by default they are not."""

    popularity_control: float = 0.0
    diversity: float = 0.0
    is_edited: bool = False

    @classmethod
    def of(cls, config: ScoreConfig) -> "Steering":
        """Return what the config asks for."""
        is_edited = any(rule.action != "exclude" for rule in config.rules)
        return cls(config.popularity_control, config.diversity, is_edited)

    @property
    def is_on(self) -> bool:
        """Whether lists are not those of the scores alone."""
        return self.popularity_control > 0 or self.diversity > 0 or self.is_edited

    def public(self) -> dict[str, Any]:
        """Return what a plan says of it: of editors' rules, only where there are some."""
        return {name: value for name, value in vars(self).items() if value or name != "is_edited"}

    def describe(self) -> dict[str, Any]:
        """Return what published scores mean, for who reads them."""
        parts = ["the model's score"]
        if self.is_edited:
            parts.append("plus what editors' rules add")
        if self.popularity_control:
            parts.append("less what the item pays for being shown often")
        if self.diversity:
            parts.append("less what it is like the items above it")
        meaning = f"{', '.join(parts)}: what the list is ordered by, higher is better within it"
        return {"meaning": meaning, "unit": "none", **self.public()}


@dataclass(frozen=True)
class Steered:
    """How the lists of systems are steered: those of a system that is not named are not.

    A named system scores as "model" does. prices: (items,) float32 by domain, where any list is
    controlled. added: the same, what editors' rules add to scores.
    """

    by_system: Mapping[str, Steering] = field(default_factory=dict)
    prices: Mapping[str, Tensor] = field(default_factory=dict)
    added: Mapping[str, Tensor] = field(default_factory=dict)

    def of(self, system: str) -> tuple[str, Steering]:
        """Return which system's scores make the lists of a system, and how they are steered."""
        steering = self.by_system.get(system)
        return (system, Steering()) if steering is None else ("model", steering)


def read_prices(store: Store, items: str) -> dict[int, Tensor]:
    """Return the prices by the number of their domain, from the folder of the item side."""
    found = load(store.read_bytes(f"{items}/{PRICES}"))
    return {int(name): prices for name, prices in found.items()}
