from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from crossrec import schema, verify
from crossrec.data.candidates import Candidates
from crossrec.data.traits import traits_path
from crossrec.errors import CrossrecError
from crossrec.publish import publish
from crossrec.storage import Store
from crossrec.verify_lists import (
    BATCH_BYTES,
    NOT_AN_ITEM,
    Allowed,
    ItemIndex,
    WrongLists,
    bucket_users,
    check_batch,
)
from tests.runs import (
    BUCKETS,
    DOMAINS,
    SEEN,
    TOP_K,
    USERS,
    bucket_user_ids,
    change_lists,
    change_record,
    config_of,
    publish_run,
    scores_file,
    write_lists,
    write_run,
)


def remove_a_record(store: Store, folder: str) -> None:
    store.delete(f"{folder}/done/bucket-00001.json")


def remove_a_file(store: Store, folder: str) -> None:
    store.delete(scores_file(folder, 1, "shop"))


def cut_a_file(store: Store, folder: str) -> None:
    path = scores_file(folder, 1, "shop")
    store.write_bytes(path, store.read_bytes(path)[:-1])


def flip_a_bit(store: Store, folder: str) -> None:
    path = scores_file(folder, 0, "a/b")
    data = store.read_bytes(path)
    store.write_bytes(path, data[:100] + bytes([data[100] ^ 1]) + data[101:])


def leave_a_domain_out(store: Store, folder: str) -> None:
    change_record(store, folder, lambda done: done["files"].pop())


def name_a_file_of_another_run(store: Store, folder: str) -> None:
    path = "runs/r9/scores/domain=shop/bucket-00000.abc.parquet"
    change_record(store, folder, lambda done: done["files"][1].update(path=path))


def count_a_user_more(store: Store, folder: str) -> None:
    change_record(store, folder, lambda done: done.update(users=USERS + 1))


def count_a_row_more(store: Store, folder: str) -> None:
    def change(done: dict[str, Any]) -> None:
        done["users"] += 1
        for file in done["files"]:
            file["rows"] += 1

    change_record(store, folder, change)


def exchange_records(store: Store, folder: str) -> None:
    change_record(store, folder, lambda done: done.update(bucket=1))


def break_a_record(store: Store, folder: str) -> None:
    change_record(store, folder, lambda done: done["files"][0].pop("sha256"))


def write_another_schema(store: Store, folder: str) -> None:
    path = scores_file(folder, 0, "shop")
    record = write_lists(store, path, pa.table({"user_id": ["a", "b", "c"]}))

    def change(done: dict[str, Any]) -> None:
        done["files"] = [record if file["path"] == path else file for file in done["files"]]

    change_record(store, folder, change)


def remove_defaults(store: Store, folder: str) -> None:
    store.delete(f"{folder}/defaults.parquet")


def leave_a_domain_out_of_defaults(store: Store, folder: str) -> None:
    path = f"{folder}/defaults.parquet"
    store.write_parquet(path, store.read_parquet(path).slice(0, 1))


@pytest.mark.parametrize(
    ("damage", "where"),
    [
        (remove_a_record, "done/bucket-00001.json: expected a record, found none"),
        (remove_a_file, "bucket-00001.abc.parquet: expected a scores file, found none"),
        (cut_a_file, "domain=shop/bucket-00001.abc.parquet: expected [0-9]+ bytes"),
        (flip_a_bit, "domain=a%2Fb/bucket-00000.abc.parquet: expected [0-9]+ bytes"),
        (leave_a_domain_out, "done/bucket-00000.json: expected one file of each of the domains"),
        (name_a_file_of_another_run, "found .*none: runs/r9/scores/domain=shop"),
        (count_a_user_more, "done/bucket-00000.json: expected 4 rows, one a user"),
        (count_a_row_more, "bucket-00000.abc.parquet: expected 4 rows, found 3"),
        (exchange_records, "done/bucket-00000.json: expected bucket 0, found 1"),
        (break_a_record, "done/bucket-00000.json: expected bucket, users, and files with path"),
        (write_another_schema, "bucket-00000.abc.parquet: expected columns user_id string, item"),
        (remove_defaults, "defaults.parquet: expected a file, found none"),
        (leave_a_domain_out_of_defaults, "defaults.parquet: expected one row of each of the dom"),
    ],
)
def test_damaged_run_is_not_published(
    tmp_path: Path, damage: Callable[[Store, str], None], where: str
) -> None:
    store = Store(str(tmp_path))
    publish_run(store, "r1")
    before = store.read_bytes("current.json")
    damage(store, write_run(store, "r2"))
    with pytest.raises(CrossrecError, match=f"{where}.*run score again"):
        publish(config_of(store, "r2"), store)
    assert store.read_bytes("current.json") == before
    assert not store.exists("runs/r2/manifest.json")


def lists_of(second: tuple[list[Any] | None, list[Any] | None]) -> Callable[[pa.Table], pa.Table]:
    """Return a change that gives the bucket's second user these item ids and scores."""

    def change(table: pa.Table) -> pa.Table:
        columns = table.to_pydict()
        columns["item_ids"][1], columns["scores"][1] = second
        nullable = pa.schema([(field.name, field.type) for field in schema.SCORES])
        return pa.table(columns, schema=nullable)

    return change


def users_of(*places: int | None) -> Callable[[pa.Table], pa.Table]:
    """Return a change that writes the bucket's users in another order, or others for None."""

    def change(table: pa.Table) -> pa.Table:
        users = [
            f"stranger {n}" if place is None else table["user_id"][place].as_py()
            for n, place in enumerate(places)
        ]
        return table.set_column(0, schema.SCORES.field(0), [users])

    return change


def no_user(table: pa.Table) -> pa.Table:
    users = pa.array([*table["user_id"].to_pylist()[:2], None])
    return table.set_column(0, "user_id", users)


U0, U1, U2 = bucket_user_ids(0)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (users_of(0, 0, 2), f"in their order, next '{U1}', found '{U0}'"),
        (users_of(0, 2, 1), f"in their order, next '{U1}', found '{U2}'"),
        (users_of(0, 1, None), f"in their order, next '{U2}', found 'stranger 2'"),
        (no_user, f"in their order, next '{U2}', found None"),
        (lists_of((None, [2.0, 1.0])), f"expected a list in item_ids, found null for '{U1}'"),
        (lists_of((["i1", "i2"], None)), f"expected a list in scores, found null for '{U1}'"),
        (lists_of((["i1", "i2"], [1.0])), "expected a score for each item, found lists of two"),
        (lists_of((["i1", "i2", "i3"], [3, 2, 1])), f"at most 2 items a list, found .* '{U1}'"),
        (lists_of((["i1", None], [2.0, 1.0])), f"an item id in every place, found null for '{U1}'"),
        (lists_of((["i1", "i2"], [2.0, None])), f"a score in every place, found null for '{U1}'"),
        (lists_of((["i1", "i2"], [2.0, np.nan])), f"finite scores, found .* for '{U1}'"),
        (lists_of((["i1", "i2"], [np.inf, 1.0])), f"finite scores, found .* for '{U1}'"),
        (lists_of((["i1", "i2"], [1.0, 2.0])), f"scores that never rise, found .* for '{U1}'"),
        (lists_of((["i1", "i1"], [2.0, 1.0])), f"no item twice in a list, found 'i1' for '{U1}'"),
        (lists_of((["i1", "i4"], [2.0, 1.0])), f"that the user has seen, found 'i4' for '{U1}'"),
        (lists_of((["i1", "i9"], [2.0, 1.0])), f"items of the domain, found 'i9' for '{U1}'"),
    ],
)
def test_wrong_list_is_not_published_though_its_record_says_the_same(
    tmp_path: Path, change: Callable[[pa.Table], pa.Table], where: str
) -> None:
    store = Store(str(tmp_path))
    publish_run(store, "r1")
    before = store.read_bytes("current.json")
    folder = write_run(store, "r2")
    change_lists(store, folder, change)
    path = r"r2/scores/domain=shop/bucket-00000\.abc\.parquet"
    with pytest.raises(CrossrecError, match=f"{path}: .*{where}.*run score again"):
        publish(config_of(store, "r2"), store)
    assert store.read_bytes("current.json") == before


def test_short_and_empty_lists_and_equal_scores_are_good(tmp_path: Path) -> None:
    """Where all items but one, or all, are seen; i3 is seen in the other domain alone."""
    store = Store(str(tmp_path))
    folder = write_run(store, "r1")
    change_lists(store, folder, lists_of((["i3"], [-1.0])))
    change_lists(store, folder, lists_of(([], [])), domain="a/b")
    write_run(store, "r2")
    change_lists(store, "runs/r2", lists_of((["i3", "i1"], [0.5, 0.5])))
    for run_id in ("r1", "r2"):
        publish(config_of(store, run_id), store)


def test_lists_are_checked_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third user's list is wrong, and a part holds one user."""
    monkeypatch.setattr("crossrec.verify_lists.ENTRIES_AT_ONCE", TOP_K)
    store = Store(str(tmp_path))
    publish_run(store, "r1")
    folder = write_run(store, "r2")

    def change(table: pa.Table) -> pa.Table:
        lists = [*table["item_ids"].to_pylist()[:2], ["i4", "i1"]]
        return table.set_column(1, schema.SCORES.field(1), [lists])

    change_lists(store, folder, change)
    with pytest.raises(CrossrecError, match=f"has seen, found 'i4' for '{U2}'"):
        publish(config_of(store, "r2"), store)


@pytest.mark.parametrize(
    ("lists", "where"),
    [
        ((["i9"], [1.0]), "items of the domain, found 'i9' for 'shop'"),
        ((["i1", "i2"], [1.0, 2.0]), "scores that never rise, found one that does for 'shop'"),
    ],
)
def test_wrong_list_for_unknown_users_is_not_published(
    tmp_path: Path, lists: tuple[list[str], list[float]], where: str
) -> None:
    store = Store(str(tmp_path))
    folder = write_run(store, "r1")
    columns = {
        "domain": ["shop", "a/b"],
        "item_ids": [lists[0], ["i3"]],
        "scores": [lists[1], [1.0]],
    }
    defaults = pa.table(columns, schema=schema.DEFAULTS)
    store.write_parquet(f"{folder}/defaults.parquet", defaults)
    with pytest.raises(CrossrecError, match=f"defaults.parquet: expected {where}.*run score again"):
        publish(config_of(store, "r1"), store)


def require(store: Store, folder: str, ages: Sequence[float | None]) -> None:
    """Let i2 require an age of 18 of the users, who are as old in every bucket."""
    rules = {"max_per": {}, "requires": {"conditions": [["<=", "age"]], "kinds": [[None], [18.0]]}}
    store.write_json(f"{folder}/candidates/rules.json", rules)
    for domain in DOMAINS:
        table = pa.table({"allowed": [True] * 4, "requires": pa.array([0, 1, 0, 0], pa.int32())})
        path = f"{folder}/candidates/{schema.domain_folder(domain)}.parquet"
        store.write_parquet(path, table)
    for bucket in range(BUCKETS):
        users = {"user_id": bucket_user_ids(bucket), "trait.age": pa.array(ages, pa.float64())}
        store.write_parquet(traits_path(f"{folder}/traits", bucket), pa.table(users))


def test_item_that_its_user_does_not_fulfil_is_not_published(tmp_path: Path) -> None:
    """All have i1 and i2 in their lists."""
    store = Store(str(tmp_path))
    require(store, write_run(store, "r1"), [18, 40, 99.5])
    publish(config_of(store, "r1"), store)
    before = store.read_bytes("current.json")
    for ages in ([18, 17, 99], [18, None, 99]):
        require(store, write_run(store, "r2"), ages)
        said = rf"requires the user fulfils, found 'i2' for '{bucket_user_ids(0)[1]}'"
        with pytest.raises(CrossrecError, match=said):
            publish(config_of(store, "r2"), store)
    assert store.read_bytes("current.json") == before


def test_item_that_requires_something_is_not_for_unknown_users(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    folder = write_run(store, "r1")
    require(store, folder, [18, 40, 99])
    columns = {"domain": DOMAINS, "item_ids": [["i1"], ["i2"]], "scores": [[1.0]] * 2}
    defaults = pa.table(columns, schema=schema.DEFAULTS)
    store.write_parquet(f"{folder}/defaults.parquet", defaults)
    with pytest.raises(CrossrecError, match=r"defaults\.parquet: .*fulfils, found 'i2' for 'shop'"):
        publish(config_of(store, "r1"), store)


def test_item_of_a_doubtful_text_is_not_published_for_most_users(tmp_path: Path) -> None:
    """All have i2 in their lists; one in fifty may."""
    store = Store(str(tmp_path))
    folder = write_run(store, "r1")
    path = f"{folder}/candidates/domain=shop.parquet"
    table = pa.table({"allowed": [True] * 4, "limited": [False, True, False, False]})
    store.write_parquet(path, table)
    with pytest.raises(CrossrecError, match=r"keeps from most users, found 'i2' for"):
        publish(config_of(store, "r1"), store)
    store.write_parquet(path, table.set_column(1, "limited", [[False, False, True, True]]))
    publish(config_of(store, "r1"), store)


def test_plan_of_another_input_is_not_published(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    folder = write_run(store, "r1")
    plan = store.read_json(f"{folder}/plan.json")
    store.write_json(f"{folder}/plan.json", {**plan, "buckets": 1})
    with pytest.raises(CrossrecError, match="expected buckets and domains of prepared/p1"):
        publish(config_of(store, "r1"), store)


def test_index_finds_every_item_and_no_other() -> None:
    ids = [f"item {number} {'x' * (number % 20)}" for number in range(5_000)]
    index = ItemIndex(pa.chunked_array([ids[:10], ids[10:]]))
    others = ["", "item", "ITEM 7", "item 5000"]
    draw = np.random.default_rng(17).integers(0, len(ids), 2_000)
    found = index.rows_of(pa.array([*(ids[row] for row in draw), *others]))
    assert found.tolist() == [*draw.tolist(), *[NOT_AN_ITEM] * len(others)]
    assert ItemIndex(pa.chunked_array([[]], pa.string())).rows_of(pa.array(["a"])).tolist() == [-1]


@pytest.mark.parametrize("same", [0, 2**64 - 1])
def test_index_tells_items_of_one_hash_apart(monkeypatch: pytest.MonkeyPatch, same: int) -> None:
    def collide(ids: pa.LargeStringArray) -> np.ndarray:
        return np.full(len(ids), same, np.uint64)

    monkeypatch.setattr("crossrec.verify_lists.hash_strings", collide)
    index = ItemIndex(pa.chunked_array([["b", "a", "c"]]))
    assert index.rows_of(pa.array(["a", "c", "x", "b", "a"])).tolist() == [1, 2, -1, 0, 1]


def test_check_agrees_with_sets_on_random_lists() -> None:
    """On many small batches, of which a part is wrong, against the plain way."""
    draw, items, verdicts = np.random.default_rng(17), 12, []
    ids = [f"i{row}" for row in range(items)]
    index = ItemIndex(pa.chunked_array([ids]))
    users = ["u1", "u2"]
    for _ in range(300):
        candidate, brands = draw.random(items) < 0.95, draw.integers(-1, 6, items)
        rules = Candidates(candidate, {"brand": brands}, {"brand": 1})
        lists = [draw.integers(0, items, draw.integers(0, 4)).tolist() for _ in users]
        seen = [draw.integers(0, 2 * items, draw.integers(0, 4)).tolist() for _ in users]
        batch = pa.record_batch(
            [
                pa.array(users),
                pa.array([[ids[row] for row in rows] for rows in lists], pa.list_(pa.string())),
                pa.array([[1.0] * len(rows) for rows in lists], pa.list_(pa.float32())),
            ],
            names=schema.SCORES.names,
        )
        columns = {"user_id": users, "rows": pa.array(seen, pa.list_(pa.int32()))}
        # The domain has rows 6..17 of the catalogue.
        known = bucket_users(pa.table(columns), 6, 6 + items)
        good = all(
            len({*rows}) == len(rows) and not {row + 6 for row in rows} & {*had}
            for rows, had in zip(lists, seen, strict=True)
        )
        for rows in lists:
            values = [brands[row] for row in rows if brands[row] >= 0]
            good &= all(candidate[rows]) and len(values) == len(set(values))
        verdicts.append(good)
        try:
            check_batch(batch, known, Allowed(index, rules, top_k=3))
        except WrongLists:
            assert not good
        else:
            assert good
    assert 60 < sum(verdicts) < 240


def test_files_are_checked_a_few_at_a_time_when_they_are_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path))
    write_run(store, "r1")
    threads: list[int] = []

    def listen(count: int) -> Any:
        threads.append(count)
        return ThreadPoolExecutor(count)

    largest = max(path.stat().st_size for path in tmp_path.rglob("bucket-*.parquet"))
    events = USERS * len(SEEN)
    one = largest + BATCH_BYTES + verify.EVENT_BYTES * events
    monkeypatch.setattr(verify, "BYTES_IN_FLIGHT", 3 * one)
    monkeypatch.setattr(verify, "ThreadPoolExecutor", listen)
    publish(config_of(store, "r1"), store)
    assert threads == [verify.THREADS, *[3] * len(DOMAINS)]
