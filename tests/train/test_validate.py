import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from crossrec.config import ModelConfig
from crossrec.data import histories
from crossrec.data.histories import DomainRange, Prepared, histories_path
from crossrec.data.itemstate import POPULARITY_FLOOR
from crossrec.data.replay import Activity
from crossrec.model.inference import ItemState
from crossrec.model.recommender import Recommender
from crossrec.schema import HISTORIES, US_PER_DAY
from crossrec.storage import Store
from crossrec.train import validate
from crossrec.train.validate import Valid, judge_epoch, load_newest, load_valid

DOMAINS = (DomainRange("shop", 0, 20, 0), DomainRange("video", 20, 40, 0))
Event = tuple[int, int]
"""Catalogue row and day."""


def write_buckets(
    folder: Path, buckets: Sequence[dict[str, list[Event]]]
) -> tuple[Store, Prepared]:
    store = Store(str(folder))
    prepared = Prepared("prepared/x", "x", DOMAINS, len(buckets), 0, 0, 40, 0)
    for bucket, users in enumerate(buckets):
        rows = [
            {
                "user_id": name,
                "rows": [row for row, _ in events],
                "timestamps": [day * US_PER_DAY for _, day in events],
            }
            for name, events in users.items()
        ]
        table = pa.Table.from_pylist(rows, schema=HISTORIES)
        store.write_parquet(histories_path(prepared.folder, bucket), table)
    return store, prepared


BUCKETS: list[dict[str, list[Event]]] = [
    {"ada": [(1, 2), (2, 10), (21, 12)], "bob": [(3, 3)], "cy": [(4, 11)]},
    {"dan": [(25, 1), (5, 4), (26, 15), (27, 18)], "eve": [(6, 6), (6, 11), (7, 12)]},
]
"""Days 10 to 15 are judged: from days 10, 12 and 14."""


def pairs(valid: Valid) -> list[tuple[str, int]]:
    names = valid.histories.user_ids.to_pylist()
    return [
        (names[user], row)
        for user, row in zip(valid.users.tolist(), valid.rows.tolist(), strict=True)
    ]


def test_load_valid_predicts_the_rest_of_the_slice_from_each_moment(tmp_path: Path) -> None:
    moments = load_valid(*write_buckets(tmp_path, BUCKETS), 10, 16, 1_000)
    assert [valid.start for valid in moments] == [10, 12, 14]
    # cy is unknown on day 10 and does nothing later; eve had row 6 before; day 18 is too late.
    assert pairs(moments[0]) == [("ada", 2), ("ada", 21), ("dan", 26), ("eve", 7)]
    assert pairs(moments[1]) == [("ada", 21), ("dan", 26), ("eve", 7)]
    assert pairs(moments[2]) == [("dan", 26)]


def test_load_valid_knows_nothing_of_the_moment_or_later(tmp_path: Path) -> None:
    for valid in load_valid(*write_buckets(tmp_path, BUCKETS), 10, 16, 1_000):
        assert (valid.histories.days < valid.start).all()
        assert (valid.histories.lengths > 0).all()
        assert set(valid.users.tolist()) == set(range(len(valid.histories.lengths)))
    # As of day 14, the last moment.
    assert valid.histories.rows.tolist() == [25, 5]


def test_load_valid_of_a_single_day_has_one_moment(tmp_path: Path) -> None:
    moments = load_valid(*write_buckets(tmp_path, BUCKETS), 10, 11, 1_000)
    assert [valid.start for valid in moments] == [10]


def test_load_valid_stops_reading_when_every_domain_has_its_pairs(tmp_path: Path) -> None:
    both = {"u": [(1, 1), (2, 15), (22, 15)], "v": [(1, 1), (2, 15), (22, 15)]}
    store, prepared = write_buckets(tmp_path, [both, both, both])
    read = [
        len(load_valid(store, prepared, 10, 16, wanted)[0].histories.lengths)
        for wanted in (1, 2, 3, 5, 100)
    ]
    assert read == [1, 2, 3, 5, 6]


def test_load_valid_reads_on_while_one_domain_has_too_few_pairs(tmp_path: Path) -> None:
    shop = {"u": [(1, 1), (2, 15), (3, 15), (4, 15)]}
    both = {"v": [(1, 1), (2, 15), (22, 15)]}
    moments = load_valid(*write_buckets(tmp_path, [shop, both, both]), 10, 16, 1)
    assert moments[0].histories.user_ids.to_pylist() == ["u", "v"]


def test_load_valid_keeps_no_more_of_a_domain_while_it_reads_on_for_another(tmp_path: Path) -> None:
    shop = {name: [(1, 1), (2, 15), (3, 15)] for name in ("u", "v", "w")}
    both = {name: [(1, 1), (2, 15), (22, 15)] for name in ("x", "y", "z")}
    moments = load_valid(*write_buckets(tmp_path, [shop, shop, both, both]), 10, 16, 2)
    for valid in moments:
        in_shop = valid.rows < DOMAINS[0].stop
        assert len(set(valid.users[in_shop].tolist())) == 2
        assert len(set(valid.users[~in_shop].tolist())) == 2
        # Two of the shop, whose every new item counts, and two of the videos.
        assert len(valid.histories.lengths) == 2 + 2
        assert len(valid.rows) == 2 * 2 + 2


def test_load_valid_looks_at_the_same_users_in_every_domain(tmp_path: Path) -> None:
    both = {name: [(1, 1), (2, 15), (22, 15)] for name in "abcdefgh"}
    moments = load_valid(*write_buckets(tmp_path, [both]), 10, 16, 3)
    assert [len(valid.histories.lengths) for valid in moments] == [3, 3, 3]


def test_load_valid_has_no_more_raters_than_its_cap(tmp_path: Path) -> None:
    users = {name: [(1, 1), (1, 15)] for name in ("u", "v", "w")}
    store, prepared = write_buckets(tmp_path, [users])
    table = store.read_parquet(histories_path(prepared.folder, 0))
    ratings = pa.array([[3.0, 4.0]] * 3, pa.list_(pa.float32()))
    rated = table.append_column("ratings", ratings)
    store.write_parquet(histories_path(prepared.folder, 0), rated)
    with_ratings = replace(prepared, values=("rating",))
    for valid in load_valid(store, with_ratings, 10, 16, 2):
        assert len(valid.rated[0]) == len(valid.histories.lengths) == 2


def test_load_newest_predicts_each_users_newest_event_from_the_night(tmp_path: Path) -> None:
    (valid,) = load_newest(*write_buckets(tmp_path, BUCKETS), 20, 1_000)
    assert valid.start == 20
    # bob and cy have nothing before theirs.
    assert pairs(valid) == [("ada", 21), ("dan", 27), ("eve", 7)]
    assert valid.histories.rows.tolist() == [1, 2, 25, 5, 26, 6, 6]


def test_load_newest_keeps_as_many_of_a_domain_as_it_may(tmp_path: Path) -> None:
    both = {"u": [(1, 1), (2, 15)], "v": [(1, 1), (22, 15)], "w": [(1, 1), (3, 15)]}
    (valid,) = load_newest(*write_buckets(tmp_path, [both, both]), 20, 1)
    assert sorted(valid.rows >= DOMAINS[0].stop) == [False, True]


def test_load_valid_stops_reading_for_a_domain_that_hardly_anyone_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = {"u": [(1, 1), (2, 15), (3, 15)]}
    store, prepared = write_buckets(tmp_path, [shop] * 5)
    read: list[int] = []

    def read_histories(*args: Any) -> pa.Table:
        read.append(args[-1])
        return histories.read_histories(*args)

    monkeypatch.setattr(validate, "read_histories", read_histories)
    monkeypatch.setattr(validate, "MOST_EVENTS", 2 * 3)
    load_valid(store, prepared, 10, 16, 1)
    assert read == [0, 1]


def test_load_valid_of_nobody_active_is_judged_as_zero(tmp_path: Path) -> None:
    store, prepared = write_buckets(tmp_path, [{"bob": [(3, 3)]}, {}])
    moments = load_valid(store, prepared, 10, 16, 5)
    assert [len(valid.users) for valid in moments] == [0, 0, 0]
    assert judge_epoch(*make_model(), moments, no_activity(), prepared)["ndcg@10"] == 0.0


def make_model() -> tuple[Recommender, ItemState]:
    """Text vectors 0 to 39 lie on a circle's quarter: neighbouring rows are alike."""
    settings = ModelConfig(width=8, layers=1, heads=2, max_history=8)
    with torch.random.fork_rng():
        torch.manual_seed(17)
        recommender = Recommender(settings, 8, 40, 2).eval()
    angles = torch.arange(40) * (math.pi / 80)
    texts = torch.zeros(40, 8)
    texts[:, 0], texts[:, 1] = angles.cos(), angles.sin()
    return recommender, ItemState(texts, texts)


def no_activity() -> Activity:
    nothing = np.zeros(0, np.int32)
    return Activity(nothing, nothing, nothing, 40)


def bought(row: int, day: int, events: int) -> Activity:
    rows, days, counts = np.array([[row], [day], [events]], np.int32)
    return Activity(rows, days, counts, 40)


def test_judge_epoch_ranks_unseen_items_by_likeness(tmp_path: Path) -> None:
    # Row 0 is seen, so 1 is first and 3 third; to row 0, video's likest is 20 and then 21.
    store, prepared = write_buckets(tmp_path, [{"ada": [(0, 2), (3, 10), (21, 10)]}])
    valid = load_valid(store, prepared, 10, 11, 5)
    ndcg = judge_epoch(*make_model(), valid, no_activity(), prepared)["ndcg@10"]
    assert ndcg == pytest.approx((1 / math.log2(1 + 3) + 1 / math.log2(1 + 2)) / 2)


def test_judge_epoch_lets_popularity_lead_where_it_predicts(tmp_path: Path) -> None:
    # What is done next is least like what was done before, and popular.
    users = {f"user-{number}": [(0, 2), (15, 10)] for number in range(5)}
    store, prepared = write_buckets(tmp_path, [users])
    valid = load_valid(store, prepared, 10, 11, 5)
    assert judge_epoch(*make_model(), valid, bought(15, 9, 500), prepared)[
        "ndcg@10"
    ] == pytest.approx(1.0)
    # Popular only on the judged day itself: not known.
    assert judge_epoch(*make_model(), valid, bought(15, 10, 500), prepared)["ndcg@10"] == 0


def test_judge_epoch_divides_popularity_by_the_scale_of_the_loss(tmp_path: Path) -> None:
    # Before row 1, which is likest, row 15 stands only while the loss counts cosines little.
    store, prepared = write_buckets(tmp_path, [{"ada": [(0, 2), (15, 10)]}])
    valid = load_valid(store, prepared, 10, 11, 5)
    recommender, items = make_model()
    likeness = math.cos(math.pi / 80) - math.cos(15 * math.pi / 80)
    popularity = math.log(500 + POPULARITY_FLOOR) - math.log(POPULARITY_FLOOR)
    for factor, expected in ((0.99, 1.0), (1.01, 1 / math.log2(1 + 2))):
        with torch.no_grad():
            recommender.log_scale.fill_(math.log(popularity / likeness * factor))
        ndcg = judge_epoch(recommender, items, valid, bought(15, 9, 500), prepared)["ndcg@10"]
        assert ndcg == pytest.approx(expected)


def test_judge_epoch_of_all_items_relevant_is_1(tmp_path: Path) -> None:
    # More was done next than a list holds: the ideal is a list of relevant items alone.
    events = [(0, 2), *((row, 10) for row in range(1, 15))]
    store, prepared = write_buckets(tmp_path, [{"ada": events}])
    valid = load_valid(store, prepared, 10, 11, 5)
    assert judge_epoch(*make_model(), valid, no_activity(), prepared)["ndcg@10"] == pytest.approx(
        1.0
    )


@pytest.mark.parametrize("users_a_batch", [1, 2])
def test_judge_epoch_does_not_depend_on_its_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, users_a_batch: int
) -> None:
    store, prepared = write_buckets(tmp_path, BUCKETS)
    valid = load_valid(store, prepared, 10, 16, 1_000)
    whole = judge_epoch(*make_model(), valid, no_activity(), prepared)["ndcg@10"]
    monkeypatch.setattr(validate, "USERS_A_BATCH", users_a_batch)
    assert judge_epoch(*make_model(), valid, no_activity(), prepared)["ndcg@10"] == pytest.approx(
        whole
    )
    assert whole > 0


def test_judge_epoch_measures_the_error_of_ratings(tmp_path: Path) -> None:
    """Before training every rating is the domain's mean, here 3."""
    store, prepared = write_buckets(tmp_path, [{"ada": [(0, 2), (3, 10), (21, 10), (4, 10)]}])
    path = histories_path(prepared.folder, 0)
    ratings = pa.array([[1.0, 5.0, 2.0, float("nan")]], pa.list_(pa.float32()))
    store.write_parquet(path, store.read_parquet(path).append_column("ratings", ratings))
    prepared = replace(prepared, values=("rating",))
    _, items = make_model()
    settings = ModelConfig(width=8, layers=1, heads=2, max_history=8)
    recommender = Recommender(settings, 8, 40, 2, with_ratings=True).eval()
    assert recommender.rating is not None
    recommender.rating.mean_D.fill_(3.0)
    valid = load_valid(store, prepared, 10, 11, 5)
    found = judge_epoch(recommender, items, valid, no_activity(), prepared)
    assert found[validate.RMSE] == pytest.approx(math.sqrt((2**2 + 1**2) / 2))
