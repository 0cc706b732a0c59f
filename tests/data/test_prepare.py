import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crossrec.config import Config
from crossrec.data.daily import load_activity
from crossrec.data.histories import open_prepared, read_catalogue, read_histories
from crossrec.data.itemstate import states_on_day
from crossrec.data.pins import pin_inputs
from crossrec.data.prepare import input_digest, prepare
from crossrec.errors import ConfigError, InputError
from crossrec.schema import REJECTS
from crossrec.storage import Store

DAY_1 = dt.datetime(2024, 1, 1, 12)
"""A Monday."""

FIRST_DAY = (DAY_1 - dt.datetime(1970, 1, 1)).days

Event = tuple[str | None, str | None, str | None, dt.datetime | None]

pytestmark = pytest.mark.usefixtures("ray_cluster")


def days(count: float) -> dt.timedelta:
    return dt.timedelta(days=count)


def write_events(path: Path, *events: Event) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = zip(*events, strict=True) if events else [[]] * 4
    kinds = (pa.string(), pa.string(), pa.string(), pa.timestamp("ms"))
    names = ("user_id", "item_id", "domain", "timestamp")
    arrays = {
        name: pa.array(list(column), kind)
        for name, column, kind in zip(names, columns, kinds, strict=True)
    }
    pq.write_table(pa.table(arrays), path)


def write_items(path: Path, *items: tuple[str | None, str | None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ids, domains = (pa.array(list(column), pa.string()) for column in zip(*items, strict=True))
    titles = pa.array([f"title {number}" for number in range(len(items))])
    pq.write_table(pa.table({"item_id": ids, "domain": domains, "title": titles}), path)


def make_config(folder: Path, **data: Any) -> Config:
    inputs = {"events": str(folder / "events"), "items": str(folder / "items")}
    return Config.model_validate(
        {
            "run_id": "night",
            "data": {**inputs, **data},
            "storage": {"root": str(folder / "store")},
        }
    )


def run(folder: Path, **data: Any) -> tuple[dict[str, Any], Store]:
    config = make_config(folder, **data)
    store = Store(config.storage.root)
    return prepare(config, store), store


def read_all(store: Store, summary: dict[str, Any]) -> dict[str, list[int]]:
    """Return the catalogue rows of each user's history."""
    prepared = open_prepared(store, summary["prepared"])
    tables = [read_histories(store, prepared, bucket) for bucket in range(prepared.buckets)]
    entries = [entry for table in tables for entry in table.to_pylist()]
    return {entry["user_id"]: entry["rows"] for entry in entries}


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_prepare_writes_histories_catalogue_and_summary(tmp_path: Path) -> None:
    write_items(tmp_path / "items/0.parquet", ("2", "shop"), ("1", "video"), ("1", "shop"))
    write_events(
        tmp_path / "events/0.parquet",
        ("ada", "1", "video", DAY_1 + days(7)),
        ("ada", "2", "shop", DAY_1),
    )
    write_events(tmp_path / "events/1.parquet")
    write_events(tmp_path / "events/more/2.parquet", ("bob", "1", "shop", DAY_1 + days(1)))
    summary, store = run(tmp_path)
    assert read_all(store, summary) == {"ada": [1, 2], "bob": [0]}
    prepared = open_prepared(store, summary["prepared"])
    shop = read_catalogue(store, prepared, "shop").select(["item_id", "text"]).to_pylist()
    assert shop == [{"item_id": "1", "text": "title 2"}, {"item_id": "2", "text": "title 0"}]
    assert summary["domains"] == [
        {"name": "shop", "start": 0, "stop": 2, "events": 2, "users": 2},
        {"name": "video", "start": 2, "stop": 3, "events": 1, "users": 1},
    ]
    assert summary["events_by_week"] == {"shop": {"2024-01-01": 2}, "video": {"2024-01-08": 1}}
    assert summary["as_of"] == "2024-01-08T12:00:00+00:00"
    counts = ("users", "events", "items", "buckets", "ignored_after_as_of")
    assert [summary[name] for name in counts] == [2, 3, 3, 32, 0]
    assert [entry["rows"] for entry in summary["inputs"]] == [2, 0, 1, 3]
    assert store.list(summary["prepared"]) == ["activity", "catalogue", "histories", "summary.json"]
    stored = store.read_json("runs/night/prepare.json")
    assert stored["prepared"] == summary["prepared"]


def test_prepare_keeps_and_counts_every_rejected_row(tmp_path: Path) -> None:
    now = dt.datetime.now(dt.UTC).replace(tzinfo=None)
    write_items(tmp_path / "items/0.parquet", ("1", "shop"), ("1", "shop"), (None, "shop"))
    good: Event = ("ada", "1", "shop", DAY_1)
    write_events(
        tmp_path / "events/0.parquet",
        good,
        ("ada", "1", "shop", now + days(0.5)),
        (None, "1", "shop", DAY_1),
        ("cy", "9", "shop", DAY_1),
        ("cy", "1", "books", DAY_1),
        ("dee", "1", "shop", now + days(2)),
    )
    write_events(tmp_path / "events/1.parquet", good, good)
    summary, store = run(tmp_path, max_reject_share=1)
    assert summary["rejects"] == {
        "events": {
            "duplicate": 2,
            "null user_id": 1,
            "retired domain": 1,
            "timestamp in the future": 1,
            "unknown item": 1,
        },
        "items": {"duplicate item": 1, "null item_id": 1},
    }
    assert summary["users_without_accepted_events"] == 2
    assert read_all(store, summary) == {"ada": [0, 0]}
    names = store.list("runs/night/rejects")
    tables = [store.read_parquet(f"runs/night/rejects/{name}") for name in names]
    assert all(table.schema == REJECTS for table in tables)
    rows = [row for table in tables for row in table.to_pylist()]
    assert len(rows) == 6 + 2
    copies = [row for row in rows if row["reason"] == "duplicate"]
    assert [(Path(row["file"]).name, row["file_row"]) for row in copies] == [
        ("1.parquet", 0),
        ("1.parquet", 1),
    ]
    assert copies[0] | {"file": ""} == {
        "table": "events",
        "file": "",
        "file_row": 0,
        "reason": "duplicate",
        "user_id": "ada",
        "item_id": "1",
        "domain": "shop",
        "timestamp": "2024-01-01 12:00:00.000000Z",
    }


def test_prepare_stops_above_the_share_of_rejects_and_keeps_them(tmp_path: Path) -> None:
    write_items(tmp_path / "items/0.parquet", ("1", "shop"))
    good: Event = ("ada", "1", "shop", DAY_1)
    write_events(tmp_path / "events/0.parquet", *[good] * 7, *[("ada", "9", "shop", DAY_1)] * 3)
    with pytest.raises(InputError, match=r"found 3 of 10 \(30.0%\): unknown item 3; see .*rejects"):
        run(tmp_path, max_reject_share=0.29)
    store = Store(str(tmp_path / "store"))
    (name,) = store.list("runs/night/rejects")
    assert store.read_parquet(f"runs/night/rejects/{name}").num_rows == 3
    assert not store.exists("runs/night/prepare.json")
    summary, _ = run(tmp_path, max_reject_share=0.3)
    assert summary["events"] == 1
    # The finished folder does not hide what a stricter setting refuses.
    with pytest.raises(InputError, match=r"at most 29\.0% rejected rows"):
        run(tmp_path, max_reject_share=0.29)


def test_prepare_stops_where_no_event_is_left(tmp_path: Path) -> None:
    write_items(tmp_path / "items/0.parquet", ("1", "shop"))
    write_events(tmp_path / "events/0.parquet", ("ada", "1", "shop", DAY_1))
    with pytest.raises(InputError, match=r"found none among 1 rows up to data\.as_of"):
        run(tmp_path, as_of="2023-01-01")


def test_prepare_stops_where_there_is_no_item(tmp_path: Path) -> None:
    write_items(tmp_path / "items/0.parquet", (None, "shop"))
    write_events(tmp_path / "events/0.parquet", ("ada", "1", "shop", DAY_1))
    with pytest.raises(InputError, match=r"data.items=.*found none among 1 rows"):
        run(tmp_path, max_reject_share=1)


def test_prepare_forgives_a_retired_domain_a_week_after_its_last_event(tmp_path: Path) -> None:
    write_items(tmp_path / "items/0.parquet", ("1", "shop"))
    of_books: list[Event] = [("ada", "1", "books", DAY_1 - days(n)) for n in range(5)]
    write_events(tmp_path / "events/0.parquet", ("ada", "1", "shop", DAY_1 + days(7)), *of_books)
    # A catalogue that has lost a domain looks just like that.
    with pytest.raises(InputError, match=r"found 5 of 6 \(83\.3%\): unknown domain 5"):
        run(tmp_path)
    write_events(tmp_path / "events/1.parquet", ("bob", "1", "shop", DAY_1 + days(7.1)))
    summary, store = run(tmp_path)
    assert summary["rejects"]["events"] == {"retired domain": 5}
    assert [domain["name"] for domain in summary["domains"]] == ["shop"]
    assert read_all(store, summary) == {"ada": [0], "bob": [0]}
    (name,) = store.list("runs/night/rejects")
    assert len(store.read_parquet(f"runs/night/rejects/{name}")) == 5


def test_prepare_puts_late_events_where_they_belong(tmp_path: Path) -> None:
    write_items(tmp_path / "items/0.parquet", *((n, "shop") for n in "1234"))
    newest: Event = ("ada", "3", "shop", DAY_1 + days(9))
    write_events(tmp_path / "events/9.parquet", ("ada", "1", "shop", DAY_1), newest)
    before, store = run(tmp_path)
    late: Event = ("ada", "2", "shop", DAY_1 + days(4))
    write_events(tmp_path / "events/late.parquet", late, newest)
    after = prepare(make_config(tmp_path).model_copy(update={"run_id": "next"}), store)
    assert read_all(store, before) == {"ada": [0, 2]}
    assert read_all(store, after) == {"ada": [0, 1, 2]}
    assert after["rejects"]["events"] == {"duplicate": 1}, "sent twice, had once"
    assert before["as_of"] == after["as_of"]
    # Of the items it is the late one alone that is now known otherwise.
    states = [
        states_on_day(load_activity(store, open_prepared(store, made["prepared"])), FIRST_DAY + 10)
        for made in (before, after)
    ]
    assert np.flatnonzero((states[0] != states[1]).any(1)).tolist() == [1]
    assert np.exp(states[1][1, -2]) == pytest.approx(1 + 6), "six days old on the tenth"


def test_prepare_ignores_events_after_as_of(tmp_path: Path) -> None:
    write_items(tmp_path / "items/0.parquet", ("1", "shop"))
    write_events(
        tmp_path / "events/0.parquet",
        ("ada", "1", "shop", DAY_1),
        ("ada", "1", "shop", DAY_1 + days(1)),
        ("bob", "1", "shop", DAY_1 + days(1)),
    )
    summary, store = run(tmp_path, as_of="2024-01-01T12:00:00")
    assert read_all(store, summary) == {"ada": [0]}
    assert summary["ignored_after_as_of"] == 2
    assert summary["as_of"] == "2024-01-01T12:00:00+00:00"
    assert summary["rejects"]["events"] == {}


def test_prepare_gives_listed_users_empty_histories(tmp_path: Path) -> None:
    write_items(tmp_path / "items/0.parquet", ("1", "shop"))
    write_events(tmp_path / "events/0.parquet", ("ada", "1", "shop", DAY_1))
    pq.write_table(pa.table({"user_id": ["ada", "new", None, ""]}), tmp_path / "users.parquet")
    summary, store = run(tmp_path, users=str(tmp_path / "users.parquet"))
    assert read_all(store, summary) == {"ada": [0], "new": []}
    assert summary["rejects"]["users"] == {"empty user_id": 1, "null user_id": 1}


def test_prepare_keeps_nothing_of_users_who_are_to_be_forgotten(tmp_path: Path) -> None:
    write_items(tmp_path / "items/0.parquet", ("1", "shop"))
    write_events(
        tmp_path / "events/0.parquet",
        ("ada", "1", "shop", DAY_1),
        ("bob", "1", "shop", DAY_1),
        ("bob", "none", "shop", DAY_1),
        ("eve", "none", "shop", DAY_1),
    )
    pq.write_table(pa.table({"user_id": ["bob", "new"]}), tmp_path / "users.parquet")
    pq.write_table(pa.table({"user_id": ["bob", "eve", "eve", None]}), tmp_path / "forget.parquet")
    paths = {name: str(tmp_path / f"{name}.parquet") for name in ("users", "forget")}
    summary, store = run(tmp_path, max_reject_share=1.0, **paths)
    assert read_all(store, summary) == {"ada": [0], "new": []}
    assert summary["rejects"] == {"events": {}, "items": {}, "users": {}, "forget": {}}
    assert summary["forgotten_rows"] == 4
    found = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert not [path for path in found if b"bob" in path.read_bytes()]


def test_users_to_forget_must_have_ids(tmp_path: Path) -> None:
    write_items(tmp_path / "items/0.parquet", ("1", "shop"))
    write_events(tmp_path / "events/0.parquet", ("ada", "1", "shop", DAY_1))
    pq.write_table(pa.table({"id": ["bob"]}), tmp_path / "forget.parquet")
    with pytest.raises(InputError, match=r"forget\.parquet: expected a column user_id"):
        run(tmp_path, forget=str(tmp_path / "forget.parquet"))


def test_prepare_takes_any_id_and_any_domain(tmp_path: Path) -> None:
    keys = [("🦊 /..", ".."), ("a b", "a/b"), ("x=1&y", "día 🎬"), ("unseen", "quiet")]
    write_items(tmp_path / "items/0.parquet", *keys)
    events: list[Event] = [(f"../{item} 🙂", item, domain, DAY_1) for item, domain in keys[:3]]
    write_events(tmp_path / "events/0.parquet", *events)
    summary, store = run(tmp_path)
    names = [entry["name"] for entry in summary["domains"]]
    assert names == ["..", "a/b", "día 🎬", "quiet"]
    assert [entry["events"] for entry in summary["domains"]] == [1, 1, 1, 0]
    assert read_all(store, summary) == {"../🦊 /.. 🙂": [0], "../a b 🙂": [1], "../x=1&y 🙂": [2]}
    prepared = open_prepared(store, summary["prepared"])
    for item, domain in keys:
        assert read_catalogue(store, prepared, domain).column("item_id").to_pylist() == [item]
    assert {path.name for path in tmp_path.iterdir()} == {"events", "items", "store"}
    assert store.list("") == ["prepared", "runs"]


def test_prepare_writes_the_same_bytes_however_it_ran_before(tmp_path: Path) -> None:
    write_items(tmp_path / "items/0.parquet", *((str(n), "ab"[n % 2]) for n in range(20)))
    for part in range(3):
        write_events(
            tmp_path / f"events/{part}.parquet",
            *((f"u{n % 13}", str(n * part % 20), "ab"[n * part % 2], DAY_1) for n in range(90)),
        )
    summary, store = run(tmp_path)
    folder = tmp_path / "store" / summary["prepared"]
    first = contents(folder)
    assert summary["rejects"]["events"]["duplicate"] > 0
    # As a killed run leaves it: pieces and results of a part, no summary.
    (folder / "summary.json").unlink()
    store.write_bytes(f"{summary['prepared']}/pieces/events-000000-0.bin", b"short")
    store.write_bytes(f"{summary['prepared']}/rejects/events-000009-0.parquet", b"old")
    assert run(tmp_path)[0] == {**summary, "seconds": pytest.approx(summary["seconds"], abs=600)}
    assert contents(folder) == first


def test_prepare_reuses_a_finished_folder(tmp_path: Path) -> None:
    write_items(tmp_path / "items/0.parquet", ("1", "shop"))
    write_events(tmp_path / "events/0.parquet", ("ada", "1", "shop", DAY_1))
    summary, _ = run(tmp_path)
    before = (tmp_path / "store" / summary["prepared"] / "summary.json").stat().st_mtime_ns
    again, _ = run(tmp_path)
    after = (tmp_path / "store" / summary["prepared"] / "summary.json").stat().st_mtime_ns
    assert again["prepared"] == summary["prepared"]
    assert after == before
    write_events(tmp_path / "events/1.parquet", ("bob", "1", "shop", DAY_1))
    assert run(tmp_path)[0]["prepared"] == summary["prepared"]
    tomorrow = make_config(tmp_path).model_copy(update={"run_id": "tomorrow"})
    assert prepare(tomorrow, Store(tomorrow.storage.root))["users"] == 2


def test_prepare_that_was_killed_reads_the_files_that_it_began_with(tmp_path: Path) -> None:
    write_items(tmp_path / "items/0.parquet", ("1", "shop"))
    write_events(tmp_path / "events/0.parquet", ("ada", "1", "shop", DAY_1))
    config, store = make_config(tmp_path), Store(str(tmp_path / "store"))
    pin_inputs(config, store)
    write_events(tmp_path / "events/1.parquet", ("bob", "1", "shop", DAY_1))
    summary = prepare(config, store)
    assert summary["users"] == 1
    assert [Path(file["path"]).name for file in summary["inputs"]] == ["0.parquet", "0.parquet"]


def test_prepare_takes_a_mended_input(tmp_path: Path) -> None:
    """Nothing was made of the one that was refused; of a finished one something was."""
    write_items(tmp_path / "items/0.parquet", ("1", "shop"))
    write_events(tmp_path / "events/0.parquet", ("ada", "9", "shop", DAY_1))
    with pytest.raises(InputError, match="unknown item"):
        run(tmp_path)
    write_events(tmp_path / "events/0.parquet", ("ada", "1", "shop", DAY_1))
    assert run(tmp_path)[0]["events"] == 1
    write_events(tmp_path / "events/0.parquet", ("bob", "1", "shop", DAY_1 + days(1)))
    with pytest.raises(
        InputError, match=r"0\.parquet: expected the file that run night began with"
    ):
        run(tmp_path)


def test_prepare_leaves_no_pieces_of_an_input_that_is_refused_or_found_finished(
    tmp_path: Path,
) -> None:
    """They name users, and nothing reads them again."""
    write_items(tmp_path / "items/0.parquet", ("1", "shop"))
    write_events(tmp_path / "events/0.parquet", ("ada", "9", "shop", DAY_1))
    with pytest.raises(InputError, match="unknown item"):
        run(tmp_path)
    assert not list((tmp_path / "store/prepared").rglob("pieces"))
    write_events(tmp_path / "events/0.parquet", ("ada", "1", "shop", DAY_1))
    summary, store = run(tmp_path)
    store.write_bytes(f"{summary['prepared']}/pieces/events-000000-0.bin", b"as of a kill")
    run(tmp_path)
    assert not list((tmp_path / "store/prepared").rglob("pieces"))


def test_prepare_works_on_s3(tmp_path: Path, s3_root: str) -> None:
    write_items(tmp_path / "items/0.parquet", ("1", "a/b"))
    write_events(tmp_path / "events/0.parquet", ("ada", "1", "a/b", DAY_1))
    store = Store(s3_root)
    for name in ("events/0.parquet", "items/0.parquet"):
        store.write_bytes(f"in put/{name}", (tmp_path / name).read_bytes())
    inputs = {name: f"{s3_root}/in put/{name}" for name in ("events", "items")}
    summary = prepare(make_config(tmp_path, **inputs), store)
    assert read_all(store, summary) == {"ada": [0]}


def test_prepare_raises_what_a_task_found_in_plain_words(tmp_path: Path) -> None:
    write_items(tmp_path / "items/0.parquet", ("1", "shop"))
    write_events(tmp_path / "events/0.parquet", *[("ada", "1", "shop", DAY_1)] * 1000)
    data = bytearray((tmp_path / "events/0.parquet").read_bytes())
    data[4:24] = b"\xff" * 20
    (tmp_path / "events/0.parquet").write_bytes(data)
    with pytest.raises(InputError, match=r"0\.parquet: expected a sound Parquet file") as error:
        run(tmp_path)
    assert "Traceback" not in str(error.value)


def test_prepare_needs_an_input(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.events: expected a file or folder, found none"):
        run(tmp_path, events=None, items=None)


@pytest.mark.parametrize(
    "change",
    [{"as_of": "2024-01-01"}, {"buckets": 64}, {"text_columns": ("title",)}],
    ids=lambda change: next(iter(change)),
)
def test_input_digest_changes_with_the_settings_that_matter(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    plain, other = make_config(tmp_path), make_config(tmp_path, **change)
    assert input_digest(plain, {}) != input_digest(other, {})
    assert input_digest(plain, {}) == input_digest(make_config(tmp_path, max_reject_share=0), {})


def write_values(path: Path, values: dict[str, list[Any]]) -> None:
    """Two users; ada's second event comes first in the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns: dict[str, Any] = {
        "user_id": ["ada", "ada", "bob"],
        "item_id": ["2", "1", "1"],
        "domain": ["shop"] * 3,
        "timestamp": [DAY_1 + days(1), DAY_1, DAY_1],
    }
    pq.write_table(pa.table(columns | values), path)


def with_objective(config: Config, objective: str) -> Config:
    train = config.train.model_copy(update={"objective": objective})
    return config.model_copy(update={"train": train, "run_id": objective})


def test_prepare_keeps_ratings_and_weights_in_the_order_of_time(tmp_path: Path) -> None:
    write_items(tmp_path / "items" / "a.parquet", ("1", "shop"), ("2", "shop"))
    write_values(tmp_path / "events" / "a.parquet", {"rating": [4, 1, None], "weight": [2.5, 1, 0]})
    config, store = make_config(tmp_path, buckets=32), Store(str(tmp_path / "store"))
    found = {}
    for objective in ("mse", "softmax"):
        summary = prepare(with_objective(config, objective), store)
        prepared = open_prepared(store, summary["prepared"])
        tables = [read_histories(store, prepared, bucket) for bucket in range(prepared.buckets)]
        rows = [entry for table in tables for entry in table.to_pylist()]
        found[objective] = {entry.pop("user_id"): entry for entry in rows}
        assert prepared.values == (("rating", "weight") if objective == "mse" else ("weight",))
    assert found["mse"]["ada"]["ratings"] == [1, 4]
    assert found["mse"]["ada"]["weights"] == [1, 2.5]
    assert [str(rating) for rating in found["mse"]["bob"]["ratings"]] == ["nan"]
    assert found["softmax"]["bob"]["weights"] == [0]
    assert "ratings" not in found["softmax"]["ada"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "expected a column rating of numbers, for train.objective=mse, found none"),
        ({"rating": ["good"] * 3}, "expected a column rating of type number, found rating of type"),
    ],
)
def test_prepare_needs_ratings_where_they_are_predicted(
    tmp_path: Path, values: dict[str, list[Any]], message: str
) -> None:
    write_items(tmp_path / "items" / "a.parquet", ("1", "shop"), ("2", "shop"))
    write_values(tmp_path / "events" / "a.parquet", values)
    config, store = make_config(tmp_path), Store(str(tmp_path / "store"))
    with pytest.raises(InputError, match=message):
        prepare(with_objective(config, "mse"), store)
    # No other objective looks at them.
    prepare(config, store)


def test_relations_are_checked_pinned_and_kept_by_catalogue_row(tmp_path: Path) -> None:
    write_items(tmp_path / "items/0.parquet", ("1", "shop"), ("2", "shop"), ("1", "video"))
    write_events(tmp_path / "events/0.parquet", ("ada", "1", "shop", DAY_1))
    plain, store = run(tmp_path)
    assert not open_prepared(store, plain["prepared"]).with_relations
    assert "relations" not in {*plain, *plain["rejects"]}
    columns = {
        "item_id": ["2", "1", "9"],
        "domain": ["shop"] * 3,
        "relation": ["same_series"] * 3,
        "related_item_id": ["1", "2", "1"],
        "related_domain": ["video", None, "video"],
    }
    path = tmp_path / "relations.parquet"
    pq.write_table(pa.table(columns), path)
    config = make_config(tmp_path, relations=str(path)).model_copy(update={"run_id": "related"})
    summary = prepare(config, store)
    assert summary["prepared"] != plain["prepared"]
    assert open_prepared(store, summary["prepared"]).with_relations
    assert summary["relations"] == {"pairs": 4}
    assert summary["rejects"]["relations"] == {"unknown item": 1}
    pairs = store.read_parquet(f"{summary['prepared']}/relations.parquet").to_pylist()
    assert [(pair["row"], pair["related"]) for pair in pairs] == [(0, 1), (1, 0), (1, 2), (2, 1)]
    kept = store.read_parquet("runs/related/rejects/relations.parquet").to_pylist()
    assert [(row["table"], row["file_row"], row["item_id"]) for row in kept] == [
        ("relations", 2, "9")
    ]
    pq.write_table(pa.table(columns).slice(0, 1), path)
    with pytest.raises(InputError, match="began with"):
        prepare(config, store)
    del columns["domain"]
    pq.write_table(pa.table(columns), path)
    with pytest.raises(InputError, match="column domain"):
        prepare(config.model_copy(update={"run_id": "other"}), store)
