"""Made-up events and items, in a process of their own, so that their memory is gone afterwards."""

import multiprocessing
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

DOMAINS = ("shop", "social", "video")
ITEMS = 100_000
EVENTS_A_USER = 5_000_000 / 194_000
EVENTS_A_FILE = 5_000_000 // 32

TRAIN_SETTINGS = {
    "items": 10_000,
    "width": 128,
    "layers": 2,
    "heads": 4,
    "length": 50,
    "batch": 128,
    "negatives": 64,
    "epochs": 3,
}
"""Of `train`, the peer's too; no negatives: softmax over all items."""

SCORE_SETTINGS = {"events": 2_000_000, "items": 75_000, "top_k": 50, "rounds": 3}
"""Of `score`; items of three domains."""

SCALE_SETTINGS = {"events": 2_577_320, "larger": 25_773_200, "items": 75_000, "top_k": 50}
"""Of `scale`; 100,000 and 1,000,000 users."""

CATALOGUE_SETTINGS = {"events": 50_000, "items": 10_000_000, "top_k": 50}
"""Of `catalogue`; 1,940 users of one domain."""

TOPK_SETTINGS = {"items": 100_000, "queries": 10_000, "width": 128, "k": 10, "rounds": 5}
"""Of `topk`."""


def ensure_data(
    folder: Path, events: int, items: int = ITEMS, domains: Sequence[str] = DOMAINS
) -> Path:
    """Make events and items where they are missing; return their folder."""
    data = folder / f"events-{events}-items-{items}-domains-{len(domains)}"
    if not data.exists():
        run_apart(make_data, data, events, items, domains)
    return data


def ensure_more_events(data: Path, events: int, share: float) -> Path:
    """Return a folder of the same events and one newer event of a share of the users."""
    more = data / f"events-and-{share:g}"
    if not more.exists():
        run_apart(_add_events, data, more, round(events / EVENTS_A_USER), share)
    return more


def _add_events(data: Path, more: Path, users: int, share: float) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    unfinished = more.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    for path in (data / "events").iterdir():
        (unfinished / path.name).hardlink_to(path)
    items = pq.read_table(data / "items" / "items.parquet")
    draw = np.random.default_rng(17)
    chosen = draw.choice(users, round(users * share), replace=False)
    rows = pa.array(draw.integers(0, len(items), len(chosen)))
    table = {
        "user_id": pa.array(np.char.add("user-", chosen.astype(str))),
        "item_id": items["item_id"].take(rows),
        "domain": items["domain"].take(rows),
        "timestamp": pa.array(np.full(len(chosen), 1_700_086_400), pa.timestamp("s")),
    }
    newest = pa.table(table)
    newest = newest.set_column(3, "timestamp", newest["timestamp"].cast(pa.timestamp("us")))
    pq.write_table(newest, unfinished / "newest.parquet")
    unfinished.rename(more)


def run_apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function in a process of its own, so that nothing of it stays; return its result."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def make_data(folder: Path, events: int, items: int, domains: Sequence[str]) -> None:
    """Write events in files of 156,250, and the items; some users and items are far more active."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    unfinished = folder.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    for name in ("events", "items"):
        (unfinished / name).mkdir(parents=True)
    item_ids = pa.array(np.char.add("item-", np.arange(items).astype(str)))
    owners = pa.array(domains).take(pa.array(np.arange(items) % len(domains)))
    titles = pa.array(np.char.add("a thing of kind ", (np.arange(items) % 997).astype(str)))
    catalogue = pa.table({"item_id": item_ids, "domain": owners, "title": titles})
    pq.write_table(catalogue, unfinished / "items" / "items.parquet")
    users = max(1, round(events / EVENTS_A_USER))
    for number, first in enumerate(range(0, events, EVENTS_A_FILE)):
        draw = np.random.default_rng(number)
        rows = min(EVENTS_A_FILE, events - first)
        user = (users * draw.random(rows) ** 2).astype(np.int64)
        item = pa.array((items * draw.random(rows) ** 3).astype(np.int64))
        seconds = draw.integers(1_600_000_000, 1_700_000_000, rows)
        table = {
            "user_id": pa.array(np.char.add("user-", user.astype(str))),
            "item_id": item_ids.take(item),
            "domain": owners.take(item),
            "timestamp": pa.array(seconds, pa.timestamp("s")).cast(pa.timestamp("us")),
        }
        pq.write_table(pa.table(table), unfinished / "events" / f"part-{number:05d}.parquet")
    unfinished.rename(folder)
