"""Whether the rules of `score` can be what they say, before a night does any work.

In: the config, and the files of its input, of which only the columns are read that rules look at.
Out: nothing, or the user's mistake.

    check_rules(config, list_inputs(config))             # in seconds, before prepare
    check_rules(config, pins.inputs, prepared_day)       # rules with days, once the day is known

Domains, columns and their types, files of `allow` and `deny`, and items that are pinned by their id
but do not exist. Rules that are not in force are held to all but the last.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from crossrec.config import Config
from crossrec.config_score import EVERY_DOMAIN, EditorRule
from crossrec.data.attributes import check_names, code_values, fulfils, read_tables
from crossrec.data.candidates import SECTION, check_list, find_lists, is_available
from crossrec.data.editors import is_active
from crossrec.data.inputs import Input, read_footers
from crossrec.data.requires import check_requires
from crossrec.errors import ConfigError, explain
from crossrec.schema import DOMAIN, ITEM_ID

RULES = "score.rules"


@dataclass
class Asked:
    """A condition on items: the config's key that has it, and whose items it means.

    pinned: items that it names one by one to pin them, without those that are found.
    """

    where: str
    domain: str
    columns: list[str]
    condition: pc.Expression
    pinned: set[str] = field(default_factory=set)


def check_rules(config: Config, inputs: Mapping[str, Input], day: int | None = None) -> None:
    """Raise what is wrong with `score.candidates` and `score.rules`.

    Args:
        config: of the run.
        inputs: the tables of the input, by name.
        day: that is predicted; None, not known yet: what rules with days pin is not looked at.

    Raises:
        ConfigError: a rule names a domain, a column or an item that is not there, or cannot be held
            against its columns.
        InputError: a file cannot be used.
    """
    rules, items = config.score.candidates, inputs["items"]
    if rules.requires:
        check_requires(rules.requires, items, inputs["users"])
    for source in find_lists(config).values():
        check_list(source)
    asked = _asked(config, day)
    for one in asked:
        check_names(items, one.columns, one.where)
    check_names(items, list(rules.max_per), f"{SECTION}.max_per")
    _check_types(config, items)
    if asked:
        _scan(items, asked)


def _asked(config: Config, day: int | None) -> list[Asked]:
    rules = config.score.candidates
    filters = [
        Asked(f"{SECTION}.filters.{name}", name, rules.columns(name), rules.conditions(name))
        for name in rules.filters
    ]
    edits = [
        Asked(f"{RULES}.{number}", rule.domain, rule.columns(), rule.condition())
        for number, rule in enumerate(config.score.rules)
    ]
    for one, rule in zip(edits, config.score.rules, strict=True):
        if rule.action == "pin" and _is_in_force(rule, day):
            one.pinned = _named(rule)
    return filters + edits


def _is_in_force(rule: EditorRule, day: int | None) -> bool:
    if day is None:
        return rule.first_day is None and rule.last_day is None
    return is_active(rule, day)


def _named(rule: EditorRule) -> set[str]:
    """Return the items that a rule names one by one."""
    found: set[str] = set()
    for column, sign, value in (one for every in rule.where for one in every):
        if column == ITEM_ID and sign in ("=", "==", "in"):
            found |= set(map(str, value)) if sign == "in" else {str(value)}
    return found


def _check_types(config: Config, items: Input) -> None:
    """Look at the types of columns that are no part of a condition."""
    rules = config.score.candidates
    columns = [*rules.max_per, rules.available_until]
    for footer in read_footers(items, columns):
        for name, kind in footer.types.items():
            of_dictionary = kind.value_type if pa.types.is_dictionary(kind) else kind
            none = pa.chunked_array([], of_dictionary)
            if name in rules.max_per:
                code_values(none, {}, f"{SECTION}.max_per.{name}")
            if name == rules.available_until:
                is_available(pa.table({name: none}), name, items, 0)


def _scan(items: Input, asked: list[Asked]) -> None:
    """Hold all conditions against the items; raise where one cannot be, or pins what is not."""
    columns = dict.fromkeys([ITEM_ID, DOMAIN, *(name for one in asked for name in one.columns)])
    domains: set[str] = set()
    for table in read_tables(items, list(columns)):
        domains |= set(table.column(DOMAIN).unique().to_pylist()) - {None, ""}
        for one in asked:
            fulfils(table, one.condition, one.where)
            if one.pinned:
                is_its = pc.is_in(table.column(ITEM_ID), pa.array(one.pinned, pa.large_string()))
                if one.domain != EVERY_DOMAIN:
                    is_its = pc.and_(is_its, pc.equal(table.column(DOMAIN), one.domain))
                one.pinned -= set(table.column(ITEM_ID).filter(is_its).to_pylist())
    known = [*sorted(domains), EVERY_DOMAIN]
    for one in asked:
        if one.domain not in known:
            raise ConfigError(explain(one.where, f"one of {known}", one.domain, "check the name"))
        if one.pinned:
            whose = "" if one.domain == EVERY_DOMAIN else f" of {one.domain!r}"
            missing = ", ".join(sorted(one.pinned)[:5])
            mend = "correct the rule, give it a last_day, or take it out"
            raise ConfigError(explain(one.where, f"items{whose} to pin", f"no {missing}", mend))
