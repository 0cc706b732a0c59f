from typing import Any

import pytest

from crossrec.config import Config
from crossrec.errors import ConfigError
from crossrec.increment import find_increment
from crossrec.storage import Store


def config_of(store: Store, run_id: str, **data: Any) -> Config:
    settings = {
        "run_id": run_id,
        "storage": {"root": store.root},
        "data": data,
        "score": {"mode": "incremental"},
    }
    return Config.model_validate(settings)


def publish(store: Store, run_id: str, **more: str) -> None:
    plan = {"buckets": 32, "prepared": f"prepared/of-{run_id}"}
    store.write_json(f"runs/{run_id}/plan.json", plan)
    store.write_json(f"runs/{run_id}/manifest.json", more)
    manifest = f"runs/{run_id}/manifest.json"
    store.write_json("current.json", {"run_id": run_id, "manifest": manifest})


def test_a_full_night_stands_on_nothing(store: Store) -> None:
    config = Config.model_validate({"storage": {"root": store.root}})
    assert find_increment(config, store) is None
    assert store.list("") == []


def test_an_incremental_night_needs_a_publication(store: Store) -> None:
    with pytest.raises(ConfigError, match=r"expected a published full night.*score\.mode=full"):
        find_increment(config_of(store, "tuesday"), store)


def test_it_stands_on_the_last_full_night_and_on_what_is_current(store: Store) -> None:
    publish(store, "sunday")
    first = find_increment(config_of(store, "monday"), store)
    assert first is not None
    assert (first.full, first.previous, first.items) == ("sunday", "sunday", "runs/sunday/items")
    publish(store, "monday", full="sunday")
    second = find_increment(config_of(store, "tuesday"), store)
    assert second is not None
    assert (second.full, second.previous) == ("sunday", "monday")
    assert second.prepared == "prepared/of-monday"
    assert second.plan["prepared"] == "prepared/of-sunday"


def test_a_rerun_stands_on_the_same_whatever_was_published_since(store: Store) -> None:
    publish(store, "sunday")
    before = find_increment(config_of(store, "monday"), store)
    publish(store, "another")
    assert find_increment(config_of(store, "monday"), store) == before


def test_a_published_run_is_not_done_again_on_itself(store: Store) -> None:
    publish(store, "sunday")
    with pytest.raises(ConfigError, match="give a new run_id"):
        find_increment(config_of(store, "sunday"), store)


def test_other_buckets_are_refused(store: Store) -> None:
    publish(store, "sunday")
    assert find_increment(config_of(store, "monday", buckets=32), store)
    with pytest.raises(ConfigError, match=r"data\.buckets: expected 32"):
        find_increment(config_of(store, "monday", buckets=64), store)


def test_a_full_night_that_is_gone_is_told(store: Store) -> None:
    publish(store, "monday", full="sunday")
    with pytest.raises(ConfigError, match="expected the runs sunday and monday"):
        find_increment(config_of(store, "tuesday"), store)
