from pathlib import Path

import numpy as np
import pytest
import torch

from crossrec.config import Config
from crossrec.errors import ConfigError
from crossrec.storage import Store
from crossrec.train.continued import Anchor, Earlier, Start, find_start, select_learners

NEWEST = np.array([5, 20, 19, 25, -3])


def config_of(store: Store, continue_from: str | None, run_id: str = "tonight") -> Config:
    return Config.model_validate(
        {
            "run_id": run_id,
            "storage": {"root": store.root},
            "train": {"continue_from": continue_from},
        }
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Last night is published."""
    store = Store(str(tmp_path))
    store.write_json("models/last-1/config.json", {"facts": {"run_id": "last"}})
    store.write_json(
        "runs/last/finetune.json",
        {
            "selected": "runs/last/train/selected",
            "days": {"valid": 70, "holdout": 84, "night": 98},
        },
    )
    store.write_json("runs/last/manifest.json", {"model": "models/last-1"})
    store.write_json("current.json", {"run_id": "last", "manifest": "runs/last/manifest.json"})
    return store


@pytest.mark.parametrize("name", ["published", "last-1"])
def test_each_model_goes_on_after_what_it_has_seen(store: Store, name: str) -> None:
    assert find_start(config_of(store, name), store) == Earlier(
        Start("runs/last/train/selected", 70), Start("models/last-1", 98), (84, 98)
    )


def test_without_the_key_training_begins_at_the_start(store: Store) -> None:
    assert find_start(config_of(store, None), store) is None


def test_the_first_night_begins_at_the_start(tmp_path: Path) -> None:
    empty = Store(str(tmp_path / "empty"))
    assert find_start(config_of(empty, "published"), empty) is None


def test_a_rerun_goes_on_from_the_same_model(store: Store) -> None:
    config = config_of(store, "published")
    first = find_start(config, store)
    store.write_json("runs/tonight/manifest.json", {"model": "models/tonight-1"})
    store.write_json(
        "current.json", {"run_id": "tonight", "manifest": "runs/tonight/manifest.json"}
    )
    assert find_start(config, store) == first


@pytest.mark.parametrize("gone", ["models/last-1/config.json", "runs/last/finetune.json"])
def test_a_model_that_is_gone_is_refused(store: Store, gone: str) -> None:
    store.delete(gone)
    with pytest.raises(ConfigError, match=f"train.continue_from: expected a model with .*{gone}"):
        find_start(config_of(store, "last-1"), store)


def test_only_who_did_something_new_learns() -> None:
    keep, since = select_learners(NEWEST, 20, 0.0, np.random.default_rng(1))
    assert keep.tolist() == [False, True, False, True, False]
    assert (since == 20).all()


def test_a_share_of_the_users_learns_from_everything_again() -> None:
    newest = np.zeros(4_000, np.int64)
    keep, since = select_learners(newest, 20, 0.3, np.random.default_rng(1))
    assert keep.mean() == pytest.approx(0.3, abs=0.03)
    assert (since[keep] < 0).all()
    again, _ = select_learners(newest, 20, 0.3, np.random.default_rng(2))
    assert not np.array_equal(keep, again)


def test_the_anchor_takes_back_its_share_of_a_move() -> None:
    weights = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = torch.optim.SGD([weights], lr=0.1)
    anchor = Anchor(optimizer, weight=2.0)
    with torch.no_grad():
        weights.add_(torch.tensor([1.0, -1.0]))
    anchor.pull(optimizer)
    assert weights.tolist() == pytest.approx([1.8, 1.2])


def test_an_anchor_of_no_weight_lets_weights_go() -> None:
    weights = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = torch.optim.SGD([weights], lr=0.1)
    anchor = Anchor(optimizer, weight=0.0)
    with torch.no_grad():
        weights.add_(1)
    anchor.pull(optimizer)
    assert weights.item() == 2.0
