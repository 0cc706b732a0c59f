"""Configuration of what lists hold: rules for candidates, and how they are scored."""

import datetime as dt
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from crossrec.config_training import Section, Share

if TYPE_CHECKING:
    import pyarrow.compute as pc

EVERY_DOMAIN = "*"

Condition = tuple[str, str, Any]

Requirement = tuple[str, Literal["<=", ">=", "==", "!="], str]
"""Column of items, operator, column of users: ("min_age", "<=", "age")."""


class CandidateRules(Section):
    """What lists may hold of what their users have not seen: what every rule lets through.

    An item before its `data.available_from` is never shown.
    """

    available_until: str = "available_until"
    """Column of items with the last day, date or timestamp, on which an item can be had; used where
    the table has it."""
    allow: str | None = None
    """Parquet with `item_id` and perhaps `domain`: of the domains that it names (without that
    column: of all) lists hold only these items."""
    deny: str | None = None
    """Parquet with `item_id` and perhaps `domain`: items that no list holds."""
    filters: dict[str, tuple[tuple[Condition, ...], ...]] = Field(default_factory=dict)
    """By domain, or "*" for every domain, what columns of `data.items` must say, as filters of
    pyarrow: [["price", "<", 50], ["category", "not in", ["toys"]]]; of several such lists one must
    be fulfilled. A null fulfils nothing."""
    requires: tuple[Requirement, ...] = ()
    """What items require of their user, each [column of `data.items`, operator, column of
    `data.users`]: ["min_age", "<=", "age"], ["needs_consent", "==", "consent"]; all must hold. A
    null, or a false, of the item requires nothing; a null of the user fulfils nothing, so that
    users whom `data.users` does not name get no item that requires anything."""
    check_texts: bool = False
    """Look for new items whose text is empty, copied, repetitive, overlong or attracts unusually
    many users; until somebody has chosen such an item, one user in fifty may be shown it."""
    max_per: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """By column of `data.items` (brand, category), how many items of one value a list may hold;
    nulls are no value."""

    @field_validator("filters", mode="before")
    @classmethod
    def _one_list_is_the_only_one(cls, filters: Any) -> Any:
        if not isinstance(filters, dict):
            return filters
        return {
            domain: [given] if isinstance(given, list) and _is_condition(given[:1]) else given
            for domain, given in filters.items()
        }

    @model_validator(mode="after")
    def _conditions_are_ones(self) -> "CandidateRules":
        for domain in self.filters:
            try:
                self.conditions(domain)
            except (ValueError, TypeError) as error:
                raise ValueError(f"filters of {domain!r}: {error}") from error
        return self

    def conditions(self, domain: str) -> "pc.Expression":
        """Return the filter of a domain as an expression."""
        return _expression(self.filters[domain])

    def columns(self, domain: str) -> list[str]:
        """Return the columns that the filter of a domain looks at."""
        return sorted({column for every in self.filters[domain] for column, _, _ in every})


def _expression(where: Sequence[Sequence[Condition]]) -> "pc.Expression":
    """Return filters of pyarrow as an expression.

    Raises:
        ValueError: they are none. A text after `in` would be taken for its letters.
    """
    import pyarrow.parquet as pq

    for column, sign, value in (one for every in where for one in every):
        if sign in ("in", "not in") and not isinstance(value, (list, tuple, set)):
            raise ValueError(f'["{column}", "{sign}", ...] needs a list, as ["a", "b"]')
    return pq.filters_to_expression([list(every) for every in where])


def _is_condition(first: list[Any]) -> bool:
    return bool(first and isinstance(first[0], (list, tuple)) and isinstance(first[0][0], str))


class EditorRule(Section):
    """What an editor wants of the items that fulfil a condition, while it is in force."""

    action: Literal["boost", "pin", "exclude"]
    """boost adds `by` to their scores; pin puts them first in every list, in the order of rules,
    but for users who have had them and where another rule forbids them; exclude leaves them out."""
    where: tuple[tuple[Condition, ...], ...]
    """Filters of pyarrow on columns of `data.items`, as in `candidates.filters`."""
    domain: str = EVERY_DOMAIN
    """Whose items are meant; "*": those of every domain."""
    by: Annotated[float, Field(ge=-10, le=10)] = 0.1
    """What a boost adds to scores, which lie tenths apart in a list, or units, as the data are;
    below 0 it lowers."""
    first_day: dt.date | None = None
    """The rule is in force from this day on; default: always."""
    last_day: dt.date | None = None
    """The rule is in force up to this day."""

    @field_validator("where", mode="before")
    @classmethod
    def _one_list_is_the_only_one(cls, given: Any) -> Any:
        return [given] if isinstance(given, list) and _is_condition(given[:1]) else given

    @model_validator(mode="after")
    def _condition_is_one(self) -> "EditorRule":
        try:
            self.condition()
        except (ValueError, TypeError) as error:
            raise ValueError(f"where: {error}") from error
        return self

    def condition(self) -> "pc.Expression":
        """Return the condition as an expression."""
        return _expression(self.where)

    def columns(self) -> list[str]:
        """Return the columns that the condition looks at."""
        return sorted({column for every in self.where for column, _, _ in every})


class ScoreConfig(Section):
    """Scoring."""

    mode: Literal["full", "incremental"] = "full"
    """incremental, between full nights: model, catalogue, items' state and rules stay those of the
    last full night; only users with new events are scored, the other lists are taken over."""
    top_k: Annotated[int, Field(ge=1, le=10_000)] = 50
    """Items a list at most."""
    new_share: Share = 0.2
    """Share of a list's places, never of its first ten, for items that nobody has touched yet."""
    popularity_control: Share = 0.0
    """How much items pay for being shown often: 0, nothing; 1, a price at which all items of a
    domain would be shown about alike. What that costs, `evaluate.steering` tells."""
    diversity: Share = 0.0
    """How much items of a list shall differ in their texts: 0, by score alone; 1, as much as they
    can. A list is then chosen from the best, four times as many as it holds."""
    precision: Literal["fp32", "bf16", "int8"] = "fp32"
    """Of the item matrices by which the best items are found: bf16 and int8, of which each scoring
    process holds a copy, may miss items whose scores hardly differ from the last of a list. Scores
    are fp32 in any case."""
    encoder: Literal["full", "small"] = "full"
    """By which histories are read: the model's own encoder, or a shallow one that finetune then
    distils from it, faster and a little less exact; a model without one is scored with its own."""
    explain: Annotated[int, Field(ge=0, le=20)] = 0
    """For each listed item the items of the user's own history that raised its score most, at most
    so many, of any domain, in a column `because`; 0: no such column."""
    domains: tuple[str, ...] | None = None
    """Domains to publish lists for; default: all of the catalogue."""
    model: str | None = None
    """Model id under `models/` to score with; default: this run's model, else the published one."""
    candidates: CandidateRules = Field(default_factory=CandidateRules)
    """Which items lists may hold."""
    rules: tuple[EditorRule, ...] = ()
    """What editors want of some items: boosted, pinned or left out. The first of equal rank in this
    list comes first."""
    num_actors: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Scoring actors; default: one a GPU, else one of a single thread for every CPU but two. Fewer
    have more threads each, and need less memory."""

    @model_validator(mode="after")
    def _pins_stay_first(self) -> "ScoreConfig":
        if self.diversity and any(rule.action == "pin" for rule in self.rules):
            raise ValueError("score.diversity would move what score.rules pins; give one of them")
        return self
