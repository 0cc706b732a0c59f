"""Editors' rules (`score.rules`) on the catalogue: what is raised, pinned or left out.

In: the rules, the items' files, the day. Out, where there are rules, for every domain:

    runs/<run_id>/candidates/edits/domain=<d>.parquet     one row an item, in catalogue order:
        added     float32, what the rules add to the item's score for everybody
        place     int32, from 1 where the item is pinned, in the order of the rules; else 0

    excluded = write_edits(rules, store, index, source, (folder, day))
    edits = read_edits(store, folder, "shop")       # None where the run has no rules

A pin is an addition so great that the item comes first wherever a list may hold it: never where the
user has had it or another rule forbids it, and top-K stays exact.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crossrec.config_score import EVERY_DOMAIN, EditorRule
from crossrec.data.attributes import check_names, first_places, fulfils, read_tables, rows_of
from crossrec.data.events import ItemIndex
from crossrec.data.hashing import Array
from crossrec.data.inputs import Input
from crossrec.errors import ConfigError, explain
from crossrec.runlog import log
from crossrec.schema import DOMAIN, ITEM_ID, domain_folder
from crossrec.storage import Store

MOST_PINNED = 10
"""Items of a domain: more are no pins but another list."""

PIN, PIN_STEP = 1e6, 1e4
"""Added to the score of a pinned item, and how much more to the one before it: scores are of the
size of cosines, or of ratings, which some give out of a hundred or a thousand."""

EPOCH_DAY = np.datetime64("1970-01-01", "D")


@dataclass(frozen=True)
class Edits:
    """A domain's items (I,): added float32, what rules add to scores; place int32, 0 unpinned."""

    added: Array
    place: Array

    @property
    def pinned(self) -> Array:
        """Rows that are pinned, in their order."""
        rows = np.flatnonzero(self.place)
        ordered: Array = rows[np.argsort(self.place[rows])]
        return ordered


def is_active(rule: EditorRule, day: int) -> bool:
    """Whether a rule holds on a day since 1970."""
    date = (EPOCH_DAY + day).astype(object)
    begun = rule.first_day is None or rule.first_day <= date
    return begun and (rule.last_day is None or date <= rule.last_day)


def write_edits(
    rules: Sequence[EditorRule], store: Store, index: ItemIndex, source: Input, at: tuple[str, int]
) -> Array:
    """Apply the rules that hold, write what they say, and return which items they leave out.

    Args:
        rules: of `score.rules`.
        store: of the run.
        index: of the catalogue.
        source: the items' files.
        at: folder of the candidates, and the day that is predicted.

    Raises:
        ConfigError: a rule names what is not there, cannot be computed, or pins too many.
    """
    folder, day = at
    held = _matches(rules, index, source)
    size = int(index.starts[-1])
    excluded, added = np.zeros(size, bool), np.zeros(size, np.float32)
    pinned: list[Array] = []
    for number, (rule, found) in enumerate(zip(rules, held, strict=True)):
        is_on = is_active(rule, day)
        said = f"{int(found.sum()):,} items" if is_on else "not in force"
        log.info("score: score.rules.%s, %s: %s", number, rule.action, said)
        if not is_on:
            continue
        if rule.action == "exclude":
            excluded |= found
        elif rule.action == "boost":
            added[found] += np.float32(rule.by)
        else:
            pinned.append(np.flatnonzero(found))
    rows = np.concatenate([np.zeros(0, np.int64), *pinned])
    rows = rows[np.sort(np.unique(rows, return_index=True)[1])]
    rows = rows[~excluded[rows]]
    bounds = itertools.pairwise(index.starts.tolist())
    for name, (start, stop) in zip(index.domains, bounds, strict=True):
        place = np.zeros(stop - start, np.int32)
        own = rows[(rows >= start) & (rows < stop)] - start
        if len(own) > MOST_PINNED:
            expected = f"at most {MOST_PINNED} items pinned in {name!r}"
            mend = "narrow the conditions, or boost them"
            raise ConfigError(explain("score.rules", expected, f"{len(own):,}", mend))
        place[own] = np.arange(1, len(own) + 1)
        of_domain = added[start:stop]
        of_domain[own] += np.float32(PIN) + np.float32(PIN_STEP) * np.arange(len(own), 0, -1)
        table = pa.table({"added": of_domain, "place": place})
        store.write_parquet(_path(folder, name), table)
    return excluded


def read_edits(store: Store, folder: str, domain: str) -> Edits | None:
    """Return what `write_edits` wrote of a domain, if anything."""
    path = _path(folder, domain)
    if not store.exists(path):
        return None
    table = store.read_parquet(path)
    return Edits(*(table.column(name).to_numpy() for name in ("added", "place")))


def _path(folder: str, domain: str) -> str:
    return f"{folder}/edits/{domain_folder(domain)}.parquet"


def _matches(rules: Sequence[EditorRule], index: ItemIndex, source: Input) -> list[Array]:
    """Return which items each rule speaks of, (I,) bool."""
    names = [*index.domains, EVERY_DOMAIN]
    for number, rule in enumerate(rules):
        if rule.domain not in names:
            where = f"score.rules.{number}.domain"
            raise ConfigError(explain(where, f"one of {names}", rule.domain, "check the name"))
        check_names(source, rule.columns(), f"score.rules.{number}.where")
    columns = list(dict.fromkeys([ITEM_ID, DOMAIN, *(c for rule in rules for c in rule.columns())]))
    size = int(index.starts[-1])
    known = np.zeros(size, bool)
    held = [np.zeros(size, bool) for _ in rules]
    for table in read_tables(source, columns):
        rows = rows_of(table, index)
        # Of equal keys the first row counts, as in the catalogue.
        places = first_places(rows, known)
        table, rows = table.take(pa.array(places)), rows[places]
        in_domain = table.column(DOMAIN)
        for number, (rule, found) in enumerate(zip(rules, held, strict=True)):
            fits = fulfils(table, rule.condition(), f"score.rules.{number}.where")
            if rule.domain != EVERY_DOMAIN:
                fits &= pc.equal(in_domain, rule.domain).to_numpy()
            found[rows] = fits
    return held
