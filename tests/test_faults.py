from pathlib import Path

import pytest

from crossrec.errors import InputError
from crossrec.nightly import nightly
from tests.nights import (
    BUCKETS,
    HEAVY_ITEMS,
    ODD_DOMAIN,
    ODD_ITEMS,
    SILENT_USERS,
    TOP_K,
    Night,
    change,
    modified,
)
from tests.proxy import FAULTS, FaultyStore

FAULTS_OF_A_KIND = 5
"""At least so many of each: prepare, finetune, evaluate, score and publish each ask often."""


def test_bad_input_leaves_what_was_published(night: Night, tmp_path: Path) -> None:
    store = night.store
    good = Path(store.full_path("input/events.parquet")).read_bytes()
    (tmp_path / "1.parquet").write_bytes(good)
    (tmp_path / "2.parquet").write_bytes(good[: len(good) // 2])
    tomorrow = change(night.config, run_id="tomorrow", data={"events": str(tmp_path)})
    before = modified(store, "runs/night") | modified(store, "models")
    current = store.read_bytes("current.json")
    with pytest.raises(InputError, match=r"2\.parquet: expected .*Parquet"):
        nightly(tomorrow, store)
    assert store.read_bytes("current.json") == current
    assert modified(store, "runs/night") | modified(store, "models") == before
    assert not store.exists("runs/tomorrow/manifest.json")


@pytest.mark.slow
def test_night_on_s3_is_published(odd_night: Night) -> None:
    """From the input to the manifest nothing of it was on a disk."""
    store = odd_night.store
    assert store.root.startswith("s3://")
    assert store.read_json("current.json")["manifest"] == "runs/night/manifest.json"
    users = set(odd_night.lists(ODD_DOMAIN)["user_id"].to_pylist())
    assert users > set(odd_night.events["user_id"].to_pylist())


@pytest.mark.slow
def test_night_on_s3_lost_nothing_of_what_failed(
    odd_night: Night, faulty_store: FaultyStore
) -> None:
    """One request in twenty was told to slow down, cut off, or never answered."""
    assert {*faulty_store.met} == {*FAULTS}
    assert min(faulty_store.met.values()) >= FAULTS_OF_A_KIND
    manifest = odd_night.manifest
    assert len(manifest["files"]) == BUCKETS
    everyone = {*odd_night.events["user_id"].to_pylist(), *SILENT_USERS}
    assert sorted(odd_night.lists(ODD_DOMAIN)["user_id"].to_pylist()) == sorted(everyone)
    assert not [name for name in odd_night.store.list("") if "claims" in name]


@pytest.mark.slow
def test_night_on_s3_keeps_its_checkpoints_there(odd_night: Night) -> None:
    progress = odd_night.store.read_json(f"{odd_night.checkpoints()[-1]}/progress.json")
    assert [(phase["phase"], phase["is_done"]) for phase in progress["phases"]] == [
        ("select", True),
        ("refit", True),
    ]


@pytest.mark.slow
def test_history_of_100_000_events_gets_its_list(odd_night: Night) -> None:
    (row,) = (row for row in odd_night.lists(ODD_DOMAIN).to_pylist() if row["user_id"] == "heavy")
    ids = odd_night.items["item_id"].to_pylist()
    assert len(ids) == ODD_ITEMS
    assert len(set(row["item_ids"])) == TOP_K
    assert set(row["item_ids"]) <= set(ids[HEAVY_ITEMS:])
