"""When a night goes on with the published model; no Ray."""

from typing import Any

import pytest

from crossrec.config import Config, ModelConfig
from crossrec.data.histories import FORMAT
from crossrec.schema import US_PER_DAY
from crossrec.storage import Store
from crossrec.train.rest import rest

NIGHT = 1_000


def prepare(store: Store, config: Config, domains: tuple[str, ...] = ("shop", "video")) -> None:
    """Leave what prepare leaves, as far as it is read here."""
    summary: dict[str, Any] = {
        "format": FORMAT,
        "digest": "x",
        "domains": [
            {"name": name, "start": n, "stop": n + 1, "events": 1} for n, name in enumerate(domains)
        ],
        "buckets": 32,
        "users": 2,
        "events": 2,
        "items": len(domains),
        "as_of_us": (NIGHT - 1) * US_PER_DAY,
        "values": [],
        "images": None,
    }
    store.write_json("prepared/x/summary.json", summary)
    store.write_json(f"runs/{config.run_id}/prepare.json", {"prepared": "prepared/x", **summary})


def publish(store: Store, night: int) -> None:
    """Leave a publication whose model has learned up to a day."""
    settings = {
        "domains": ["shop", "video"],
        "settings": ModelConfig().model_dump(mode="json"),
        "facts": {"run_id": "old", "known_before_day": night},
    }
    trained = {"model": "models/m", "selected": "runs/old/s", "seconds": 9.0, "digest": "y"}
    for path, value in {
        "models/m/config.json": settings,
        "runs/old/s/config.json": settings,
        "runs/old/finetune.json": {**trained, "days": {"night": night}},
        "runs/old/prepare.json": {"users": 2, "items": 2},
        "runs/old/manifest.json": {"model": "models/m"},
        "current.json": {"run_id": "old", "manifest": "runs/old/manifest.json"},
    }.items():
        store.write_json(path, value)


def config_of(store: Store, every: int, **sections: Any) -> Config:
    settings = {"run_id": "new", "storage": {"root": store.root}, **sections}
    return Config.model_validate({**settings, "nightly": {"finetune_every": every}})


@pytest.mark.parametrize(("age", "every", "rests"), [(6, 7, True), (7, 7, False), (1, 1, False)])
def test_a_model_serves_for_so_many_days(store: Store, age: int, every: int, rests: bool) -> None:
    config = config_of(store, every)
    prepare(store, config)
    publish(store, NIGHT - age)
    assert rest(config, store) == rests
    assert store.exists("runs/new/finetune.json") == rests


def test_what_is_judged_is_the_published_model_on_tonights_days(store: Store) -> None:
    config = config_of(store, 7)
    prepare(store, config)
    publish(store, NIGHT - 3)
    assert rest(config, store)
    found = store.read_json("runs/new/finetune.json")
    assert (found["model"], found["selected"]) == ("models/m", "runs/old/s")
    assert found["days"] == {"valid": NIGHT - 28, "holdout": NIGHT - 14, "night": NIGHT}
    assert (found["seconds"], found["rests_on"]) == (0.0, "old")
    assert rest(config, store)  # a rerun says the same


def test_the_first_night_trains(store: Store) -> None:
    config = config_of(store, 7)
    prepare(store, config)
    assert not rest(config, store)


def test_another_domain_or_other_settings_train(store: Store) -> None:
    publish(store, NIGHT - 3)
    config = config_of(store, 7)
    prepare(store, config, domains=("shop", "social", "video"))
    assert not rest(config, store)
    config = config_of(store, 7, model={"width": 64})
    prepare(store, config)
    assert not rest(config, store)


def test_a_model_that_was_to_have_a_small_encoder_serves_with_it_alone(store: Store) -> None:
    config = config_of(store, 7, score={"encoder": "small"})
    prepare(store, config)
    publish(store, NIGHT - 3)
    assert not rest(config, store)
    trained = store.read_json("runs/old/finetune.json")
    # Also where there was nothing to distil: training again would find the same.
    store.write_json("runs/old/finetune.json", {**trained, "small": {"nothing": "no weight"}})
    assert rest(config, store)


def test_a_training_that_has_begun_goes_on(store: Store) -> None:
    config = config_of(store, 7)
    prepare(store, config)
    publish(store, NIGHT - 3)
    store.write_json("runs/new/finetuning.json", {"digest": "z"})
    assert not rest(config, store)
