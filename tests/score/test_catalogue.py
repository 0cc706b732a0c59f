from pathlib import Path

import pytest
import torch

from crossrec.data.histories import open_prepared
from crossrec.errors import ConfigError
from crossrec.increment import Increment
from crossrec.score import pipeline
from crossrec.score.catalogue import FORMAT, ITEMS, VECTORS, Items, has_items, load_items
from crossrec.storage import Store
from tests.nights import DEMO, Night

FOLDER = "runs/night/items"


def loaded(night: Night, store: Store) -> Items:
    prepared = open_prepared(night.store, night.read_json("plan.json")["prepared"])
    return load_items(store, prepared, FOLDER)


def mapped_files() -> set[str]:
    """The files whose pages this process shares with all others that map them."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {line.split(maxsplit=5)[5] for line in lines if len(line.split(maxsplit=5)) == 6}


def test_items_are_mapped_and_not_read(night: Night) -> None:
    items = loaded(night, night.store)
    assert night.store.full_path(f"{FOLDER}/{VECTORS}") in mapped_files()
    assert len(items.state.texts_IW) == len(items.state.vectors_IW) == len(night.items)
    assert set(items.new) >= set(DEMO.domains)


def test_items_of_another_version_are_built_again_and_not_stood_on(
    night: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert has_items(night.store, FOLDER)
    store = Store(str(tmp_path))
    assert not has_items(store, FOLDER)
    built = night.store.read_json(f"{FOLDER}/{ITEMS}")
    store.write_json(f"{FOLDER}/{ITEMS}", built | {"format": FORMAT - 1})
    assert not has_items(store, FOLDER)
    stood_on = Increment("night", "night", {}, "prepared/x")
    monkeypatch.setattr(pipeline, "find_increment", lambda *_: stood_on)
    with pytest.raises(ConfigError, match="expected a full night of this version"):
        pipeline._find_increment(night.config, store)
    assert pipeline._find_increment(night.config, night.store) == stood_on


def test_items_of_a_remote_store_are_fetched_once_a_node(
    night: Night, s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = Store(s3_root)
    for name in night.store.list(FOLDER):
        remote.write_bytes(f"{FOLDER}/{name}", night.store.read_bytes(f"{FOLDER}/{name}"))
    model = night.read_json("plan.json")["model"]
    for name in night.store.list(model):
        if name.endswith((".json", ".safetensors")):
            remote.write_bytes(f"{model}/{name}", night.store.read_bytes(f"{model}/{name}"))
    monkeypatch.setattr("crossrec.score.catalogue.node_cache", lambda: tmp_path)
    first = loaded(night, remote)
    for name in set(remote.list(FOLDER)) - {ITEMS}:
        remote.delete(f"{FOLDER}/{name}")
    again, here = loaded(night, remote), loaded(night, night.store)
    (path,) = tmp_path.rglob(VECTORS)
    assert str(path) in mapped_files()
    for items in (first, again):
        assert torch.equal(items.state.vectors_IW, here.state.vectors_IW)
        assert torch.equal(items.columns["model"]["shop"], here.columns["model"]["shop"])
