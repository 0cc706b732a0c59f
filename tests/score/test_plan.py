from typing import Any

import pytest

from crossrec.config import Config
from crossrec.errors import ConfigError
from crossrec.score.plan import find_model
from crossrec.storage import Store


def config_of(store: Store, **score: Any) -> Config:
    return Config.model_validate(
        {"run_id": "night", "storage": {"root": store.root}, "score": score}
    )


@pytest.fixture
def models(store: Store) -> Store:
    """A store with three models, of which `published` is what readers follow."""
    for name in ("published", "planned", "own"):
        store.write_json(f"models/{name}/config.json", {})
    store.write_json("runs/old/manifest.json", {"model": "models/published"})
    store.write_json("current.json", {"run_id": "old", "manifest": "runs/old/manifest.json"})
    return store


def test_rerun_keeps_its_plans_model_whatever_was_published_since(models: Store) -> None:
    assert find_model(config_of(models), models) == "models/published"
    models.write_json("runs/night/plan.json", {"model": "models/planned"})
    assert find_model(config_of(models), models) == "models/planned"


def test_model_of_the_run_and_of_the_config_come_first(models: Store) -> None:
    models.write_json("runs/night/plan.json", {"model": "models/planned"})
    models.write_json("runs/night/finetune.json", {"model": "models/own"})
    assert find_model(config_of(models), models) == "models/own"
    assert find_model(config_of(models, model="published"), models) == "models/published"


def test_missing_model_is_refused(models: Store) -> None:
    models.write_json("runs/night/plan.json", {"model": "models/planned"})
    models.delete("models/planned")
    with pytest.raises(ConfigError, match="found models/planned; name one that exists"):
        find_model(config_of(models), models)
