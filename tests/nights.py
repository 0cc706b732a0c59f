"""Nights that tests share: small inputs, small settings, and a published night a session.

config = small_config(tmp_path / "store", tiny_backbone, {"events": ..., "items": ...})
night = published_night(tiny_backbone)        # tests take the fixture `night`
"""

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from crossrec.config import Config
from crossrec.data.demo import make_demo
from crossrec.data.demo_structure import DemoSettings
from crossrec.nightly import nightly
from crossrec.schema import US_PER_DAY
from crossrec.storage import Store

USERS = 500
DEMO = DemoSettings(items={"shop": 240, "video": 180, "social": 120}, scene_share=0.95)
"""Strong hidden scenes, which only training can find: no text tells them."""

QUIET_DOMAIN, QUIET_ITEMS = "..", 12
"""A domain of which nobody has had anything yet."""

DOMAINS = (*DEMO.domains, QUIET_DOMAIN)

PUBLISHED = "published.json"
"""What `nightly` returned, beside the published night."""

BUCKETS = 32
EPOCHS = 6
TOP_K = 20


@dataclass(frozen=True)
class Night:
    """A night that was run: its config, where it lies, what it returned, and its input."""

    config: Config
    store: Store
    summary: dict[str, Any]
    events: pa.Table
    items: pa.Table

    @property
    def manifest(self) -> dict[str, Any]:
        manifest: dict[str, Any] = self.read_json("manifest.json")
        return manifest

    def read_json(self, name: str) -> Any:
        """Return what a file of the run's folder says."""
        return self.store.read_json(f"runs/{self.config.run_id}/{name}")

    def checkpoints(self) -> list[str]:
        """Return the folders of the checkpoints that training left, oldest first."""
        folder = f"runs/{self.config.run_id}/train"
        (run,) = (
            name for name in self.store.list(folder) if name not in ("selected", "tensorboard")
        )
        names = self.store.list(f"{folder}/{run}")
        return [f"{folder}/{run}/{name}" for name in names if not name.endswith(".json")]

    def lists(self, domain: str) -> pa.Table:
        """Return all lists of a domain, as the manifest names them."""
        paths = [file["path"] for file in self.manifest["files"] if file["domain"] == domain]
        return pa.concat_tables(self.store.read_parquet(path) for path in paths)


def small_config(store: Store, backbone: str, data: dict[str, Any], **sections: Any) -> Config:
    """Return a config with the smallest useful settings; sections are laid over them."""
    settings: dict[str, Any] = {
        "run_id": "night",
        "data": {"buckets": BUCKETS, **data},
        "storage": {"root": store.root},
        "model": {"backbone": backbone, "width": 32, "heads": 2, "layers": 1, "max_history": 20},
        # Small batches, because the learning rate needs 50 steps to rise.
        "train": {
            "epochs": EPOCHS,
            "epoch_steps": 1,
            "batch_size": 16,
            "patience": 3,
            "moments": 4,
        },
        "score": {"top_k": TOP_K},
    }
    for name, value in sections.items():
        before = settings.get(name)
        settings[name] = {**before, **value} if isinstance(before, dict) else value
    return Config.model_validate(settings)


def change(config: Config, **sections: Any) -> Config:
    """Return the config with other values: change(config, run_id="b", train={"epochs": 1})."""
    settings = config.model_dump()
    for name, value in sections.items():
        settings[name] = {**settings[name], **value} if isinstance(value, dict) else value
    return Config.model_validate(settings)


def modified(store: Store, folder: str, but: Collection[str] = ()) -> dict[str, tuple[int, str]]:
    """Return when each file below a folder of a local store was written, and what it holds.

    Args:
        store: on a local disk.
        folder: within it; "" for all.
        but: names of files to leave out.
    """
    paths = [path for path in Path(store.full_path(folder)).rglob("*") if path.is_file()]
    return {
        str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in paths
        if path.name not in but
    }


def published_night(backbone: str) -> Night:
    """Publish a night of a small demo beside the backbone, unless it is there; Ray must run."""
    store = Store(str(Path(backbone).with_name("published-night")))
    demo = make_demo(USERS, 17, DEMO)
    quiet = {
        "item_id": [f"q{number}" for number in range(QUIET_ITEMS)],
        "domain": [QUIET_DOMAIN] * QUIET_ITEMS,
        "title": [f"something new {number}" for number in range(QUIET_ITEMS)],
    }
    items = pa.concat_tables([demo.items, pa.table(quiet)], promote_options="default")
    if not store.exists(PUBLISHED):
        # Written once: the runs that are there are pinned to these files.
        store.write_parquet("input/events.parquet", demo.events)
        store.write_parquet("input/items.parquet", items)
    data = {name: store.uri(f"input/{name}.parquet") for name in ("events", "items")}
    config = small_config(store, backbone, data)
    if not store.exists(PUBLISHED):
        store.write_json(PUBLISHED, nightly(config, store))
    return Night(config, store, store.read_json(PUBLISHED), demo.events, items)


ODD_DOMAIN = "a/b"
ODD_ITEMS = 1_050
HEAVY_ITEMS = 1_000
"""Of these the heavy user has had every one a hundred times."""
SILENT_USERS = ["no 1", "no 2", "no 3"]
"""Users of `data.users` who have no event."""


def published_odd_night(
    backbone: str, store: Store, run: Callable[[Config], dict[str, Any]]
) -> Night:
    """Let `run` publish a night of one domain, items without text, and one huge history."""
    draw = np.random.default_rng(17)
    items = [f"📚 {number:04d}/x" for number in range(ODD_ITEMS)]
    heavy = [("heavy", items[number % HEAVY_ITEMS], number / 1_700) for number in range(100_000)]
    light = [
        (f"light {user:02d}", items[draw.integers(ODD_ITEMS)], day)
        for user in range(60)
        for day in (8.5, 20.5, 33.5, 45.5, 56.5, 58.5)
    ]
    users, taken, days = zip(*heavy, *light, strict=True)
    moments = 1_700_000_000_000_000 + (np.array(days) * US_PER_DAY).astype(np.int64)
    events = pa.table(
        {
            "user_id": users,
            "item_id": taken,
            "domain": [ODD_DOMAIN] * len(users),
            "timestamp": pa.array(moments, pa.timestamp("us", tz="UTC")),
        }
    )
    catalogue = pa.table({"item_id": items, "domain": [ODD_DOMAIN] * ODD_ITEMS})
    store.write_parquet("input/events.parquet", events)
    store.write_parquet("input/items.parquet", catalogue)
    store.write_parquet("input/users.parquet", pa.table({"user_id": [*SILENT_USERS, "light 07"]}))
    data = {name: store.uri(f"input/{name}.parquet") for name in ("events", "items", "users")}
    storage = {"options": dict(store.options)}
    config = small_config(store, backbone, data, train={"epochs": 1}, storage=storage)
    return Night(config, store, run(config), events, catalogue)
