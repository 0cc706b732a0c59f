import dataclasses
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crossrec.data.demo import make_demo
from crossrec.data.demo_relations import NOISE, draw_relations
from crossrec.data.events import index_items
from crossrec.data.histories import DomainRange, Prepared
from crossrec.data.inputs import ORIGIN
from crossrec.data.rejects import Origins
from crossrec.data.relations import RELATED_UNIT, find_pairs, related_neighbours
from crossrec.data.view import View
from crossrec.model.fusion import OVERLAP_FLOOR
from crossrec.storage import Store

INDEX = index_items(
    ("shop", "video"), np.array([0, 2, 4]), pa.array(["a", "b", "a", "c"], pa.large_string())
)
"""Rows 0, 1 in the shop and 2, 3 of video."""


def relations(*rows: tuple[object, ...]) -> pa.Table:
    """Rows of item_id, domain, relation, related_item_id, related_domain, weight."""
    names = ("item_id", "domain", "relation", "related_item_id", "related_domain")
    columns = list(zip(*rows, strict=True))
    table = {n: pa.array(list(c), pa.large_string()) for n, c in zip(names, columns, strict=False)}
    weights = pa.array(list(columns[5]), pa.float32())
    return pa.table({ORIGIN: np.arange(len(rows)), **table, "weight": weights})


def origins(rows: int) -> Origins:
    return Origins("relations", ("/in.parquet",), np.array([0, rows]))


def pairs_of(table: pa.Table) -> dict[tuple[int, int], float]:
    found, _ = find_pairs(table, INDEX, origins(len(table)))
    return {(row["row"], row["related"]): row["weight"] for row in found.to_pylist()}


def test_relations_lead_both_ways_but_accessories_do_not() -> None:
    table = relations(
        ("a", "shop", "same_series", "a", "video", None),
        ("b", "shop", "accessory", "a", None, 2.0),
    )
    assert pairs_of(table) == {(0, 2): 1.0, (2, 0): 1.0, (1, 0): 2.0}


def test_bad_relations_are_rejected_with_their_reason() -> None:
    table = relations(
        ("a", "shop", "substitute", "b", None, 1.0),
        ("a", "shop", "substitute", "b", "shop", 3.0),
        (None, "shop", "substitute", "b", None, 1.0),
        ("a", "shop", "", "b", None, 1.0),
        ("z", "shop", "substitute", "b", None, 1.0),
        ("a", "shop", "substitute", "c", None, 1.0),
        ("a", "shop", "substitute", "a", None, 1.0),
        ("b", "shop", "substitute", "c", "video", 0.0),
    )
    pairs, rejects = find_pairs(table, INDEX, origins(len(table)))
    assert pairs.select(["row", "related"]).to_pylist() == [
        {"row": 0, "related": 1},
        {"row": 1, "related": 0},
    ]
    assert list(
        zip(rejects["file_row"].to_pylist(), rejects["reason"].to_pylist(), strict=True)
    ) == [
        (1, "duplicate"),
        (2, "null item_id"),
        (3, "empty relation"),
        (4, "unknown item"),
        (5, "unknown related item"),
        (6, "related to itself"),
        (7, "weight that is not above 0"),
    ]


def test_neighbours_by_relation_weigh_less_where_an_item_has_many(tmp_path: Path) -> None:
    found = {"row": [0, 0, 2, 3], "related": [2, 3, 0, 0], "weight": [1.0, 1.0, 1.0, 1.0]}
    kinds = {"row": pa.int32(), "related": pa.int32(), "weight": pa.float32()}
    (tmp_path / "prepared").mkdir()
    pq.write_table(
        pa.table({name: pa.array(part, kinds[name]) for name, part in found.items()}),
        tmp_path / "prepared/relations.parquet",
    )
    domains = (DomainRange("shop", 0, 2, 0), DomainRange("video", 2, 4, 0))
    prepared = Prepared("prepared", "", domains, 32, 0, 0, 4, 0, with_relations=True)
    shop, video = related_neighbours(Store(str(tmp_path)), prepared)
    assert video.offsets.tolist() == [0, 2, 2, 2, 2]
    assert video.columns.tolist() == [0, 1]
    # Item 0 has two relations, those two have one each.
    np.testing.assert_allclose(video.weights, RELATED_UNIT / math.sqrt(2 * 1), rtol=1e-6)
    assert shop.offsets.tolist() == [0, 0, 0, 1, 2]
    assert shop.columns.tolist() == [0, 0]
    alone = dataclasses.replace(prepared, domains=(domains[0],), items=2, view=View(0, 2))
    assert not len(related_neighbours(Store(str(tmp_path)), alone)[0].columns)
    assert RELATED_UNIT == OVERLAP_FLOOR


def test_demo_relations_are_of_a_scene_but_for_the_noise() -> None:
    demo = make_demo(60, seed=17)
    table = draw_relations(demo, seed=17)
    keys = zip(demo.items["domain"].to_pylist(), demo.items["item_id"].to_pylist(), strict=True)
    rows = {key: row for row, key in enumerate(keys)}

    def ends(domain: str, item: str) -> np.ndarray:
        pairs = zip(table[domain].to_pylist(), table[item].to_pylist(), strict=True)
        return np.array([rows[key] for key in pairs])

    first, second = ends("domain", "item_id"), ends("related_domain", "related_item_id")
    same = demo.known_items.scene[first] == demo.known_items.scene[second]
    # Of the noise a quarter has the same of four scenes by chance.
    assert abs(same.mean() - (1 - NOISE * 3 / 4)) < 0.02
    assert len(np.unique(first)) < 0.65 * len(rows)
    assert (demo.known_items.domain[first] != demo.known_items.domain[second]).any()
