"""Two nights a week apart: the second goes on from the model of the first, LoRA in both."""

import datetime as dt
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
from safetensors.torch import load

from crossrec.data.prepare import prepare
from crossrec.storage import Store
from crossrec.train.launch import finetune
from tests.nights import Night, change

pytestmark = pytest.mark.slow

REPLAY = 0.25


def run(night: Night, run_id: str, as_of: dt.datetime, **train: Any) -> dict[str, Any]:
    # Few items a step pass through the backbone.
    train |= {"full_softmax_items": 0, "negatives": 16, "epochs": 4}
    train |= {"backbone_learning_rate": 1e-4}
    config = change(
        night.config,
        run_id=run_id,
        data={"as_of": as_of.isoformat()},
        model={"adapter": "lora", "adapter_rank": 4},
        train=train,
    )
    prepare(config, night.store)
    return finetune(config, night.store)


@pytest.fixture(scope="module")
def nights(night: Night) -> tuple[dict[str, Any], dict[str, Any]]:
    newest = pc.max(night.events["timestamp"]).as_py()
    first = run(night, "first", newest - dt.timedelta(days=7))
    assert first["training"]["best_epoch"] > 0, "no epoch is better than none: nothing goes on"
    model = first["model"].removeprefix("models/")
    return first, run(night, "second", newest, continue_from=model, replay=REPLAY)


def backbone(store: Store, model: str) -> dict[str, Any]:
    return load(store.read_bytes(f"{model}/backbone/model.safetensors"))


def test_lora_is_in_the_exported_weights(
    night: Night, nights: tuple[dict[str, Any], dict[str, Any]], tiny_backbone: str
) -> None:
    before = load(Path(tiny_backbone, "model.safetensors").read_bytes())
    after = backbone(night.store, nights[0]["model"])
    assert after.keys() == before.keys()
    changed = {name for name in before if not after[name].equal(before[name])}
    assert changed
    assert all(name.startswith("encoder.layer.") and name.endswith(".weight") for name in changed)


def test_the_second_night_goes_on_from_the_first(
    night: Night, nights: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    first, second = nights
    assert (first["continues"], second["continues"]) == (None, first["model"])
    assert night.store.read_json("runs/second/start.json") == {"model": first["model"]}


def test_only_who_is_new_or_replayed_is_read(
    nights: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    first, second = nights
    (everyone,) = {point["histories"] for point in first["training"]["curve"][1:]}
    for point in second["training"]["curve"][1:]:
        assert REPLAY / 2 * everyone < point["histories"] < 0.95 * everyone


def test_what_the_first_night_was_judged_on_is_judged_again(
    nights: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    first, second = nights
    assert all("earlier_ndcg@10" not in point for point in first["training"]["curve"])
    assert all(0 <= point["earlier_ndcg@10"] <= 1 for point in second["training"]["curve"])
