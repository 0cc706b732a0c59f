"""A night whose input has grown in every way, on the published one; then an incremental one.

Nothing ran for a day; events of a day long past have arrived; an item's title is another; a domain
has opened, and one is no more.
"""

import datetime as dt
import shutil
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from crossrec.data.daily import load_activity
from crossrec.data.histories import open_prepared, read_histories
from crossrec.errors import InputError
from crossrec.nightly import nightly
from crossrec.readers import read_scores
from crossrec.schema import US_PER_DAY
from crossrec.storage import Store
from crossrec.vectorcache import read_vectors
from tests.nights import DEMO, QUIET_DOMAIN, Night, change

pytestmark = pytest.mark.slow

NEW_DOMAIN, NEW_ITEMS = "books", 15
GONE_DOMAIN = "radio"
"""Of which only events are left."""

LATE_BY = 20
"""Days."""


@dataclass(frozen=True)
class Grown:
    """The nights, the user and the shop's item of the late event, and the item with a new title."""

    before: Night
    full: Night
    increment: dict[str, Any]
    late: tuple[str, str]
    retitled: int

    def history(self, run_id: str) -> tuple[list[int], list[int]]:
        """Return rows and days of the late user's history."""
        store = self.full.store
        prepared = open_prepared(store, store.read_json(f"runs/{run_id}/prepare.json")["prepared"])
        tables = [read_histories(store, prepared, bucket) for bucket in range(prepared.buckets)]
        (row,) = pa.concat_tables(tables).filter(pc.field("user_id") == self.late[0]).to_pylist()
        return row["rows"], [moment // US_PER_DAY for moment in row["timestamps"]]


@pytest.fixture(scope="module")
def grown(night: Night, tmp_path_factory: pytest.TempPathFactory) -> Grown:
    root = tmp_path_factory.mktemp("grown") / "store"
    shutil.copytree(night.store.full_path(""), root)
    store = Store(str(root))
    newest = pc.max(night.events["timestamp"]).as_py()
    users = night.events["user_id"].unique().sort().to_pylist()
    late = users[7], unseen(night, users[7])
    fresh = [(user, "4", NEW_DOMAIN, 2) for user in users[20:30]]
    fresh += [(user, unseen(night, user), "shop", day) for user in users[60:100] for day in (1, 2)]
    gone = [(user, "1", GONE_DOMAIN, -60) for user in users[:400] for _ in range(3)]
    rows = [(*late, "shop", -LATE_BY), *fresh, *gone]
    retitled = 11
    config = change(
        night.config,
        run_id="grown",
        data={
            "events": write(
                store, "events", pa.concat_tables([night.events, at(night, newest, rows)])
            ),
            "items": write(store, "items", new_catalogue(night.items, retitled)),
        },
        storage={"root": store.root},
        train={"epochs": 2},
    )
    full = Night(config, store, nightly(config, store), night.events, night.items)
    later = pa.concat_tables(
        [
            store.read_parquet("input/grown-events.parquet"),
            at(
                night,
                newest,
                [(users[50], "5", NEW_DOMAIN, -LATE_BY), (users[51], "5", "later still", 3)],
            ),
        ]
    )
    config = change(
        config,
        run_id="grown-more",
        data={"events": write(store, "more", later)},
        score={"mode": "incremental"},
    )
    return Grown(night, full, nightly(config, store), late, retitled)


def unseen(night: Night, user: str) -> str:
    """Return the first item of the shop that a user has not had."""
    mine = pc.and_(
        pc.equal(night.events["user_id"], user), pc.equal(night.events["domain"], "shop")
    )
    seen = set(night.events.filter(mine)["item_id"].to_pylist())
    ids = night.items.filter(pc.field("domain") == "shop")["item_id"].to_pylist()
    return str(next(item for item in ids if item not in seen))


def at(night: Night, newest: dt.datetime, rows: list[tuple[str, str, str, int]]) -> pa.Table:
    """Return events by user, item, domain, and days after the newest event of the night."""
    names = ("user_id", "item_id", "domain", "timestamp")
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    columns["timestamp"] = [newest + dt.timedelta(days=days) for days in columns["timestamp"]]
    return pa.table(columns).select(night.events.column_names).cast(night.events.schema)


def new_catalogue(items: pa.Table, retitled: int) -> pa.Table:
    """Return the items without the quiet domain, with another title, and with a new domain."""
    items = items.filter(pc.field("domain") != QUIET_DOMAIN)
    titles = items["title"].to_pylist()
    shop = items["domain"].to_pylist().index("shop")
    titles[shop + retitled] = "nothing that was there before"
    items = items.set_column(items.column_names.index("title"), "title", pa.array(titles))
    books = {
        "item_id": [str(number) for number in range(NEW_ITEMS)],
        "domain": [NEW_DOMAIN] * NEW_ITEMS,
        "title": [f"a book about {number}" for number in range(NEW_ITEMS)],
    }
    return pa.concat_tables([items, pa.table(books)], promote_options="default")


def write(store: Store, name: str, table: pa.Table) -> str:
    store.write_parquet(f"input/grown-{name}.parquet", table)
    return store.uri(f"input/grown-{name}.parquet")


def lists(grown: Grown, domain: str) -> dict[str, list[str]]:
    """Return the published lists of a domain by user."""
    table = read_scores(grown.full.store.root, domain=domain).read_all().to_pydict()
    return dict(zip(table["user_id"], table["item_ids"], strict=True))


def test_everybody_gets_lists_in_a_domain_that_has_opened(grown: Grown) -> None:
    assert grown.full.manifest["domains"] == sorted([*DEMO.domains, NEW_DOMAIN])
    found = lists(grown, NEW_DOMAIN)
    assert set(found) >= set(grown.before.events["user_id"].unique().to_pylist())
    everything = {str(number) for number in range(NEW_ITEMS)}
    assert all(set(items) <= everything and len(items) >= NEW_ITEMS - 2 for items in found.values())


def test_the_gate_lets_it_through_and_tells_once_of_the_one_that_is_gone(grown: Grown) -> None:
    gate = grown.full.read_json("gate.json")
    assert gate["decision"] == "publish"
    failed = {check["name"] for check in gate["checks"] if not check["is_passed"]}
    assert failed == {"lost_domains"}
    # More than a tenth of the input, but the last one is long past.
    rejects = grown.full.read_json("prepare.json")["rejects"]["events"]
    assert rejects == {"retired domain": 3 * 400}
    assert grown.full.store.read_json("current.json")["run_id"] == "grown-more"


@pytest.mark.parametrize("domain", [QUIET_DOMAIN, GONE_DOMAIN])
def test_a_domain_that_is_no_more_has_no_lists(grown: Grown, domain: str) -> None:
    with pytest.raises(InputError, match="expected one of the domains"):
        read_scores(grown.full.store.root, domain=domain)


def test_a_late_event_is_in_history_item_state_and_list(grown: Grown) -> None:
    user, item = grown.late
    (rows, _), (more_rows, days) = grown.history("night"), grown.history("grown")
    assert len(more_rows) == len(rows) + 1
    assert days == sorted(days)
    assert item not in lists(grown, "shop")[user]
    counts = [count_events(grown, run, item) for run in ("night", "grown")]
    assert counts[1] == counts[0] + 1


def count_events(grown: Grown, run_id: str, item: str) -> int:
    """Return the events of a shop's item before the newest week of the first night."""
    store = grown.full.store
    prepared = open_prepared(store, store.read_json(f"runs/{run_id}/prepare.json")["prepared"])
    (shop,) = (domain for domain in prepared.domains if domain.name == "shop")
    first = open_prepared(store, store.read_json("runs/night/prepare.json")["prepared"])
    activity = load_activity(store, prepared)
    ids = grown.before.items.filter(pc.field("domain") == "shop")["item_id"].to_pylist()
    row = shop.start + sorted(ids).index(item)
    return int(activity.counts(0, first.as_of_us // US_PER_DAY - 7)[row])


def test_a_new_title_is_encoded_and_no_other(grown: Grown) -> None:
    store = grown.full.store
    before, after = (
        f"{store.read_json(f'runs/{run}/prepare.json')['prepared']}/vectors"
        for run in ("night", "grown")
    )
    (digest,) = store.list(after)
    old, new = (read_vectors(store, f"{folder}/{digest}", "shop") for folder in (before, after))
    assert np.flatnonzero((old != new).any(1)).tolist() == [grown.retitled]
    # The first night's one file, and one more.
    parts = store.list(f"cache/vectors/{digest}")
    sizes = sorted(len(store.read_parquet(f"cache/vectors/{digest}/{name}")) for name in parts)
    assert sizes[0] == NEW_ITEMS + 1


def test_an_incremental_night_scores_who_has_late_events(grown: Grown) -> None:
    assert grown.increment["full"] == "grown"
    assert grown.increment["scored_users"] == 1
    user = grown.before.events["user_id"].unique().sort().to_pylist()[50]
    assert "5" not in lists(grown, NEW_DOMAIN)[user]
    prepared = grown.full.store.read_json("runs/grown-more/prepare.json")
    # Of a domain that the last full night did not know, it waits for the next.
    assert prepared["rejects"]["events"]["unknown domain"] == 1
