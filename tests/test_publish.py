import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from crossrec import publish as publication
from crossrec import schema
from crossrec.config import Config
from crossrec.errors import CrossrecError, UserError
from crossrec.publish import publish, read_current, rollback
from crossrec.retention import remove_old_runs
from crossrec.storage import Store

DOMAINS = ["a/b", "shop"]
BUCKETS = 2
USERS = 3
"""Users of each bucket."""


def config_of(store: Store, run_id: str, keep_runs: int = 7) -> Config:
    return Config.model_validate(
        {
            "run_id": run_id,
            "storage": {"root": store.root},
            "publish": {"keep_runs": keep_runs},
        }
    )


def write_run(store: Store, run_id: str, model: str = "m1", prepared: str = "prepared/p1") -> str:
    """Write a run as score leaves it: 2 buckets x 2 domains x 3 users."""
    folder = f"runs/{run_id}"
    store.write_json(f"models/{model}/config.json", {})
    store.write_json(f"{prepared}/summary.json", {})
    plan = {
        "run_id": run_id,
        "model": model,
        "model_sha256": "ab" * 32,
        "prepared": prepared,
        "buckets": BUCKETS,
        "domains": DOMAINS,
        "digest": f"plan of {run_id}",
    }
    store.write_json(f"{folder}/plan.json", plan)
    for bucket in range(BUCKETS):
        files = []
        for domain in DOMAINS:
            table = pa.table(
                {
                    "user_id": [f"{bucket}-{user}" for user in range(USERS)],
                    "item_ids": [["i1", "i2"]] * USERS,
                    "scores": [[2.0, 1.0]] * USERS,
                },
                schema=schema.SCORES,
            )
            name = f"{schema.bucket_name(bucket)}.abc.parquet"
            path = f"{folder}/scores/{schema.domain_folder(domain)}/{name}"
            files.append(vars(store.write_parquet(path, table)))
        done = {"bucket": bucket, "users": USERS, "seconds": 0.1, "files": files}
        store.write_json(f"{folder}/done/{schema.bucket_name(bucket)}.json", done)
    defaults = pa.table(
        {"domain": DOMAINS, "item_ids": [["i1"]] * 2, "scores": [[1.0]] * 2},
        schema=schema.DEFAULTS,
    )
    store.write_parquet(f"{folder}/defaults.parquet", defaults)
    return folder


def publish_run(store: Store, run_id: str, keep_runs: int = 7, **made_from: str) -> dict[str, Any]:
    write_run(store, run_id, **made_from)
    return publish(config_of(store, run_id, keep_runs), store)


def scores_file(folder: str, bucket: int, domain: str) -> str:
    return f"{folder}/scores/{schema.domain_folder(domain)}/bucket-{bucket:05d}.abc.parquet"


def test_publish_says_what_it_did(store: Store) -> None:
    summary = publish_run(store, "r1")
    assert summary["run_id"] == "r1"
    assert summary["files"] == BUCKETS * len(DOMAINS)
    assert summary["users"] == BUCKETS * USERS
    assert summary["pairs"] == summary["rows"] == BUCKETS * USERS * len(DOMAINS)
    assert summary["scores"] == f"{store.root}/runs/r1/scores"


def test_manifest_records_every_file_sorted_by_path(store: Store) -> None:
    publish_run(store, "r1")
    manifest = store.read_json("runs/r1/manifest.json")
    paths = [file["path"] for file in manifest["files"]]
    assert paths == sorted(
        scores_file("runs/r1", bucket, domain) for bucket in (0, 1) for domain in DOMAINS
    )
    for file in (*manifest["files"], manifest["defaults"]):
        data = store.read_bytes(file["path"])
        assert file["bytes"] == len(data)
        assert file["sha256"] == hashlib.sha256(data).hexdigest()
    assert {file["domain"] for file in manifest["files"]} == set(DOMAINS)
    assert (manifest["model"], manifest["plan_digest"]) == ("m1", "plan of r1")
    assert manifest["model_sha256"] == "ab" * 32


def test_current_points_to_the_manifest_by_its_digest(store: Store) -> None:
    assert read_current(store) is None
    publish_run(store, "r1")
    data = store.read_bytes("runs/r1/manifest.json")
    assert read_current(store) == {
        "run_id": "r1",
        "manifest": "runs/r1/manifest.json",
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def test_publishing_again_changes_nothing(store: Store) -> None:
    first = publish_run(store, "r1")
    files = ("current.json", "runs/r1/manifest.json")
    before = [store.read_bytes(path) for path in files]
    again = publish(config_of(store, "r1"), store)
    assert [store.read_bytes(path) for path in files] == before
    assert {**again, "seconds": 0} == {**first, "seconds": 0}


def test_crash_before_the_switch_is_finished_by_a_rerun(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_run(store, "r1")
    write_run(store, "r2")
    write = Store.write_json

    def crash(self: Store, path: str, value: Any) -> None:
        if path == publication.CURRENT:
            raise KeyboardInterrupt
        write(self, path, value)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write_json", crash)
        with pytest.raises(KeyboardInterrupt):
            publish(config_of(store, "r2"), store)
    current = read_current(store)
    assert current
    assert current["run_id"] == "r1"
    manifest = store.read_bytes("runs/r2/manifest.json")
    publish(config_of(store, "r2"), store)
    current = read_current(store)
    assert current
    assert current["run_id"] == "r2"
    assert store.read_bytes("runs/r2/manifest.json") == manifest


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


def change_record(store: Store, folder: str, change: Callable[[dict[str, Any]], None]) -> None:
    path = f"{folder}/done/bucket-00000.json"
    done = store.read_json(path)
    change(done)
    store.write_json(path, done)


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
    record = vars(store.write_parquet(path, pa.table({"user_id": ["a", "b", "c"]})))

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


def test_run_without_a_plan_is_not_published(store: Store) -> None:
    with pytest.raises(CrossrecError, match=r"plan\.json: expected a record.*run score first"):
        publish(config_of(store, "r1"), store)


def test_run_scored_anew_is_published_anew(store: Store) -> None:
    publish_run(store, "r1")
    folder = write_run(store, "r1")
    plan = store.read_json(f"{folder}/plan.json")
    store.write_json(f"{folder}/plan.json", {**plan, "digest": "another plan"})
    publish(config_of(store, "r1"), store)
    manifest = store.read_json("runs/r1/manifest.json")
    assert manifest["plan_digest"] == "another plan"
    current = read_current(store)
    assert current
    assert (
        current["sha256"] == hashlib.sha256(store.read_bytes("runs/r1/manifest.json")).hexdigest()
    )


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
    monkeypatch.setattr(publication, "BYTES_IN_FLIGHT", 3 * largest)
    monkeypatch.setattr(publication, "ThreadPoolExecutor", listen)
    publish(config_of(store, "r1"), store)
    assert threads == [publication.THREADS, 3]


def test_old_runs_go_with_what_only_they_used(store: Store) -> None:
    publish_run(store, "r1", model="m1", prepared="prepared/p1")
    publish_run(store, "r2", model="m2", prepared="prepared/p2")
    publish_run(store, "r3", model="m2", prepared="prepared/p3")
    summary = publish_run(store, "r4", keep_runs=2, model="m4", prepared="prepared/p4")
    assert summary["removed_runs"] == ["r1", "r2"]
    assert store.list("runs") == ["r3", "r4"]
    assert store.list("models") == ["m2", "m4"]
    assert store.list("prepared") == ["p3", "p4"]


def test_run_that_was_never_published_stays_with_what_it_uses(store: Store) -> None:
    publish_run(store, "r1", model="m1", prepared="prepared/p1")
    store.write_json("runs/at-work/prepare.json", {"prepared": "prepared/p1"})
    store.write_bytes("models/in-training/config.json", b"{}")
    publish_run(store, "r2", keep_runs=1, model="m2", prepared="prepared/p2")
    assert store.list("runs") == ["at-work", "r2"]
    assert store.list("prepared") == ["p1", "p2"]
    assert store.list("models") == ["in-training", "m2"]


def test_current_run_stays_however_old(store: Store) -> None:
    for run_id in ("r1", "r2", "r3"):
        publish_run(store, run_id, model=f"m-{run_id}")
    assert remove_old_runs(store, current="r1", keep=1) == ["r2"]
    assert store.list("runs") == ["r1", "r3"]
    assert store.list("models") == ["m-r1", "m-r3"]


@pytest.mark.parametrize("crash_at", range(8))
def test_removal_that_crashed_is_no_publication_and_is_finished_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_at: int
) -> None:
    store = Store(str(tmp_path))
    publish_run(store, "r1", model="m1", prepared="prepared/p1")
    publish_run(store, "r2", model="m2", prepared="prepared/p2")
    calls = iter(range(100))
    delete = Store.delete

    def crash(self: Store, path: str) -> None:
        if next(calls) == crash_at:
            raise KeyboardInterrupt
        delete(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "delete", crash)
        with pytest.raises(KeyboardInterrupt):
            remove_old_runs(store, current="r2", keep=1)
    with pytest.raises(UserError, match="expected a publication older than it, found none"):
        rollback(store)
    assert remove_old_runs(store, current="r2", keep=1) == ["r1"]
    found = (store.list("runs"), store.list("models"), store.list("prepared"))
    assert found == (["r2"], ["m2"], ["p2"])


def test_run_scored_anew_after_a_crashed_removal_stays(store: Store) -> None:
    publish_run(store, "r1")
    publish_run(store, "r2")
    store.write_json("runs/r1/removing.json", {"references": []})
    publish_run(store, "r1")
    publish_run(store, "r3")
    assert remove_old_runs(store, current="r3", keep=7) == []
    assert store.list("runs") == ["r1", "r2", "r3"]


def test_rollback_switches_to_the_publication_before(store: Store) -> None:
    for run_id in ("r1", "r2", "r3"):
        publish_run(store, run_id)
    assert rollback(store)["run_id"] == "r2"
    assert rollback(store)["run_id"] == "r1"
    current = read_current(store)
    assert current
    assert (
        current["sha256"] == hashlib.sha256(store.read_bytes("runs/r1/manifest.json")).hexdigest()
    )
    with pytest.raises(UserError, match="expected a publication older than it, found none"):
        rollback(store)


def test_rolled_back_run_can_be_published_again(store: Store) -> None:
    publish_run(store, "r1")
    publish_run(store, "r2")
    rollback(store)
    publish(config_of(store, "r2"), store)
    current = read_current(store)
    assert current
    assert current["run_id"] == "r2"
