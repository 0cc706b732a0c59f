"""The demo data: three domains with shared users, seeded, of known structure; made in seconds.

In: a number of users and a seed. Out: events and items in the form of a user's own files, and what
they were drawn from.

    uris = write_demo(Store("/tmp/recs"), "demo", users=4_000, seed=17)
    demo = make_demo(users=4_000, seed=17)   # the same tables, with the known structure

A user opens a session on a topic (a favourite, or what is in fashion); each of its events is in a
domain, on a scene, and on one of the items of that topic and scene by their popularity on that day.
Nobody takes an item twice. The topic can be read from titles and categories, in other words in
every domain; the scene stands in no text: only behaviour tells it. Favourites change at a moment
of each user's own, domains are discovered one by one, and items come out all the time.
"""

import datetime as dt
import itertools
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crossrec.data.demo_structure import (
    DemoItems,
    DemoSettings,
    DemoUsers,
    draw_fashion,
    draw_items,
    draw_users,
    pick,
    scene_shares,
    topic_names,
    topic_shares,
    words,
)
from crossrec.schema import DOMAIN, ITEM_ID, TIMESTAMP, US_PER_DAY, USER_ID
from crossrec.storage import Store, encode_parquet

LAST_DAY = dt.date(2026, 6, 30)
"""The newest day that has events: fixed, so that the demo is the same every night."""

SHARDS = 4
"""Files of events; each covers a stretch of time, so that histories span files."""


@dataclass(frozen=True)
class Demo:
    """The two input tables and the structure that they were drawn from."""

    events: pa.Table
    items: pa.Table
    settings: DemoSettings
    known_items: DemoItems
    known_users: DemoUsers
    """User u has the id `user_id(u)`."""
    fashion: np.ndarray
    """(days, topics) shares of the topics in events on no favourite topic."""

    def affinity(self, users: np.ndarray, domain: str, day: int) -> np.ndarray:
        """Return how likely each user's next event in the domain is on each item.

        Ranking by these, items already taken left out, is the best that can be done on that day.

        Args:
            users: numbers of users.
            domain: its items are the columns, in the order of the items table.
            day: from 0, the first day of the demo.

        Returns:
            (len(users), items of the domain) probabilities; each row sums to 1.
        """
        known, settings = self.known_items, self.settings
        items = np.flatnonzero(known.domain == settings.domains.index(domain))
        days = np.full(len(users), day)
        topic_UT = topic_shares(self.known_users, self.fashion, settings, users, days)
        scene_US = scene_shares(self.known_users, settings, users)
        popularity = known.popularity[day, items]
        cell = _cells(settings, known.domain[items], known.topic[items], known.scene[items])
        in_cell = np.bincount(cell, popularity)[cell]
        share = np.divide(popularity, in_cell, out=np.zeros_like(popularity), where=in_cell > 0)
        affinity = topic_UT[:, known.topic[items]] * scene_US[:, known.scene[items]] * share
        return np.asarray(affinity / affinity.sum(1, keepdims=True))


def write_demo(
    store: Store, folder: str, users: int, seed: int, settings: DemoSettings | None = None
) -> dict[str, str]:
    """Write events and items below a folder of the store; return their URIs.

    A file that is there already with the same bytes is left alone, so that what was prepared from
    it stays valid.
    """
    demo = make_demo(users, seed, settings)
    bounds = np.linspace(0, demo.events.num_rows, SHARDS + 1).astype(int).tolist()
    for shard, (start, stop) in enumerate(itertools.pairwise(bounds)):
        rows = demo.events.slice(start, stop - start)
        _write_once(store, f"{folder}/events/part-{shard:03d}.parquet", rows)
    _write_once(store, f"{folder}/items/items.parquet", demo.items)
    return {"events": store.uri(f"{folder}/events"), "items": store.uri(f"{folder}/items")}


def _write_once(store: Store, path: str, table: pa.Table) -> None:
    if not (store.exists(path) and store.read_bytes(path) == encode_parquet(table)):
        store.write_parquet(path, table)


def make_demo(users: int, seed: int, settings: DemoSettings | None = None) -> Demo:
    """Draw the demo data; the same arguments give the same tables."""
    settings = settings or DemoSettings()
    rng = np.random.default_rng(seed)
    known_items = draw_items(rng, settings)
    items = _items_table(rng, settings, known_items)
    known_users = draw_users(rng, settings, users)
    demo = Demo(items, items, settings, known_items, known_users, draw_fashion(rng, settings))
    return replace(demo, events=_draw_events(rng, demo))


def user_id(user: int) -> str:
    """Return the id of user number `user`.

    >>> user_id(42)
    'u0000042'
    """
    return f"u{user:07d}"


def _items_table(rng: np.random.Generator, settings: DemoSettings, known: DemoItems) -> pa.Table:
    titles = np.empty(len(known.topic), object)
    categories = np.empty(len(known.topic), object)
    for (domain, name), (topic, about) in itertools.product(
        enumerate(settings.domains), enumerate(words()["topics"].values())
    ):
        form, named = words()["titles"][name], about[name]
        rows = np.flatnonzero((known.domain == domain) & (known.topic == topic))
        all_titles = [
            form["pattern"].format(subject=subject, first=first, last=last)
            for last in form["last"]
            for first in form["first"]
            for subject in named["subjects"]
        ]
        order = rng.permutation(max(len(all_titles), len(rows)))[: len(rows)] % len(all_titles)
        titles[rows] = np.asarray(all_titles, object)[order]
        categories[rows] = named["category"]
    # Ids count from 0 in every domain: the same id is another item there.
    ids = itertools.chain.from_iterable(range(settings.items[name]) for name in settings.domains)
    return pa.table(
        {
            ITEM_ID: [f"{number:05d}" for number in ids],
            DOMAIN: np.asarray(settings.domains, object)[known.domain],
            "title": titles,
            "category": categories,
        }
    )


def _draw_events(rng: np.random.Generator, demo: Demo) -> pa.Table:
    """Return the events table, oldest first."""
    settings, known = demo.settings, demo.known_users
    # A session is about three events of one user on one day and topic.
    shares_of_time = 1 - known.first_day / settings.days
    sessions = np.maximum(known.events * shares_of_time / 3, 1).astype(np.int64)
    session_user = np.repeat(np.arange(len(sessions)), sessions)
    first = known.first_day[session_user]
    session_day = first + (rng.random(len(first)) * (settings.days - first)).astype(np.int64)
    session_topic = pick(
        rng, topic_shares(known, demo.fashion, settings, session_user, session_day)
    )
    # In the evening more often than not; an hour at most lies between its events.
    session_second = rng.normal(19 * 3_600, 3 * 3_600, len(first)).clip(0, 22.9 * 3_600)
    session = np.repeat(np.arange(len(first)), 1 + rng.poisson(2, len(first)))
    user, day = session_user[session], session_day[session]
    domain = pick(rng, known.domains[user] * (known.discovered[user] <= day[:, None]))
    scene = pick(rng, scene_shares(known, settings, user))
    cell = _cells(settings, domain, session_topic[session], scene)
    item = _draw_unseen(rng, demo, user, day, cell)
    second = session_second[session] + rng.random(len(session)) * 3_600
    first_day = (LAST_DAY - dt.date(1970, 1, 1)).days - settings.days + 1
    moment = (first_day + day) * US_PER_DAY + (second * 1e6).astype(np.int64)
    order = np.lexsort((item, user, moment))
    order = order[item[order] >= 0]
    items = demo.items.select([ITEM_ID, DOMAIN]).take(pa.array(item[order]))
    ids = pa.array([user_id(number) for number in range(len(sessions))])
    return pa.table(
        {
            USER_ID: ids.take(pa.array(user[order])),
            **{name: items[name] for name in items.column_names},
            TIMESTAMP: pc.cast(pa.array(moment[order]), pa.timestamp("us", tz="UTC")),
        }
    )


def _cells(
    settings: DemoSettings, domain: np.ndarray, topic: np.ndarray, scene: np.ndarray
) -> np.ndarray:
    """Return the number of the cell: items of one domain, topic and scene."""
    return np.asarray((domain * len(topic_names()) + topic) * settings.scenes + scene)


def _draw_unseen(
    rng: np.random.Generator, demo: Demo, user: np.ndarray, day: np.ndarray, cell: np.ndarray
) -> np.ndarray:
    """Return an item of the cell for each (user, day, cell), by popularity; -1 where none is left.

    All days' popularities stand end to end in one cumulative sum, items sorted by cell within the
    day, so that a draw is one binary search.
    """
    items = demo.known_items
    cell_of_item = _cells(demo.settings, items.domain, items.topic, items.scene)
    by_cell, count = np.argsort(cell_of_item, kind="stable"), len(cell_of_item)
    cumulative = np.concatenate([[0.0], np.cumsum(items.popularity[:, by_cell])])
    sorted_cells = cell_of_item[by_cell]
    start, stop = np.searchsorted(sorted_cells, cell), np.searchsorted(sorted_cells, cell, "right")
    low, high = cumulative[day * count + start], cumulative[day * count + stop]
    item = np.full(len(user), -1)
    again = np.flatnonzero(high > low)
    for _ in range(8):  # then fewer than 1 event in 200 still repeats an item
        draw = low[again] + rng.random(len(again)) * (high[again] - low[again])
        place = np.searchsorted(cumulative, draw, "right") - 1 - day[again] * count
        item[again] = by_cell[place.clip(start[again], stop[again] - 1)]
        _, first = np.unique(user * count + item, return_index=True)
        is_repeat = item >= 0
        is_repeat[first] = False
        again = np.flatnonzero(is_repeat)
    item[again] = -1
    return item
