"""Shifted inputs: what prepare wrote with one thing gone wrong, drawn from a seed.

    shifted = write_shifted(store, prepared, Shift("wrong", domain, 17, start, stop), folder)

translated: in the texts of a domain each word becomes a made-up one, always the same: no language
that any backbone has read, in place of a translation. truncated: of each text of a domain its first
CHARACTERS are left. shock: SHOCK_ITEMS items of a domain that few had take SHOCK_SHARE of its
events from SHOCK_DAYS before the first judged day on, in the judged days too. wrong: WRONG_SHARE of
all known events are with any item of their domain. scarce: of a domain's known events SCARCE_EVENTS
are left. Days that are judged stay as they are, but for the shock.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crossrec.config import ShiftName
from crossrec.data.daily import load_activity
from crossrec.data.grouping import to_histories
from crossrec.data.hashing import Array
from crossrec.data.histories import (
    FORMAT,
    SUMMARY,
    DomainRange,
    Prepared,
    activity_path,
    catalogue_path,
    histories_path,
    open_prepared,
    read_catalogue,
    read_histories,
)
from crossrec.data.relations import relations_path
from crossrec.data.tasks import run_tasks
from crossrec.data.view import view_activity
from crossrec.schema import EVENT_VALUES, US_PER_DAY, USER_ID
from crossrec.storage import Store

NAMES: tuple[ShiftName, ...] = get_args(ShiftName)

CHARACTERS = 10
SHOCK_ITEMS, SHOCK_SHARE, SHOCK_DAYS = 5, 1 / 3, 2
WRONG_SHARE = 0.1
SCARCE_EVENTS = 100

BEGINNING = -(2**31)
"""A day before all others."""

WORD = re.compile(r"\w+")
SYLLABLES = [consonant + vowel for consonant in "bdfgjklmnprstvwz" for vowel in "aeiou"]


@dataclass(frozen=True)
class Shift:
    """What goes wrong.

    domain: where; `wrong` is everywhere. seed: of all that is drawn. start, stop: days that are
    judged are start..stop-1.
    """

    name: ShiftName
    domain: DomainRange
    seed: int
    start: int
    stop: int

    @property
    def is_of_future(self) -> bool:
        """Whether what is judged is shifted too."""
        return self.name == "shock"

    def digest(self, prepared: Prepared) -> str:
        """Return 16 hex digits that change with the input and with what becomes of it."""
        sizes = [CHARACTERS, SHOCK_ITEMS, SHOCK_SHARE, SHOCK_DAYS, WRONG_SHARE, SCARCE_EVENTS]
        known = [self.name, self.domain.name, self.seed, self.start, self.stop]
        if prepared.with_relations:
            known.append("relations")
        text = json.dumps([FORMAT, prepared.digest, known, sizes], ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def draw(self, *more: int) -> np.random.Generator:
        """Return what draws for this shift, for a bucket of its own where one is given."""
        return np.random.default_rng([self.seed, NAMES.index(self.name), *more])


def write_shifted(store: Store, prepared: Prepared, shift: Shift, folder: str) -> Prepared:
    """Write the shifted input as a prepared folder, unless it is there, on an initialised Ray."""
    if not store.exists(f"{folder}/{SUMMARY}"):
        _write(store, prepared, shift, folder)
    return open_prepared(store, folder)


def _write(store: Store, prepared: Prepared, shift: Shift, folder: str) -> None:
    shared = (store, prepared, shift, folder)
    texts = [(*shared, domain) for domain in prepared.domains]
    for _ in run_tasks(_shift_catalogue, texts, "shifted domains"):
        pass
    images = f"{prepared.folder}/images"
    for name in store.list(images) if prepared.with_images else []:
        store.write_bytes(f"{folder}/images/{name}", store.read_bytes(f"{images}/{name}"))
    if prepared.with_relations:
        pairs = store.read_bytes(relations_path(prepared.folder))
        store.write_bytes(relations_path(folder), pairs)
    chosen = _choose(store, prepared, shift)
    calls = [(*shared, chosen, bucket) for bucket in range(prepared.buckets)]
    events = sum(run_tasks(_shift_bucket, calls, "shifted buckets"))
    domains = [
        {"name": domain.name, "start": domain.start, "stop": domain.stop, "events": int(count)}
        for domain, count in zip(prepared.domains, events, strict=True)
    ]
    summary = {
        "format": FORMAT,
        "digest": shift.digest(prepared),
        "domains": domains,
        "events": int(events.sum()),
        "values": list(prepared.values),
        "images": {} if prepared.with_images else None,
        **{name: getattr(prepared, name) for name in ("buckets", "users", "items", "as_of_us")},
    }
    if prepared.with_relations:
        summary["relations"] = {}
    store.write_json(f"{folder}/{SUMMARY}", summary)


def _shift_catalogue(
    store: Store, prepared: Prepared, shift: Shift, folder: str, domain: DomainRange
) -> None:
    items = read_catalogue(store, prepared, domain.name)
    if domain == shift.domain:
        items = shift_texts(shift, items)
    store.write_parquet(catalogue_path(folder, domain.name), items)


def shift_texts(shift: Shift, items: pa.Table) -> pa.Table:
    """Return a catalogue (schema.CATALOGUE) with the texts that the shift leaves."""
    texts = items["text"]
    if shift.name == "translated":
        translated = [translate(text, shift.seed) for text in texts.to_pylist()]
        texts = pa.chunked_array([pa.array(translated, pa.string())])
    elif shift.name == "truncated":
        texts = pc.utf8_slice_codeunits(texts, 0, CHARACTERS)
    place = items.schema.get_field_index("text")
    return items.set_column(place, items.schema.field("text"), texts)


def translate(text: str, seed: int) -> str:
    """Return a text whose words are made-up ones; the same word is always the same one.

    >>> translate("Green tea, green cup", 17)
    'vojugu pinize, vojugu vizabi'
    """
    return WORD.sub(lambda found: _made_up(found.group().lower(), seed), text)


@lru_cache(maxsize=100_000)
def _made_up(word: str, seed: int) -> str:
    digest = hashlib.sha256(f"{seed} {word}".encode()).digest()
    # Of two or three syllables: 518,400 words, of which two may be one now and then, as in others.
    length = 2 + digest[0] % 2
    return "".join(SYLLABLES[byte % len(SYLLABLES)] for byte in digest[1 : 1 + length])


def _choose(store: Store, prepared: Prepared, shift: Shift) -> Array:
    """Return what is chosen among all users' events.

    Of a shock the catalogue rows; of a scarce domain the highest number, (1,), that an event which
    stays may have drawn; else nothing.
    """
    if shift.name == "shock":
        return _rising_items(store, prepared, shift)
    if shift.name == "scarce":
        calls = [(store, prepared, shift, bucket) for bucket in range(prepared.buckets)]
        drawn = np.sort(np.concatenate(list(run_tasks(_lowest_drawn, calls, "buckets drawn"))))
        return drawn[:SCARCE_EVENTS][-1:]
    return np.zeros(0)


def _rising_items(store: Store, prepared: Prepared, shift: Shift) -> Array:
    """Return SHOCK_ITEMS rows of the half of a domain's items that had the fewest events."""
    start, stop = shift.domain.start, shift.domain.stop
    counts = load_activity(store, prepared).counts(BEGINNING, shift.start - SHOCK_DAYS)[start:stop]
    ranked = np.argsort(counts, kind="stable")
    had = ranked[counts[ranked] > 0]
    few = had[: len(had) // 2]
    among = few if len(few) >= SHOCK_ITEMS else ranked
    return start + shift.draw().choice(among, min(SHOCK_ITEMS, len(among)), replace=False)


def _lowest_drawn(store: Store, prepared: Prepared, shift: Shift, bucket: int) -> Array:
    """Return the lowest numbers that known events of the domain draw in a bucket."""
    table = read_histories(store, prepared, bucket)
    rows, times = (_flat(table, name) for name in ("rows", "timestamps"))
    known = _inside(shift.domain, rows) & (times // US_PER_DAY < shift.start)
    return np.sort(shift.draw(bucket).random(len(rows))[known])[:SCARCE_EVENTS]


def _shift_bucket(
    store: Store, prepared: Prepared, shift: Shift, folder: str, chosen: Array, bucket: int
) -> Array:
    """Write a bucket's histories and activity; return each domain's events, (domains,) int64."""
    starts = np.array([0, *(domain.stop for domain in prepared.domains)])
    before = read_histories(store, prepared, bucket)
    table = shift_histories(shift, chosen, starts, bucket, before)
    store.write_parquet(histories_path(folder, bucket), table)
    store.write_parquet(activity_path(folder, bucket), view_activity(table))
    domains = np.searchsorted(starts, _flat(table, "rows"), side="right") - 1
    return np.bincount(domains, minlength=len(prepared.domains))


def shift_histories(
    shift: Shift, chosen: Array, starts: Array, bucket: int, table: pa.Table
) -> pa.Table:
    """Return a bucket's histories (schema.HISTORIES) as the shift leaves them; all users stay.

    Args:
        shift: what goes wrong.
        chosen: what `_choose` returns.
        starts: (domains + 1,) catalogue rows at which the domains begin, and the end.
        bucket: its number.
        table: the histories.
    """
    rows, times = (_flat(table, name) for name in ("rows", "timestamps"))
    lengths = table["rows"].combine_chunks().value_lengths().to_numpy()
    owners = np.repeat(np.arange(len(lengths)), lengths)
    days, draw = times // US_PER_DAY, shift.draw(bucket)
    kept = np.ones(len(rows), bool)
    if shift.name == "wrong":
        is_wrong = (draw.random(len(rows)) < WRONG_SHARE) & (days < shift.start)
        domains = np.searchsorted(starts, rows, side="right") - 1
        others = starts[domains] + (draw.random(len(rows)) * np.diff(starts)[domains]).astype(int)
        rows = np.where(is_wrong, others, rows)
    elif shift.name == "scarce":
        left = draw.random(len(rows)) <= chosen.max(initial=0.0)
        kept = left | (days >= shift.start) | ~_inside(shift.domain, rows)
    elif shift.name == "shock":
        rises = (draw.random(len(rows)) < SHOCK_SHARE) & (days >= shift.start - SHOCK_DAYS)
        rises &= (days < shift.stop) & _inside(shift.domain, rows)
        rows = np.where(rises, draw.choice(chosen, len(rows)), rows)
    # Equal timestamps are in the order of rows.
    order = np.lexsort((rows, times, owners))
    order = order[kept[order]]
    values = {
        value: _flat(table, name)[order]
        for value, name in EVENT_VALUES.items()
        if name in table.column_names
    }
    counts = np.bincount(owners[kept], minlength=len(lengths))
    users = table[USER_ID].combine_chunks()
    return to_histories(users, counts, rows[order].astype(np.int32), times[order], values)


def _inside(domain: DomainRange, rows: Array) -> Array:
    inside: Array = (rows >= domain.start) & (rows < domain.stop)
    return inside


def _flat(table: pa.Table, name: str) -> Array:
    values: Array = table[name].combine_chunks().flatten().to_numpy()
    return values
