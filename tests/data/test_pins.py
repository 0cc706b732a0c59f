import datetime as dt
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from crossrec.config import Config
from crossrec.data.pins import check_pins, pin_inputs, unpin_inputs
from crossrec.errors import ConfigError, InputError
from crossrec.storage import Store

FILES = ("events/0.parquet", "events/1.parquet", "items/0.parquet")


@pytest.fixture
def lake(store: Store) -> Store:
    """A store in which the input lies, beside what is made of it."""
    for name in FILES:
        store.write_parquet(name, pa.table({"user_id": ["ada", "bob"]}))
    return store


def config_of(lake: Store, run_id: str = "night", **data: Any) -> Config:
    inputs = {name: lake.uri(name) for name in ("events", "items")}
    return Config.model_validate(
        {"run_id": run_id, "data": {**inputs, **data}, "storage": {"root": lake.root}}
    )


def read_by(lake: Store, config: Config) -> list[str]:
    inputs = pin_inputs(config, lake).inputs
    found = [file.uri for source in inputs.values() for file in source.files]
    return [uri.removeprefix(lake.uri()).strip("/") for uri in found]


def test_pins_name_every_file_with_size_and_version(lake: Store) -> None:
    config = config_of(lake)
    assert read_by(lake, config) == list(FILES)
    pinned = lake.read_json("runs/night/inputs.json")
    assert [file["path"] for file in pinned["files"]] == [lake.uri(name) for name in FILES]
    assert [file["table"] for file in pinned["files"]] == ["events", "events", "items"]
    assert all(file["bytes"] > 100 and file["version"] for file in pinned["files"])
    assert set(pinned["files"][0]) == {"table", "path", "bytes", "version"}


def test_newer_files_wait_for_the_next_run(lake: Store) -> None:
    first = pin_inputs(config_of(lake), lake)
    lake.write_parquet("events/00.parquet", pa.table({"user_id": ["cy"]}))
    again = pin_inputs(config_of(lake), lake)
    assert again == first
    assert again.now < dt.datetime.now(dt.UTC)
    next_files = ["events/0.parquet", "events/00.parquet", *FILES[1:]]
    assert read_by(lake, config_of(lake, "next")) == next_files


def test_changed_file_is_refused(lake: Store) -> None:
    pin_inputs(config_of(lake), lake)
    lake.write_parquet("events/1.parquet", pa.table({"user_id": ["ada", "ben"]}))
    expected = (
        r"events/1\.parquet: expected the file that run night began with \(\d+ bytes, version"
    )
    with pytest.raises(InputError, match=expected + r".*found another .*give a new run_id"):
        pin_inputs(config_of(lake), lake)
    with pytest.raises(InputError, match=expected):
        check_pins(config_of(lake), lake)
    pin_inputs(config_of(lake, "next"), lake)


def test_missing_file_is_refused(lake: Store) -> None:
    pin_inputs(config_of(lake), lake)
    lake.delete("events/0.parquet")
    with pytest.raises(
        InputError, match=r"events/0\.parquet: expected .*, found none; put it back"
    ):
        pin_inputs(config_of(lake), lake)


def test_touched_file_is_as_good_as_a_changed_one(tmp_path: Path) -> None:
    lake = Store(str(tmp_path))
    for name in FILES:
        lake.write_parquet(name, pa.table({"user_id": ["ada", "bob"]}))
    pin_inputs(config_of(lake), lake)
    shutil.copy(tmp_path / FILES[0], tmp_path / "copy")
    (tmp_path / "copy").replace(tmp_path / FILES[0])
    with pytest.raises(InputError, match=r"events/0\.parquet: .*version"):
        pin_inputs(config_of(lake), lake)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"buckets": 64}, r"data\.buckets None, now 64"),
        ({"as_of": "2024-01-01"}, r"data\.as_of None, now 2024-01-01"),
        ({"events": "items"}, r"data\.events .*events, now .*items"),
        ({"users": "events"}, r"data\.users None, now .*events"),
    ],
)
def test_other_settings_are_refused(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    lake = Store(str(tmp_path))
    for name in FILES:
        lake.write_parquet(name, pa.table({"user_id": ["ada", "bob"]}))
    pin_inputs(config_of(lake), lake)
    places = {name: lake.uri(change[name]) for name in ("events", "users") if name in change}
    with pytest.raises(ConfigError, match=rf"run_id night: .*{named}.*give a new run_id"):
        pin_inputs(config_of(lake, **(change | places)), lake)
    pin_inputs(config_of(lake, max_reject_share=0.5), lake)


def test_run_without_pins_has_nothing_to_check(lake: Store) -> None:
    check_pins(config_of(lake), lake)
    assert not lake.exists("runs/night/inputs.json")


def test_unpinned_run_takes_what_there_is(lake: Store) -> None:
    pin_inputs(config_of(lake), lake)
    lake.delete("events/0.parquet")
    unpin_inputs(lake, "night")
    assert read_by(lake, config_of(lake)) == list(FILES[1:])
