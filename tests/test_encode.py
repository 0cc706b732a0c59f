"""From a catalogue's texts to a matrix a domain; no Ray."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from crossrec import encode as encode_module
from crossrec.config import ModelConfig
from crossrec.data.histories import DomainRange, Prepared, catalogue_path
from crossrec.encode import encode_catalogue
from crossrec.model.backbone import encode_texts, load_backbone
from crossrec.model.source import BackboneSource
from crossrec.schema import CATALOGUE
from crossrec.storage import Store
from crossrec.vectorcache import Work, read_vectors

TEXTS = {"book": ["a tale", "", "a map"], "shop": ["tea", "a map"], "video": ["tea", "a tale"]}


@pytest.fixture
def prepared(tmp_path: Path) -> tuple[Store, Prepared]:
    store = Store(str(tmp_path))
    return store, write_catalogue(store, "prepared/x", TEXTS)


def write_catalogue(store: Store, folder: str, catalogue: dict[str, list[str]]) -> Prepared:
    """Write items by domain and text."""
    domains = []
    start = 0
    for name, texts in catalogue.items():
        columns = {
            "domain": [name] * len(texts),
            "item_id": [str(number) for number in range(len(texts))],
            "text": texts,
            "category": [None] * len(texts),
            "available_day": [None] * len(texts),
        }
        table = pa.table(columns, schema=CATALOGUE)
        store.write_parquet(catalogue_path(folder, name), table)
        domains.append(DomainRange(name, start, start + len(texts), 0))
        start += len(texts)
    return Prepared(folder, "x", tuple(domains), 1, 0, 0, start, 0)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The texts of each run of actors; all their work in this process."""
    found: list[list[str]] = []

    def here(work: Work) -> None:
        encoder = work.encoder(*work.arguments)
        found.append([text for part in work.parts for text in part["text"].to_pylist()])
        for part in work.parts:
            encoder(part)

    monkeypatch.setattr(encode_module, "encode_parts", here)
    return found


@pytest.mark.parametrize(
    ("at_once", "runs"),
    [
        (100, [["a tale", "a map", "tea"]]),
        (5, [["a tale", "a map", "tea"]]),
        (4, [["a tale", "a map"], ["tea"]]),
        (1, [["a tale", "a map"], ["tea"]]),
    ],
)
def test_each_text_is_encoded_once_with_few_in_memory(
    prepared: tuple[Store, Prepared],
    encoded: list[list[str]],
    tiny_backbone: str,
    monkeypatch: pytest.MonkeyPatch,
    at_once: int,
    runs: list[list[str]],
) -> None:
    monkeypatch.setattr(encode_module, "ITEMS_AT_ONCE", at_once)
    monkeypatch.setattr(encode_module, "TEXTS_A_CHUNK", 2)
    store, catalogue = prepared
    source = BackboneSource(store, ModelConfig(backbone=tiny_backbone, text_tokens=16))
    folder = encode_catalogue(store, catalogue, source)
    assert encoded == runs
    backbone = load_backbone(tiny_backbone, 16)
    for name, texts in TEXTS.items():
        vectors = read_vectors(store, folder, name)
        for text, vector in zip(texts, vectors, strict=True):
            expected = encode_texts(backbone, [text])[0] if text else np.zeros(len(vector))
            np.testing.assert_allclose(vector, expected, atol=1e-5)


def test_of_a_catalogue_that_changed_only_new_texts_are_encoded(
    prepared: tuple[Store, Prepared], encoded: list[list[str]], tiny_backbone: str
) -> None:
    store, before = prepared
    source = BackboneSource(store, ModelConfig(backbone=tiny_backbone, text_tokens=16))
    folders = [encode_catalogue(store, before, source)]
    texts = {"book": ["a tale", "", "a new map"], "shop": ["tea", "a map"], "toy": ["a tale"]}
    after = write_catalogue(store, "prepared/y", texts)
    folders.append(encode_catalogue(store, after, source))
    assert encoded == [["a tale", "a map", "tea"], ["a new map"]]
    old, new = (read_vectors(store, folder, "book") for folder in folders)
    assert (old != new).any(1).tolist() == [False, False, True]
    old, new = (read_vectors(store, folder, "shop") for folder in folders)
    np.testing.assert_array_equal(old, new)


def test_domains_share_memory_as_far_as_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode_module, "ITEMS_AT_ONCE", 10)
    ends = {"a": 4, "b": 10, "c": 11, "d": 41, "e": 42}
    starts = [0, *ends.values()]
    domains = [
        DomainRange(name, start, end, 0)
        for (name, end), start in zip(ends.items(), starts, strict=False)
    ]
    groups = encode_module._groups(domains)
    assert [[domain.name for domain in group] for group in groups] == [
        ["a", "b"],
        ["c"],
        ["d"],
        ["e"],
    ]
