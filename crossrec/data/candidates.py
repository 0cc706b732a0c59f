"""Which items lists may hold tonight, by the rules of `score.candidates`.

In: the rules, the items' files and the Parquet of `allow` and `deny`. Out, for every domain:

    runs/<run_id>/candidates/domain=<d>.parquet     one row an item, in the order of the catalogue:
        allowed         bool
        group.<column>  int32, for each of `max_per`: equal numbers are equal values, -1 is none
        requires        int32, where there is `requires`: what it requires, by a number
        limited         bool, where there is `check_texts`: whether few users may be shown it
    runs/<run_id>/candidates/rules.json             `max_per`, and what the numbers mean

    write_candidates(config, store, prepared, rules_of(config, store), day)
    found = read_candidates(store, "runs/2014-06-08/candidates", "shop")
    found.allowed.sum(), found.groups["brand"]

Scoring leaves out the others; publication holds every list against the same file.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crossrec.config import CandidateRules, Config
from crossrec.config_score import EVERY_DOMAIN
from crossrec.data.attributes import (
    NO_VALUE,
    code_values,
    first_places,
    fulfils,
    read_tables,
    rows_of,
)
from crossrec.data.editors import write_edits
from crossrec.data.events import ItemIndex, index_items
from crossrec.data.hashing import Array
from crossrec.data.histories import Prepared, catalogue_path
from crossrec.data.inputs import (
    Input,
    check_column,
    key_of,
    list_input,
    read_footers,
)
from crossrec.data.items import first_days
from crossrec.data.kinds import is_text
from crossrec.data.pins import pin_inputs
from crossrec.data.requires import Requires, RequiresCoder, check_requires
from crossrec.data.texts import FINDINGS
from crossrec.errors import ConfigError, InputError, explain
from crossrec.runlog import log
from crossrec.schema import DOMAIN, ITEM_ID, domain_folder
from crossrec.storage import Store

SECTION = "score.candidates"

RULES = "rules.json"
"""Written last."""


@dataclass(frozen=True)
class Candidates:
    """The rules applied to a domain of I items.

    allowed: (I,) bool, whether lists may hold the item. groups: by column of `max_per`, (I,) int32
    codes of values, NO_VALUE where there is none. most: by the same columns, how many items of one
    value a list may hold. requires: what items require of their user, where any rule asks. limited:
    (I,) bool, which items are for users on trial alone (`data.texts`), where texts are looked at.
    """

    allowed: Array
    groups: Mapping[str, Array] = field(default_factory=dict)
    most: Mapping[str, int] = field(default_factory=dict)
    requires: Requires | None = None
    limited: Array | None = None


@dataclass(frozen=True)
class FoundRules:
    """The rules, and what they name: files of `allow` and `deny`, of the items and the users."""

    rules: CandidateRules
    lists: Mapping[str, Input]
    items: Input
    users: Input | None = None

    def public(self) -> dict[str, Any]:
        """Return what a plan says of them: other rules, or other files, are another plan."""
        files = {
            name: [[file.uri, file.bytes, file.version] for file in source.files]
            for name, source in self.lists.items()
        }
        said = self.rules.model_dump(mode="json")
        # What is not asked for is not there: plans stay what they were. Users' columns are read
        # anew by incremental nights, too.
        later = {name: said.pop(name) for name in ("requires", "check_texts")}
        return {**said, **{name: rule for name, rule in later.items() if rule}, "files": files}


def rules_of(config: Config, store: Store) -> FoundRules:
    """Find the files that the rules name.

    Raises:
        InputError: one is not there, or an items' file is not what the run began with.
        ConfigError: columns of `requires` are not there, or cannot be held against each other.
    """
    rules, inputs = config.score.candidates, pin_inputs(config, store).inputs
    if rules.requires:
        check_requires(rules.requires, inputs["items"], inputs["users"])
    return FoundRules(rules, find_lists(config), inputs["items"], inputs.get("users"))


def find_lists(config: Config) -> dict[str, Input]:
    """Return the files of `allow` and `deny`, of those that are given."""
    rules = config.score.candidates
    return {
        name: list_input(f"{SECTION}.{name}", uri, config.storage.options)
        for name, uri in (("allow", rules.allow), ("deny", rules.deny))
        if uri is not None
    }


def write_candidates(
    config: Config, store: Store, prepared: Prepared, found: FoundRules, day: int
) -> str:
    """Apply the rules as of a day, once a run, and return the folder of what was found.

    Where texts are to be looked at, texts.FINDINGS is there already.

    Raises:
        ConfigError: a rule names a column or a domain that is not there, or cannot be computed.
        InputError: a file cannot be used.
    """
    folder = f"runs/{config.run_id}/candidates"
    if store.exists(f"{folder}/{RULES}"):
        # The plan has seen to it that the rules are the same.
        return folder
    rules, names = found.rules, [domain.name for domain in prepared.domains]
    unknown = sorted(set(rules.filters) - {*names, EVERY_DOMAIN})
    if unknown:
        where, mend = f"{SECTION}.filters", "check the names"
        raise ConfigError(explain(where, f"some of {names}", f"{unknown}", mend))
    # Not the texts, which are most of a catalogue.
    columns = [ITEM_ID, "available_day"]
    paths = [catalogue_path(prepared.folder, name) for name in names]
    catalogue = pa.concat_tables(store.read_parquet(path, columns) for path in paths)
    starts = np.array([0, *(domain.stop for domain in prepared.domains)])
    ids = catalogue.column(ITEM_ID).cast(pa.large_string()).combine_chunks()
    index = index_items(tuple(names), starts, ids)
    from_day = catalogue.column("available_day").fill_null(day).to_numpy()
    allowed = from_day <= day
    for name, source in found.lists.items():
        named, limited = _read_list(source, index)
        allowed &= (named | ~limited) if name == "allow" else ~named
    read = _read_items(found.items, rules, index, day)
    allowed &= read.allowed
    findings = store.read_parquet(f"{folder}/{FINDINGS}") if rules.check_texts else None
    if config.score.rules:
        allowed &= ~write_edits(config.score.rules, store, index, found.items, (folder, day))
    for name, (start, stop) in zip(names, itertools.pairwise(starts.tolist()), strict=True):
        kept, items = int(allowed[start:stop].sum()), stop - start
        if kept < items:
            log.info("score: %s of %s items of %r are candidates", f"{kept:,}", f"{items:,}", name)
        applied = {"allowed": allowed[start:stop]}
        applied |= {f"group.{column}": codes[start:stop] for column, codes in read.groups.items()}
        if read.requires:
            codes = applied["requires"] = read.requires.codes[start:stop]
            asking = int((codes > 0).sum())
            log.info("score: %s items of %r require something of users", f"{asking:,}", name)
        if findings is not None:
            rows = findings.filter(pc.field(DOMAIN) == name).column("row").to_numpy()
            applied["limited"] = np.isin(np.arange(items), rows)
        store.write_parquet(f"{folder}/{domain_folder(name)}.parquet", pa.table(applied))
    said: dict[str, Any] = {"max_per": rules.max_per}
    if read.requires:
        conditions, kinds = read.requires.conditions, read.requires.kinds
        said["requires"] = {"conditions": conditions, "kinds": kinds}
    store.write_json(f"{folder}/{RULES}", said)
    return folder


def read_candidates(store: Store, folder: str, domain: str) -> Candidates:
    """Return what `write_candidates` found of a domain."""
    table = store.read_parquet(f"{folder}/{domain_folder(domain)}.parquet")
    rules = store.read_json(f"{folder}/{RULES}")
    most, requires = rules["max_per"], None
    groups = {name: table.column(f"group.{name}").to_numpy() for name in most}
    if told := rules.get("requires"):
        conditions, kinds = (tuple(map(tuple, told[name])) for name in ("conditions", "kinds"))
        requires = Requires(table.column("requires").to_numpy(), conditions, kinds)
    limited = table.column("limited").to_numpy() if "limited" in table.column_names else None
    return Candidates(table.column("allowed").to_numpy(), groups, most, requires, limited)


def check_list(source: Input) -> bool:
    """Return whether a file of `allow` or `deny` speaks of domains; raise where it has no ids."""
    footers = read_footers(source, [ITEM_ID, DOMAIN])
    check_column(source, footers, ITEM_ID, "string")
    with_domain = any(DOMAIN in footer.types for footer in footers)
    if with_domain:
        check_column(source, footers, DOMAIN, "string")
    return with_domain


def _read_list(source: Input, index: ItemIndex) -> tuple[Array, Array]:
    """Return which items a file of `allow` or `deny` names, and which lie in domains it speaks of.

    Both (I,) bool. A file without a column `domain` speaks of all.
    """
    with_domain = check_list(source)
    size = int(index.starts[-1])
    named, limited, unknown = np.zeros(size, bool), np.full(size, not with_domain), 0
    for table in read_tables(source, [ITEM_ID, DOMAIN] if with_domain else [ITEM_ID]):
        by_domain = [table] if with_domain else [_as_of(table, name) for name in index.domains]
        rows = np.stack([rows_of(keys, index) for keys in by_domain])
        named[rows[rows >= 0]] = True
        unknown += int((rows < 0).all(0).sum())
        for domain in pc.unique(by_domain[0].column(DOMAIN)).to_pylist():
            if domain in index.domains:
                place = index.domains.index(domain)
                limited[index.starts[place] : index.starts[place + 1]] = True
    said = f"{int(named.sum()):,} items of the catalogue, and {unknown:,} that it does not have"
    log.info("score: %s names %s", key_of(source.table), said)
    return named, limited


def _as_of(table: pa.Table, domain: str) -> pa.Table:
    column = pa.array([domain], pa.large_string()).take(pa.array(np.zeros(len(table), np.int64)))
    return table.append_column(DOMAIN, column)


def _read_items(source: Input, rules: CandidateRules, index: ItemIndex, day: int) -> Candidates:
    """Apply the rules that look at columns of the items."""
    filters = {name: rules.conditions(name) for name in rules.filters}
    asked = {
        column: f"{SECTION}.filters.{name}" for name in filters for column in rules.columns(name)
    }
    asked |= dict.fromkeys(rules.max_per, f"{SECTION}.max_per")
    columns = [*asked, *(name for name, _, _ in rules.requires), rules.available_until]
    footers = read_footers(source, columns)
    there = {name for footer in footers for name in footer.types}
    for column, where in asked.items():
        if column not in there:
            mend = "check the name"
            expected = f"a column of data.items ({source.store.uri()})"
            raise ConfigError(explain(where, expected, column, mend))
    size = int(index.starts[-1])
    allowed, known = np.ones(size, bool), np.zeros(size, bool)
    groups = {column: np.full(size, NO_VALUE, np.int32) for column in rules.max_per}
    values: dict[str, dict[str, int]] = {column: {} for column in rules.max_per}
    coder, kinds = RequiresCoder(rules.requires), np.zeros(size, np.int32)
    if not there:
        return Candidates(allowed, groups, rules.max_per)
    for table in read_tables(source, [ITEM_ID, DOMAIN, *sorted(there)]):
        rows = rows_of(table, index)
        # Of equal keys the first row counts, as in the catalogue.
        places = first_places(rows, known)
        table, rows = table.take(pa.array(places)), rows[places]
        fits = is_available(table, rules.available_until, source, day)
        for name, condition in filters.items():
            in_domain = pc.equal(table.column(DOMAIN), name).to_numpy()
            concerned = np.full(len(rows), True) if name == EVERY_DOMAIN else in_domain
            fits &= fulfils(table, condition, f"{SECTION}.filters.{name}") | ~concerned
        allowed[rows] = fits
        for column, codes in groups.items():
            where = f"{SECTION}.max_per.{column}"
            codes[rows] = code_values(table.column(column), values[column], where)
        if rules.requires:
            kinds[rows] = coder.code(table)
    requires = Requires(kinds, coder.conditions, coder.kinds) if rules.requires else None
    return Candidates(allowed, groups, rules.max_per, requires)


def is_available(table: pa.Table, column: str, source: Input, day: int) -> Array:
    """Return which items can still be had, (N,) bool; where nothing is said, they can."""
    if column not in table.column_names:
        return np.ones(len(table), bool)
    moments = table.column(column)
    kind = moments.type
    if not (pa.types.is_temporal(kind) or pa.types.is_null(kind) or is_text(kind)):
        expected = f"a column {column} of dates or timestamps"
        mend = f"export it as date, or change {SECTION}.available_until"
        raise InputError(explain(source.store.uri(), expected, str(kind), mend))
    last = first_days(moments.cast(pa.large_string()))
    is_over: Array = pc.less(last, day).fill_null(False).to_numpy()
    return ~is_over
