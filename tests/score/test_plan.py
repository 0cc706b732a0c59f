import logging
import re
from types import SimpleNamespace
from typing import Any, cast

import pytest

from crossrec.config import Config
from crossrec.data.candidates import FoundRules
from crossrec.data.histories import DomainRange, Prepared
from crossrec.errors import ConfigError
from crossrec.score import plan as plan_module
from crossrec.score.plan import find_model, write_plan
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


SHOP = DomainRange("shop", 0, 1, 0)


def plan_of(
    store: Store, domains: tuple[DomainRange, ...] = (SHOP,), **score: Any
) -> dict[str, Any]:
    """Return the plan of a run that scores with the model `own`."""
    prepared = Prepared("prepared/x", "x", domains, 32, 1, 0, 1, 0)
    rules = cast(FoundRules, SimpleNamespace(public=dict))
    return write_plan(config_of(store, **score), store, prepared, "models/own", rules)


@pytest.fixture
def planned(models: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store, with what a plan is made from."""
    models.write_json("prepared/x/summary.json", {"inputs": {}})
    models.write_json("models/own/config.json", {"facts": {}, "domains": ["shop"]})
    monkeypatch.setattr(plan_module, "check_model", lambda *_: "sum")
    return models


def test_plan_names_the_small_encoder_where_the_model_has_one(planned: Store) -> None:
    planned.write_json("models/own/small.json", {"layers": 1})
    assert plan_of(planned, encoder="small")["encoder"] == "small"
    with pytest.raises(ConfigError, match=r"another plan \(differs in encoder\)"):
        plan_of(planned)


def test_a_model_without_a_small_encoder_is_scored_by_its_own_with_a_warning(
    planned: Store, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "crossrec"):
        wanted = plan_of(planned, encoder="small")
    assert "models/own has no small encoder, its own is used" in caplog.text
    # So that the run goes on, whichever of both is asked for.
    assert wanted == plan_of(planned)
    assert "encoder" not in wanted


@pytest.mark.parametrize("domains", [["store"], ["shop", "video"], []], ids=str)
def test_a_model_of_other_domains_is_refused_before_anything_is_written(
    planned: Store, domains: list[str]
) -> None:
    planned.write_json("models/own/config.json", {"facts": {}, "domains": domains})
    said = rf"models/own: .* domains, \['shop'\], found one of {re.escape(str(domains))}; fine-tune"
    with pytest.raises(ConfigError, match=said):
        plan_of(planned)
    assert not planned.exists("runs/night/plan.json")


def test_a_model_that_numbers_the_domains_otherwise_is_refused(planned: Store) -> None:
    planned.write_json("models/own/config.json", {"facts": {}, "domains": ["video", "shop"]})
    with pytest.raises(ConfigError, match=r"\['shop', 'video'\], found one of \['video', 'shop'\]"):
        plan_of(planned, (SHOP, DomainRange("video", 1, 2, 0)))
