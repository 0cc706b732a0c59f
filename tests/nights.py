"""Nights that tests share: small inputs, small settings, and one published night of the session.

config = small_config(tmp_path / "store", tiny_backbone, {"demo_users": 200}, train={"epochs": 1})
config, store, summary = published_night(tiny_backbone)
"""

import functools
from pathlib import Path
from typing import Any

import pyarrow as pa

from crossrec.config import Config
from crossrec.data.demo import LAST_DAY, make_demo
from crossrec.data.demo_structure import DemoSettings
from crossrec.nightly import nightly
from crossrec.schema import domain_folder
from crossrec.storage import Store

SETTINGS = DemoSettings(items={"shop": 90, "video": 60, "social": 40}, scenes=2)

USERS = 200
EPOCHS = 2
TOP_K = 20

Night = tuple[Config, Store, dict[str, Any]]
"""The config of a night, the store where it lies, and what it returned."""


def small_config(root: str | Path, backbone: str, data: dict[str, Any], **sections: Any) -> Config:
    """Return a config with the smallest useful settings; sections win over them."""
    settings: dict[str, Any] = {
        "run_id": "night",
        "data": {"buckets": 32, **data},
        "storage": {"root": str(root)},
        "model": {"backbone": backbone, "width": 32, "heads": 2, "layers": 1, "max_history": 20},
        "train": {"epochs": EPOCHS},
        "score": {"top_k": TOP_K},
    }
    for name, values in sections.items():
        settings[name] = (
            {**settings.get(name, {}), **values} if isinstance(values, dict) else values
        )
    return Config.model_validate(settings)


def write_small_demo(
    store: Store, users: int = USERS, settings: DemoSettings = SETTINGS
) -> dict[str, str]:
    """Write the events and items of a small demo into a store; return what section data needs."""
    demo = make_demo(users, 17, settings)
    store.write_parquet("input/events.parquet", demo.events)
    store.write_parquet("input/items.parquet", demo.items)
    return {name: store.uri(f"input/{name}.parquet") for name in ("events", "items")}


@functools.cache
def published_night(backbone: str) -> Night:
    """Publish a night of the small demo beside the backbone, once a session; Ray must run."""
    store = Store(str(Path(backbone).with_name("published-night")))
    config = small_config(store.root, backbone, write_small_demo(store))
    return config, store, nightly(config, store)


def read_scores(store: Store, run_id: str, domain: str) -> pa.Table:
    """Return all lists of a domain, as the manifest names them."""
    files = store.read_json(f"runs/{run_id}/manifest.json")["files"]
    folder = f"/{domain_folder(domain)}/"
    return pa.concat_tables(
        store.read_parquet(file["path"]) for file in files if folder in file["path"]
    )
