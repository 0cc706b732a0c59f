"""The demo data has the structure that it claims, and is the same every night."""

import datetime as dt
from pathlib import Path
from typing import get_args

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crossrec.config import DataConfig
from crossrec.data.demo import LAST_DAY, Demo, make_demo, user_id, write_demo
from crossrec.data.demo_structure import KINDS
from crossrec.schema import DOMAIN, ITEM_ID, TIMESTAMP, USER_ID
from crossrec.storage import Store

USERS = 2_000
HOLDOUT_DAYS = 14


@pytest.fixture(scope="module")
def demo() -> Demo:
    return make_demo(USERS, seed=17)


@pytest.fixture(scope="module")
def events(demo: Demo) -> pl.DataFrame:
    """One row an event: user, row of its item, day from 0, domain, topic and scene as numbers."""
    known = demo.known_items
    items = pl.from_arrow(demo.items.select([DOMAIN, ITEM_ID]))
    assert isinstance(items, pl.DataFrame)
    items = items.with_row_index("row").with_columns(
        pl.Series("topic", known.topic), pl.Series("scene", known.scene)
    )
    table = pl.from_arrow(demo.events)
    assert isinstance(table, pl.DataFrame)
    first_day = LAST_DAY - dt.timedelta(days=demo.settings.days - 1)
    return table.join(items, on=[DOMAIN, ITEM_ID], maintain_order="left").with_columns(
        user=pl.col(USER_ID).str.slice(1).cast(pl.Int64),
        day=(pl.col(TIMESTAMP).dt.date() - first_day).dt.total_days(),
    )


def agreement_across_domains(events: pl.DataFrame, what: str) -> float:
    """Share of pairs of events of one user, one in shop and one in video, that agree."""
    shop, video = (events.filter(pl.col(DOMAIN) == name) for name in ("shop", "video"))
    pairs = shop.join(video, on=USER_ID)
    return float((pairs[what] == pairs[f"{what}_right"]).mean())  # type: ignore[arg-type]


def stored_bytes(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.parquet")}


def test_write_demo_writes_the_same_bytes_for_the_same_seed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_demo(Store(str(tmp_path / name)), "demo", users=200, seed=3)
    assert stored_bytes(tmp_path / "a") == stored_bytes(tmp_path / "b")


def test_write_demo_writes_other_events_for_another_seed() -> None:
    assert not make_demo(200, seed=3).events.equals(make_demo(200, seed=4).events)


def test_write_demo_returns_where_shards_and_items_lie(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    uris = write_demo(store, "demo", users=200, seed=3)
    assert uris == {"events": f"{tmp_path}/demo/events", "items": f"{tmp_path}/demo/items"}
    assert len(list((tmp_path / "demo/events").glob("*.parquet"))) == 4
    shards = [f"demo/events/part-00{shard}.parquet" for shard in range(4)]
    read = pa.concat_tables(store.read_parquet(shard) for shard in shards)
    assert read.equals(make_demo(200, seed=3).events)


def test_write_demo_leaves_equal_files_alone(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    write_demo(store, "demo", users=200, seed=3)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    write_demo(store, "demo", users=200, seed=3)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")} == before


def test_demo_tables_follow_the_input_contract(demo: Demo) -> None:
    assert demo.events.schema == pa.schema(
        {
            USER_ID: pa.string(),
            ITEM_ID: pa.string(),
            DOMAIN: pa.string(),
            TIMESTAMP: pa.timestamp("us", tz="UTC"),
        }
    )
    assert set(demo.items.schema.types) == {pa.string()}
    assert demo.items.column_names == [ITEM_ID, DOMAIN, "title", "category"]
    assert all(column.null_count == 0 for table in (demo.events, demo.items) for column in table)


def test_demo_has_the_items_that_its_settings_name(demo: Demo, events: pl.DataFrame) -> None:
    counts = dict(zip(*np.unique(demo.items[DOMAIN].to_pylist(), return_counts=True), strict=True))
    assert counts == {"shop": 1_500, "video": 900, "social": 600}
    # The join of the fixture found every event's item.
    assert events.height == demo.events.num_rows


def test_demo_events_end_on_the_last_day_and_are_sorted(demo: Demo, events: pl.DataFrame) -> None:
    assert events["day"].min() == 0
    assert events["day"].max() == demo.settings.days - 1
    assert events[TIMESTAMP].is_sorted()


def test_demo_gives_every_user_events_and_most_users_many(events: pl.DataFrame) -> None:
    per_user = events.group_by(USER_ID).len()["len"]
    assert len(per_user) == USERS
    assert 15 <= float(per_user.mean()) <= 25  # type: ignore[arg-type]


def test_demo_users_take_no_item_twice(events: pl.DataFrame) -> None:
    assert events.select(USER_ID, "row").is_duplicated().sum() == 0


def test_demo_has_users_of_one_domain_only(demo: Demo, events: pl.DataFrame) -> None:
    domains = events.group_by(USER_ID).agg(pl.col(DOMAIN).n_unique(), pl.len())
    busy = domains.filter(pl.col("len") >= 20)
    assert 0.2 <= (busy[DOMAIN] == 1).sum() / len(busy) <= 0.35
    assert (busy[DOMAIN] == 3).sum() / len(busy) >= 0.4


def test_demo_domains_are_rich_and_poor(events: pl.DataFrame) -> None:
    counts = dict(events.group_by(DOMAIN).len().iter_rows())
    assert counts["video"] > counts["shop"] > 2 * counts["social"]


def test_demo_adds_items_in_the_last_days(demo: Demo, events: pl.DataFrame) -> None:
    added = demo.known_items.added
    share = (added >= demo.settings.days - HOLDOUT_DAYS).mean()
    assert 0.06 <= share <= 0.10
    first = events.group_by("row").agg(pl.col("day").min())
    assert (first["day"].to_numpy() >= added[first["row"].to_numpy()]).all()
    # Some of them have no event before the last three days.
    assert (first["day"] >= demo.settings.days - 3).sum() >= 10


def test_demo_topics_tie_the_domains_together(demo: Demo, events: pl.DataFrame) -> None:
    chance = 1 / demo.fashion.shape[1]
    assert agreement_across_domains(events, "topic") > 4 * chance


def test_demo_scenes_tie_the_domains_together(demo: Demo, events: pl.DataFrame) -> None:
    chance = 1 / demo.settings.scenes
    assert agreement_across_domains(events, "scene") > 1.5 * chance


def test_demo_categories_tell_the_topic_and_not_the_scene(demo: Demo) -> None:
    known, categories = demo.known_items, np.array(demo.items["category"].to_pylist())
    for category in np.unique(categories):
        assert len(set(known.topic[categories == category])) == 1
        scenes = np.bincount(known.scene[categories == category], minlength=demo.settings.scenes)
        # 1 / 4 plus what chance gives to the largest of four groups of 30 items or more.
        assert scenes.max() / scenes.sum() < 0.5


def test_demo_popularity_changes_by_the_week(demo: Demo, events: pl.DataFrame) -> None:
    def top(stop: int) -> set[int]:
        week = events.filter(pl.col("day").is_between(stop - 7, stop - 1))
        return set(week["row"].value_counts(sort=True)["row"][:100])

    days = demo.settings.days
    assert len(top(days) & top(days - 7)) > 1.5 * len(top(days) & top(days - 42))


def test_affinity_is_a_distribution_over_items_that_are_out(demo: Demo) -> None:
    affinity = demo.affinity(np.arange(50), "video", day=60)
    added = demo.known_items.added[np.array(demo.items[DOMAIN].to_pylist()) == "video"]
    assert affinity.shape == (50, 900)
    np.testing.assert_allclose(affinity.sum(1), 1, rtol=1e-9)
    assert (affinity[:, added > 60] == 0).all()
    assert (affinity[:, added <= 60] > 0).all()


def test_affinity_ranks_what_users_do_next_far_above_popularity(
    demo: Demo, events: pl.DataFrame
) -> None:
    day = demo.settings.days - HOLDOUT_DAYS
    videos = events.filter(pl.col(DOMAIN) == "video")
    first_row = videos["row"].min()
    assert isinstance(first_row, int)
    past = videos.filter(pl.col("day") < day)
    future = videos.filter(pl.col("day") == day)
    users, items = future["user"].to_numpy(), future["row"].to_numpy() - first_row
    affinity = demo.affinity(users, "video", day)
    popularity = np.bincount(past["row"].to_numpy() - first_row, minlength=900)
    rank_by_affinity = (affinity > affinity[np.arange(len(users)), items][:, None]).sum(1)
    rank_by_popularity = (popularity[None, :] > popularity[items][:, None]).sum(1)
    assert (rank_by_affinity < 10).mean() > 4 * (rank_by_popularity < 10).mean()


def test_user_id_matches_the_ids_of_the_events(demo: Demo) -> None:
    ids = set(demo.events[USER_ID].to_pylist())
    assert ids == {user_id(user) for user in range(USERS)}


def test_kinds_are_those_of_the_config() -> None:
    (allowed,) = (
        get_args(field.annotation)
        for name, field in DataConfig.model_fields.items()
        if name == "demo"
    )
    assert tuple(KINDS) == allowed


def test_write_demo_follows_its_kind(tmp_path: Path) -> None:
    """Fashion moves the topics of a trend, hidden groups decide in a collaboration."""
    shares = {}
    for kind, settings in KINDS.items():
        demo = make_demo(200, 3, settings)
        users = np.arange(200)
        affinity = demo.affinity(users, "video", settings.days - 1)
        shares[kind] = float(np.corrcoef(affinity).mean())
        uris = write_demo(Store(str(tmp_path / kind)), "demo", 200, 3, settings)
        assert len(pq.read_table(uris["events"])) == len(demo.events)
    # What users want is most alike where fashion decides.
    assert shares["trend"] > shares["mixed"] > shares["collaboration"]
