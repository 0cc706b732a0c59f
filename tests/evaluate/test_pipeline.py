"""Judging written lists of several systems alike."""

from math import log2
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from crossrec.data.histories import Prepared
from crossrec.evaluate.lists import read_lists
from crossrec.evaluate.pipeline import judge_systems
from crossrec.evaluate.truth import holdout_truth, load_known_items
from crossrec.schema import SCORES, domain_folder
from crossrec.storage import Store
from tests.evaluate.holdout import write_prepared

ITEMS = {"film": ["f0", "f1", "f2"], "shop": ["s0", "s1"]}
F0, F1, F2, S0, S1 = range(5)
"""Catalogue rows."""

START, STOP = 10, 14

BUCKETS = [
    {"anna": [(F0, 1), (F1, 3), (F2, 11), (S0, 12)]},
    {"ben": [(S0, 5), (F1, 10)], "carl": [(F0, 9), (F1, 13)]},
]
"""What is judged: Anna's f2, which is new, and s0; Ben's f1; Carl's f1."""

Shown = dict[str, dict[str, list[str]]]
"""Items by domain and user."""

MODEL: Shown = {
    "film": {"anna": ["f2"], "ben": ["f0", "f1"], "carl": ["f1"]},
    "shop": {"anna": ["s0"], "ben": [], "carl": []},
}
OTHER: Shown = {
    "film": {"anna": ["f1"], "ben": ["f1"], "carl": ["f2", "f1"]},
    "shop": {"anna": [], "ben": [], "carl": []},
}
SECOND = 1 / log2(3)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture
def prepared(store: Store) -> Prepared:
    return write_prepared(store, ITEMS, BUCKETS)


def write(store: Store, folder: str, shown: Shown) -> list[str]:
    """Write a file a domain, in the form of scores; return their paths."""
    paths = []
    for domain, by_user in shown.items():
        rows = [
            {"user_id": user, "item_ids": items, "scores": [0.0] * len(items)}
            for user, items in by_user.items()
        ]
        paths.append(f"{folder}/{domain_folder(domain)}/bucket-00000.parquet")
        store.write_parquet(paths[-1], pa.Table.from_pylist(rows, SCORES))
    return paths


def judged(store: Store, prepared: Prepared, **systems: Shown) -> dict[str, Any]:
    items = load_known_items(store, prepared, START)
    truth = holdout_truth(store, prepared, items, range(2), START, STOP)
    files = {name: write(store, name, shown) for name, shown in systems.items()}
    return judge_systems(store, truth, files, items)


def test_systems_are_judged_on_the_same_pairs(store: Store, prepared: Prepared) -> None:
    systems = judged(store, prepared, model=MODEL, other=OTHER)["systems"]
    assert list(systems) == ["model", "other"]
    assert systems["model"]["all"]["ndcg@10"] == round((1 + 1 + SECOND + 1) / 4, 5)
    assert systems["other"]["all"]["ndcg@10"] == round((0 + 0 + 1 + SECOND) / 4, 5)
    assert systems["other"]["domain"]["shop"]["hr@50"] == 0.0
    assert systems["model"]["events_in_domain"]["0"]["pairs"] == 2  # Anna's shop, Ben's film


def test_lists_are_measured_by_domain(store: Store, prepared: Prepared) -> None:
    lists = judged(store, prepared, model=MODEL, other=OTHER)["systems"]["model"]["lists"]
    assert list(lists) == ["film", "shop"]
    assert lists["film"]["coverage@10"] == 1.0
    assert lists["film"]["gini@10"] == round((-2 * 1 + 2 * 2) / (2 * 4), 5)
    # Three events of films before day 10: two of f0, one of f1, none of f2, which counts as one.
    assert lists["film"]["novelty@10"] == round((3 * log2(3) + log2(3 / 2)) / 4, 5)
    # s0 alone is shown, and had the only event of the shop.
    assert lists["shop"] == {"coverage@10": 1 / 2, "gini@10": 1.0, "novelty@10": 0.0}


def test_the_model_is_compared_with_every_other_system(store: Store, prepared: Prepared) -> None:
    found = judged(store, prepared, model=MODEL, twin=MODEL, other=OTHER)
    assert list(found["comparison"]) == ["twin", "other"]
    assert found["comparison"]["twin"]["better"] == 0
    other = found["comparison"]["other"]
    assert other["pairs"] == 4
    assert other["difference"] == round((2 + (SECOND - 1) + (1 - SECOND)) / 4, 5)
    assert found["comparison_cold_item"] == {}


def test_the_model_is_compared_in_each_domain(store: Store, prepared: Prepared) -> None:
    found = judged(store, prepared, model=MODEL, other=OTHER)["comparison_by_domain"]
    assert {name: found[name]["other"]["pairs"] for name in found} == {"film": 3, "shop": 1}
    assert found["shop"]["other"]["difference"] == 1.0
    assert found["film"]["other"]["difference"] == round(1 / 3, 5)


def test_the_untrained_backbone_is_compared_on_new_items(store: Store, prepared: Prepared) -> None:
    found = judged(store, prepared, model=MODEL, untrained_backbone=OTHER, other=OTHER)
    # Anna's f2 is the only new item: the model has it, the backbone has not.
    assert found["comparison_cold_item"] == {
        "untrained_backbone": {
            "pairs": 1,
            "difference": 1.0,
            "low": 1.0,
            "high": 1.0,
            "better": 1.0,
        }
    }


def test_nothing_is_compared_where_nothing_can_be_judged(store: Store, prepared: Prepared) -> None:
    items = load_known_items(store, prepared, 20)
    truth = holdout_truth(store, prepared, items, range(2), 20, 34)
    files = {name: write(store, name, MODEL) for name in ("model", "untrained_backbone")}
    found = judge_systems(store, truth, files, items)
    compared = [found[name] for name in found if name.startswith("comparison")]
    assert compared == [{}, {}, {}]
    assert found["systems"]["model"]["all"] is None
    assert found["systems"]["model"]["lists"]["film"]["coverage@10"] == 1.0


def test_read_lists_takes_each_file_for_its_folders_domain(store: Store) -> None:
    paths = write(store, "run/domain=b/x", {"a/b": {"u": ["i"]}, "b": {"v": ["j"]}})
    found = read_lists(store, paths, ["a/b", "b", "c"])
    assert {name: table.to_pylist() for name, table in found.items()} == {
        "a/b": [{"user_id": "u", "item_ids": ["i"]}],
        "b": [{"user_id": "v", "item_ids": ["j"]}],
        "c": [],
    }
