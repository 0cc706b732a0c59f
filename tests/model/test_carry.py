import dataclasses

import pyarrow as pa
import pytest
import torch

from crossrec.config import ModelConfig
from crossrec.errors import ConfigError
from crossrec.model.carry import carry_over
from crossrec.model.checkpoint import Model
from crossrec.model.recommender import Recommender

SETTINGS = ModelConfig(width=8, layers=1, heads=2, max_history=4)
TEXT_WIDTH = 6


def items(*keys: tuple[str, str]) -> pa.Table:
    domains, ids = zip(*keys, strict=True)
    return pa.table({"domain": domains, "item_id": ids, "events": [1] * len(keys)})


def fresh(count: int, domains: int, seed: int, settings: ModelConfig = SETTINGS) -> Recommender:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        recommender = Recommender(settings, TEXT_WIDTH, count, domains)
        torch.nn.init.normal_(recommender.id_embedding.weight)
        torch.nn.init.normal_(recommender.projection)
    return recommender


OLD_ITEMS = items(("shop", "a"), ("shop", "b"), ("video", "a"))
OLD = Model(SETTINGS, fresh(3, 2, seed=1), OLD_ITEMS, ("shop", "video"))
NEW_ITEMS = items(("music", "a"), ("video", "a"), ("shop", "b"))


@pytest.fixture
def carried() -> Recommender:
    recommender = fresh(3, 2, seed=2)
    carry_over(recommender, NEW_ITEMS, ("music", "video"), OLD)
    return recommender


def test_carry_over_takes_all_that_is_no_items_or_domains(carried: Recommender) -> None:
    old = OLD.recommender.state_dict()
    named = {"id_embedding.weight", "event_domain.weight", "query_domain.weight"}
    for name, weights in carried.state_dict().items():
        assert name in named or torch.equal(weights, old[name]), name


def test_carry_over_finds_items_by_domain_and_id(carried: Recommender) -> None:
    old, new = OLD.recommender.id_embedding.weight, carried.id_embedding.weight
    assert torch.equal(new[1], old[2])
    assert torch.equal(new[2], old[1])
    assert torch.equal(new[0], fresh(3, 2, seed=2).id_embedding.weight[0])


def test_carry_over_finds_domains_by_name(carried: Recommender) -> None:
    before = fresh(3, 2, seed=2)
    for layer in ("event_domain", "query_domain"):
        old, new = (getattr(model, layer).weight for model in (OLD.recommender, carried))
        assert torch.equal(new[1], old[1])
        assert torch.equal(new[0], getattr(before, layer).weight[0])
    assert torch.equal(carried.event_domain.weight[2], OLD.recommender.event_domain.weight[2])


def test_carry_over_refuses_weights_of_another_shape() -> None:
    wider = SETTINGS.model_copy(update={"width": 16})
    with pytest.raises(ConfigError, match=r"model.width: expected 8, as trained"):
        carry_over(fresh(3, 2, 2, wider), NEW_ITEMS, ("music", "video"), OLD)


def test_carry_over_refuses_texts_of_another_backbone() -> None:
    other = dataclasses.replace(OLD, recommender=Recommender(SETTINGS, TEXT_WIDTH + 1, 3, 2))
    with pytest.raises(ConfigError, match=r"model.backbone: expected texts of width 7"):
        carry_over(fresh(3, 2, 2), NEW_ITEMS, ("music", "video"), other)
