import pytest

from crossrec.errors import UserError
from crossrec.model.integrity import check_model, write_checksums
from crossrec.storage import Store

FOLDER = "models/m"
FILES = (
    "config.json",
    "model.safetensors",
    "backbone/model.safetensors",
    "image_backbone/model.safetensors",
)


@pytest.fixture
def finished(store: Store) -> str:
    for number, name in enumerate(FILES):
        store.write_bytes(f"{FOLDER}/{name}", bytes([number]) * 9)
    return write_checksums(store, FOLDER)


def test_check_model_returns_what_write_checksums_did(store: Store, finished: str) -> None:
    assert len(finished) == 64
    assert check_model(store, FOLDER) == finished
    assert set(store.read_json(f"{FOLDER}/checksums.json")) == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_check_model_finds_a_changed_file(store: Store, finished: str, name: str) -> None:
    store.write_bytes(f"{FOLDER}/{name}", b"\7" * 9)
    with pytest.raises(UserError, match=rf"{name}: expected sha256 [0-9a-f]+, found [0-9a-f]+"):
        check_model(store, FOLDER)


def test_check_model_finds_a_missing_file(store: Store, finished: str) -> None:
    store.delete(f"{FOLDER}/{FILES[2]}")
    with pytest.raises(UserError, match=rf"expected all of its files, found .*{FILES[2]}"):
        check_model(store, FOLDER)


def test_check_model_refuses_a_folder_without_checksums(store: Store) -> None:
    store.write_bytes(f"{FOLDER}/config.json", b"{}")
    with pytest.raises(UserError, match=r"expected a whole model, found no checksums\.json"):
        check_model(store, FOLDER)


def test_another_model_has_another_digest(store: Store, finished: str) -> None:
    store.write_bytes(f"{FOLDER}/config.json", b"other")
    assert write_checksums(store, FOLDER) != finished
