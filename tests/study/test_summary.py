from collections.abc import Sequence

import polars as pl
import pytest

from crossrec.config import Config
from crossrec.data.histories import DomainRange
from crossrec.study.summary import Judged, summarise
from crossrec.study.variants import plan_variants

SHOP, FILM = DomainRange("shop", 0, 5, 9), DomainRange("film", 5, 7, 3)
KEYS = [("anna", "film", 0), ("anna", "shop", 7), ("ben", "shop", 2)]
CONFIG = Config.model_validate({"seed": 5, "storage": {"root": "/x"}})


def judged(name: str, ndcg: Sequence[float], seconds: float | None = None, *learned: int) -> Judged:
    keys = dict(
        zip(("user_id", "domain", "events_in_domain"), zip(*KEYS, strict=True), strict=True)
    )
    columns = {"ndcg@10": list(ndcg), "hr@10": [float(value > 0) for value in ndcg]}
    return Judged(name, pl.DataFrame(keys | columns), seconds, *learned)


def of_domain(found: Judged, domain: str) -> Judged:
    return Judged(found.name, found.pairs.filter(pl.col("domain") == domain), found.seconds)


WHOLE = {
    "model": judged("model", [0.6, 0.3, 0.3]),
    "untrained_backbone": judged("untrained_backbone", [0.1, 0.0, 0.2]),
    "popularity_all": judged("popularity_all", [0.0, 0.1, 0.0]),
    "popularity_30d": judged("popularity_30d", [0.0, 0.0, 0.4]),
    "popularity_7d": judged("popularity_7d", [0.3, 0.0, 0.0]),
}
NDCG = {
    "shop alone": [0.0, 0.2, 0.1],
    "film alone": [0.0, 0.0, 0.0],
    "without text": [0.3, 0.3, 0.3],
    "seed 6": [0.6, 0.6, 0.6],
    "seed 7": [0.5, 0.5, 0.5],
}
FOUND = summarise(
    CONFIG,
    WHOLE,
    [
        (
            variant,
            of_domain(judged(variant.name, values, 9.0), variant.domain.name)
            if variant.domain
            else judged(variant.name, values, 9.0, *((70, 900) if variant.goes_on else ())),
        )
        for variant in plan_variants(CONFIG, [SHOP, FILM])
        for values in [NDCG.get(variant.name, [0.2, 0.2, 0.2])]
    ],
    seconds=60.0,
    trained=1_000,
)


def test_seeds_have_mean_and_deviation() -> None:
    assert FOUND["seeds"]["seeds"] == [5, 6, 7]
    assert FOUND["seeds"]["ndcg@10"]["values"] == pytest.approx([0.4, 0.6, 0.5])
    assert FOUND["seeds"]["ndcg@10"]["mean"] == pytest.approx(0.5)
    # Squares of 0.1, 0.1 and 0, over 3 - 1.
    assert FOUND["seeds"]["ndcg@10"]["deviation"] == pytest.approx(0.1)


def test_ablation_compares_the_whole_model_with_each_part_left_out() -> None:
    parts = {part["name"]: part for part in FOUND["ablation"]}
    assert list(parts) == ["without text", "without ids", "without time", "without other domains"]
    assert parts["without text"]["ndcg@10"] == pytest.approx(0.3)
    assert parts["without text"]["comparison"]["difference"] == pytest.approx(0.3 / 3)
    # The twins' lists of both domains: 0.0, 0.2 and 0.1.
    assert parts["without other domains"]["ndcg@10"] == pytest.approx(0.1)
    assert parts["without other domains"]["seconds"] == 9.0 + 9.0


def test_transfer_is_told_by_the_events_that_users_had_in_the_domain() -> None:
    shop, film = FOUND["transfer"]["shop"], FOUND["transfer"]["film"]
    assert (shop["all"]["together"], shop["all"]["alone"]) == pytest.approx((0.3, 0.15))
    assert shop["all"]["popularity"] == pytest.approx(0.2)
    assert shop["all"]["difference"] == pytest.approx(0.15)
    assert shop["0"] is None
    assert shop["1-4"]["difference"] == pytest.approx(0.2)
    assert shop["5+"]["difference"] == pytest.approx(0.1)
    assert film["0"]["popularity"] == pytest.approx(0.3)
    assert film["0"]["pairs"] == 1


def test_backbones_stand_in_the_order_of_what_they_cost() -> None:
    assert FOUND["backbone"] == [
        {"name": "untrained backbone", "ndcg@10": 0.1, "seconds": None, "trained": None},
        {
            "name": "frozen backbone, trained head",
            "ndcg@10": 0.4,
            "seconds": 60.0,
            "trained": 1_000,
        },
        {
            "name": "fine-tuned backbone: top 2 layers",
            "ndcg@10": 0.2,
            "seconds": 9.0,
            "trained": 70,
            "items_read": 900,
            "comparison": FOUND["backbone"][2]["comparison"],
        },
    ]
    # The fine-tuned one minus the run's model.
    assert FOUND["backbone"][2]["comparison"]["difference"] == pytest.approx(-0.2)
