"""What a night takes for the published model; no Ray."""

from pathlib import Path

import pytest

from crossrec.config import Config
from crossrec.published import find_published
from crossrec.storage import Store


def config_of(store: Store, run_id: str) -> Config:
    return Config.model_validate({"run_id": run_id, "storage": {"root": store.root}})


def publish(store: Store, run_id: str, trained_by: str, night: int = 100) -> None:
    """Leave what a publication leaves, as far as it is read here."""
    model, selected = f"models/{trained_by}-x", f"runs/{trained_by}/train/selected"
    settings = {
        "domains": ["shop", "video"],
        "facts": {"run_id": trained_by, "known_before_day": night},
    }
    store.write_json(f"{model}/config.json", settings)
    store.write_json(f"{selected}/config.json", settings)
    store.write_json(f"runs/{trained_by}/finetune.json", {"selected": selected, "model": model})
    store.write_json(f"runs/{run_id}/prepare.json", {"users": 7, "items": 9})
    store.write_json(f"runs/{run_id}/manifest.json", {"model": model})
    store.write_json("current.json", {"run_id": run_id, "manifest": f"runs/{run_id}/manifest.json"})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def test_before_any_publication_there_is_none(store: Store) -> None:
    assert find_published(config_of(store, "1"), store) is None


def test_the_model_may_be_that_of_an_older_run(store: Store) -> None:
    publish(store, "3", trained_by="1")
    found = find_published(config_of(store, "4"), store)
    assert found is not None
    assert (found.run_id, found.trained_by, found.night) == ("3", "1", 100)
    assert (found.model, found.selected) == ("models/1-x", "runs/1/train/selected")
    assert (found.domains, found.users, found.items) == (("shop", "video"), 7, 9)


def test_a_rerun_finds_what_the_run_found_first(store: Store) -> None:
    publish(store, "1", trained_by="1")
    config = config_of(store, "2")
    first = find_published(config, store)
    publish(store, "2", trained_by="2")
    publish(store, "3", trained_by="3")
    assert find_published(config, store) == first


def test_a_run_is_not_compared_with_itself(store: Store) -> None:
    publish(store, "1", trained_by="1")
    assert find_published(config_of(store, "1"), store) is None


def test_what_is_gone_cannot_be_compared_with(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    publish(store, "1", trained_by="1")
    store.delete("runs/1/train/selected")
    assert find_published(config_of(store, "2"), store) is None
