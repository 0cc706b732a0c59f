"""Figures by columns of users and items, against arithmetic that can be checked by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from crossrec.config import Config
from crossrec.data.attributes import Values
from crossrec.data.pins import list_inputs
from crossrec.errors import ConfigError
from crossrec.evaluate.groupcolumns import check_groups, judge_asked_groups
from crossrec.evaluate.groups import MIN_LISTS, NONE, OTHER, Judged, Shown, judge_groups, rarefy
from crossrec.evaluate.metrics import find_ranks
from crossrec.evaluate.report import render_report
from crossrec.evaluate.truth import KnownItems
from crossrec.storage import Store
from tests.evaluate.pages import Page

SMALL = MIN_LISTS - 1
WELL, BADLY, FEW = 60, 40, 7
"""Users: the first find their item at rank 1, the others at rank 3, a few never."""

ITEMS = [f"i{number}" for number in range(10)]


def lists_of(user: int) -> list[str]:
    if user < WELL:
        return ["i0", "i1"]
    return ["i1", "i2", "i0"] if user < WELL + BADLY else ["i3"]


def judged(k: int = 10) -> Judged:
    users = [f"u{number:03d}" for number in range(WELL + BADLY + FEW)]
    truth = pa.table({"user_id": users, "domain": ["film"] * len(users)})
    truth = truth.append_column("item_id", pa.array(["i0"] * len(users)))
    lists = truth.drop_columns("item_id").append_column(
        "item_ids", pa.array([lists_of(number) for number in range(len(users))])
    )
    ranked = find_ranks(truth, lists, k)
    places = [(user, ITEMS.index(i)) for user in range(len(users)) for i in lists_of(user)]
    shown = Shown(*(np.array(part) for part in zip(*places, strict=True)))
    return Judged(ranked, np.zeros(len(users), np.int64), shown, len(ITEMS), k)


COUNTRIES = Values(
    np.array([0] * WELL + [1] * BADLY + [2] * (FEW - 2) + [-1] * 2, np.int32), ["de", "fr", "is"]
)


def by_country() -> Any:
    (found,) = judge_groups(judged(), {("users", "country"): COUNTRIES})
    return found


def test_groups_of_users_are_judged_apart_and_small_ones_together() -> None:
    found = by_country()
    told = {group["name"]: group for group in found["groups"]}
    assert {name: group["lists"] for name, group in told.items()} == {
        "de": WELL,
        "fr": BADLY,
        OTHER: FEW - 2,
        NONE: 2,
    }
    # Rank 1, and rank 3: 1 / log2(4). All users of a group are alike, so that nothing varies.
    assert told["de"]["ndcg@10"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert told["fr"]["ndcg@10"] == {"mean": 0.5, "low": 0.5, "high": 0.5}
    assert told[OTHER]["hr@10"]["mean"] == 0
    # The 20 users of half of "fr" are all shown i0, i1, i2 of ten items; others i0 and i1.
    assert found["coverage_users"] == BADLY // 2
    assert told["fr"]["coverage@10"]["mean"] == 0.3
    assert told["de"]["coverage@10"]["mean"] == 0.2
    assert told[OTHER]["coverage@10"] is None


def test_gap_is_that_of_large_groups() -> None:
    gaps = by_country()["gaps"]
    assert gaps["ndcg@10"] == {
        "best": "de",
        "worst": "fr",
        "difference": 0.5,
        "low": 0.5,
        "high": 0.5,
        "by_chance": 0.0,
    }
    assert (gaps["coverage@10"]["best"], gaps["coverage@10"]["worst"]) == ("fr", "de")


def test_gap_of_groups_drawn_by_lot_could_be_chance() -> None:
    """25 groups of the same users: some two differ, by no more than chance explains."""
    draw = np.random.default_rng(3)
    users = pl.Series("user_id", [f"u{number:04d}" for number in range(1000)])
    rank = draw.choice([0, 1, 2, 5, 9], 1000)
    ranked = pl.DataFrame({"pair": np.arange(1000), "user_id": users, "rank": rank})
    ranked = ranked.with_columns(domain=pl.lit("film"))
    nothing = Shown(np.zeros(0, np.int64), np.zeros(0, np.int64))
    lot = Values(draw.integers(25, size=1000).astype(np.int32), list("abcdefghijklmnopqrstuvwxy"))
    rows = np.zeros(1000, np.int64)
    (found,) = judge_groups(Judged(ranked, rows, nothing, 5, 10), {("users", "lot"): lot})
    gap = found["gaps"]["ndcg@10"]
    # The ends were chosen because they lie apart: an interval alone says that they differ.
    assert gap["low"] > 0
    assert 0.03 < gap["difference"] < gap["by_chance"]
    served = Values((rank > 0).astype(np.int32), ["no", "yes"])
    (found,) = judge_groups(Judged(ranked, rows, nothing, 5, 10), {("users", "lot"): served})
    assert found["gaps"]["hr@10"]["difference"] == 1 > found["gaps"]["hr@10"]["by_chance"]


def test_groups_of_items_are_judged_on_what_was_chosen_of_them() -> None:
    # i0, which all chose, and i1 are of one brand; i2 and i3 of another; the others have none.
    brands = Values(np.array([0, 0, 1, 1] + [-1] * 6, np.int32), ["acme", "zed"])
    (found,) = judge_groups(judged(), {("items", "brand"): brands})
    (acme,) = found["groups"]
    everybody, places = WELL + BADLY + FEW, 2 * WELL + 3 * BADLY + FEW
    assert (acme["name"], acme["lists"], acme["items"]) == ("acme", everybody, 2)
    assert acme["ndcg@10"]["mean"] == round((WELL + BADLY / 2) / everybody, 5)
    assert acme["ndcg@10"]["low"] < acme["ndcg@10"]["mean"] < acme["ndcg@10"]["high"]
    assert acme["chosen"] == 1.0
    assert acme["shown"] == round(2 * (WELL + BADLY) / places, 5)
    assert acme["coverage@10"]["mean"] == 1.0
    assert found["gaps"] == {}


def test_coverage_is_that_of_equally_many_users() -> None:
    """Of 4,000 users, shown an item each, 30 meet as many items as in draws of 30."""
    draw = np.random.default_rng(5)
    shown = draw.integers(200, size=4000)
    met = np.mean([len(set(draw.choice(shown, 30, replace=False).tolist())) for _ in range(400)])
    counts = np.bincount(shown, minlength=200)
    assert abs(rarefy(counts, 4000, 30) - met) < 0.3
    assert np.isnan(rarefy(counts[:20], 20, 30))


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Users and items in files, with columns that no model reads."""
    store = Store(str(tmp_path / "store"))
    everybody = WELL + BADLY + FEW
    users = {
        "user_id": ["stranger", *(f"u{number:03d}" for number in range(everybody)), "u000"],
        "age": [99, *([30] * WELL), *([60] * BADLY), *([None] * FEW), 60],
    }
    items = {
        "item_id": ["i0", *ITEMS, "i0"],
        "domain": ["shop", *["film"] * len(ITEMS), "film"],
        "brand": pa.array(["zed", "acme", *["zed"] * 9, "zed"]).dictionary_encode(),
    }
    store.write_parquet("users.parquet", pa.table(users))
    store.write_parquet("items.parquet", pa.table(items))
    store.write_parquet("events.parquet", pa.table({"user_id": ["u000"]}))
    paths = {name: store.uri(f"{name}.parquet") for name in ("users", "items", "events")}
    groups = {"users": ["age"], "items": ["brand"]}
    settings = {"run_id": "r", "storage": {"root": store.root}, "data": paths}
    return Config.model_validate(settings | {"evaluate": {"groups": groups}})


def test_columns_are_read_for_those_who_are_judged(config: Config) -> None:
    store, whole = Store(config.storage.root), judged()
    ids = pa.array(ITEMS, pa.string())
    known = KnownItems(("film",), ((0, 10),), ids, np.zeros(10), np.zeros(10, np.int64))
    ranked = whole.ranked.with_columns(item_id=pl.lit("i0"))
    lists = {
        "film": pa.table(
            {
                "user_id": [f"u{number:03d}" for number in range(WELL + BADLY + FEW)],
                "item_ids": [lists_of(number) for number in range(WELL + BADLY + FEW)],
            }
        )
    }
    ages, brands = judge_asked_groups(config, store, ranked, lists, known)
    assert [(group["name"], group["lists"]) for group in ages["groups"]] == [
        ("30", WELL),
        ("60", BADLY),
        (NONE, FEW),
    ]
    (acme,) = brands["groups"]
    assert (acme["name"], acme["items"]) == ("acme", 1)
    assert acme["shown"] == round((WELL + BADLY) / (2 * WELL + 3 * BADLY + FEW), 5)
    page = Page(render_report({"k": 10, "groups": [ages, brands]}, []))
    assert "highest for 30, lowest for 60, a gap of .5000 (.5000 to .5000)" in page.text("li")
    assert "NDCG@10: 30 1.0000, 60 .5000, (none) .0000" in page.labels()


def test_a_column_that_is_not_there_is_found_before_the_night_trains(config: Config) -> None:
    check_groups(config, list_inputs(config))
    settings = config.model_dump() | {"evaluate": {"groups": {"users": ["region"]}}}
    other = Config.model_validate(settings)
    with pytest.raises(ConfigError, match=r"evaluate\.groups\.users: .* found region"):
        check_groups(other, list_inputs(other))
    with pytest.raises(ValueError, match=r"evaluate\.groups\.users needs data\.users"):
        Config.model_validate(settings | {"data": {}})
