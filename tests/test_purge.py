"""Users who asked to be forgotten, and what earlier runs have of them; no Ray."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crossrec.config import Config
from crossrec.current import MARK, read_current
from crossrec.errors import ConfigError, CrossrecError, UserError
from crossrec.lease import hold
from crossrec.publish import publish
from crossrec.purge import purge
from crossrec.readers import read_scores
from crossrec.retention import remove_old_runs
from crossrec.storage import Store
from tests.runs import BUCKETS, DOMAINS, USERS, bucket_user_ids, config_of, publish_run, write_run


@pytest.fixture
def gone(tmp_path: Path) -> list[str]:
    """A user of bucket 0, and one nobody knows; written to a file."""
    ids = [bucket_user_ids(0)[1], "nobody"]
    pq.write_table(pa.table({"user_id": ids}), tmp_path / "forget.parquet")
    return ids


def purge_config(store: Store, tmp_path: Path) -> Config:
    settings = {"run_id": "purge", "storage": {"root": store.root, "options": store.options}}
    return Config.model_validate(settings | {"data": {"forget": str(tmp_path / "forget.parquet")}})


def all_files(store: Store, folder: str = "") -> list[str]:
    found = []
    for name in store.list(folder):
        path = f"{folder}/{name}".strip("/")
        inside = all_files(store, path) if "." not in name.removeprefix("domain=") else []
        found += inside or [path]
    return found


def names_user(store: Store, user: str) -> list[str]:
    """Return the files in which an id stands, as text or in a Parquet column."""
    found = []
    for path in all_files(store):
        if path.endswith(".parquet"):
            table = store.read_parquet(path)
            named = "user_id" in table.column_names and user in table["user_id"].to_pylist()
        else:
            named = user.encode() in store.read_bytes(path)
        found += [path] if named else []
    return found


def write_traces(store: Store, user: str) -> None:
    """Leave, beside the lists of run r1, what else names users."""
    lists = pa.table({"user_id": [user, "other"], "item_ids": [["i1"], ["i2"]]})
    for folder in ("runs/r1/holdout/domain=shop", "runs/r1/baselines/als/domain=shop"):
        store.write_parquet(f"{folder}/bucket-00000.x.parquet", lists)
    rejects = pa.table({"user_id": [user, None], "reason": ["no", "no"]})
    store.write_parquet("runs/r1/rejects/events-0.parquet", rejects)
    store.write_parquet("prepared/p1/rejects/events-0.parquet", rejects)
    traits = pa.table({"user_id": [user, "other"], "trait.age": [17.0, None]})
    store.write_parquet("runs/r1/traits/bucket-00000.parquet", traits)
    sample = [{"user_id": name, "history": [], "lists": {}, "next": []} for name in (user, "other")]
    store.write_json("runs/r1/sample.json", sample)
    store.write_json("runs/r1/metrics.json", {"run_id": "r1", "systems": {}})
    store.write_bytes("runs/r1/report.html", user.encode())


def check_published(store: Store, run_id: str, gone: str) -> None:
    """Readers see everybody else, and what they follow is as its digests say."""
    current = read_current(store)
    assert current is not None
    assert current["run_id"] == run_id
    data = store.read_bytes(current["manifest"])
    assert hashlib.sha256(data).hexdigest() == current["sha256"]
    manifest = json.loads(data)
    for file in manifest["files"]:
        assert hashlib.sha256(store.read_bytes(file["path"])).hexdigest() == file["sha256"]
    assert manifest["users"] == BUCKETS * USERS - 1
    assert manifest["pairs"] == len(DOMAINS) * manifest["users"]
    everybody = {user for bucket in range(BUCKETS) for user in bucket_user_ids(bucket)}
    for domain in DOMAINS:
        batches = read_scores(store.root, domain=domain, options=store.options)
        found = [user for batch in batches for user in batch["user_id"].to_pylist()]
        assert sorted(found) == sorted(everybody - {gone})


def test_purge_leaves_nothing_of_a_user(store: Store, gone: list[str], tmp_path: Path) -> None:
    publish_run(store, "r1")
    write_traces(store, gone[0])
    # Two files of lists, histories, two judged lists, rejects twice, traits, sample and report.
    assert len(names_user(store, gone[0])) == 10
    summary = purge(purge_config(store, tmp_path), store)
    assert names_user(store, gone[0]) == []
    assert (summary["users"], summary["files"]) == (2, 10)
    check_published(store, "r1", gone[0])
    assert "other" in store.read_bytes("runs/r1/sample.json").decode()
    assert store.read_parquet("runs/r1/holdout/domain=shop/bucket-00000.x.parquet").num_rows == 1


def test_purged_run_is_still_whole(store: Store, gone: list[str], tmp_path: Path) -> None:
    publish_run(store, "r1")
    publish_run(store, "r2")
    purge(purge_config(store, tmp_path), store)
    check_published(store, "r2", gone[0])
    # All that publication verifies holds of both.
    publish(config_of(store, "r1"), store)
    check_published(store, "r1", gone[0])


def test_purge_again_does_nothing(store: Store, gone: list[str], tmp_path: Path) -> None:
    publish_run(store, "r1")
    purge(purge_config(store, tmp_path), store)
    files = {path: store.read_bytes(path) for path in all_files(store) if "/lock/" not in path}
    assert purge(purge_config(store, tmp_path), store)["files"] == 0
    after = {path: store.read_bytes(path) for path in all_files(store) if "/lock/" not in path}
    assert after == files


@pytest.mark.parametrize("crash_at", range(12))
def test_purge_that_crashed_is_finished_by_the_same_command(
    gone: list[str], tmp_path: Path, crash_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path / "store"))
    publish_run(store, "r1")
    write_traces(store, gone[0])
    writes = 0
    write_bytes = Store.write_bytes

    def crash(self: Store, path: str, data: bytes) -> None:
        nonlocal writes
        if "/lock/" not in path:
            if writes == crash_at:
                raise KeyboardInterrupt
            writes += 1
        write_bytes(self, path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write_bytes", crash)
        with pytest.raises(KeyboardInterrupt):
            purge(purge_config(store, tmp_path), store)
    purge(purge_config(store, tmp_path), store)
    assert names_user(store, gone[0]) == []
    check_published(store, "r1", gone[0])


def test_lists_that_a_later_run_took_over_are_those_without_the_user(
    store: Store, gone: list[str], tmp_path: Path
) -> None:
    publish_run(store, "r1")
    publish_run(store, "r2")
    # As of an incremental night: r2's lists are r1's files.
    taken: dict[str, Any] = store.read_json("runs/r1/manifest.json")
    manifest = store.read_json("runs/r2/manifest.json") | {"files": taken["files"]}
    store.write_json("runs/r2/manifest.json", manifest)
    for bucket in range(BUCKETS):
        name = f"done/bucket-{bucket:05d}.json"
        store.write_json(f"runs/r2/{name}", store.read_json(f"runs/r1/{name}"))
    purge(purge_config(store, tmp_path), store)
    assert names_user(store, gone[0]) == []
    runs = [store.read_json(f"runs/{run}/manifest.json")["files"] for run in ("r1", "r2")]
    assert runs[0] == runs[1]
    assert all(store.exists(file["path"]) for file in runs[1])


def test_a_run_that_was_not_published_loses_its_lists(
    store: Store, gone: list[str], tmp_path: Path
) -> None:
    publish_run(store, "r1")
    write_run(store, "r2")
    purge(purge_config(store, tmp_path), store)
    assert names_user(store, gone[0]) == []
    assert not {"scores", "done"} & set(store.list("runs/r2"))
    assert store.exists("runs/r2/plan.json")
    check_published(store, "r1", gone[0])


def test_lists_of_a_run_that_was_not_published_go_after_their_records(
    gone: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill after any deletion leaves no record whose files are gone."""
    store = Store(str(tmp_path / "store"))
    write_run(store, "r1")
    write_traces(store, gone[0])
    deleted: list[str] = []
    delete = Store.delete

    def watched(self: Store, path: str) -> None:
        deleted.append(path)
        delete(self, path)

    monkeypatch.setattr(Store, "delete", watched)
    purge(purge_config(store, tmp_path), store)
    places = [deleted.index(f"runs/r1/{name}") for name in ("done", "scores")]
    assert places == sorted(places)
    # Records of judged lists are among those of the baselines.
    places = [deleted.index(f"runs/r1/{name}") for name in ("baselines", "holdout")]
    assert places == sorted(places)


def test_purge_removes_what_was_killed_while_users_were_put_into_buckets(
    gone: list[str], tmp_path: Path
) -> None:
    store = Store(str(tmp_path / "store"))
    publish_run(store, "r1")
    for folder in ("prepared/p1", "prepared/killed", "runs/r1/traits", "runs/killed/traits"):
        store.write_bytes(f"{folder}/pieces/000000-000000.bin", gone[0].encode())
        store.write_json(f"{folder}/left.json", {})
    purge(purge_config(store, tmp_path), store)
    assert names_user(store, gone[0]) == []
    check_published(store, "r1", gone[0])


@pytest.mark.parametrize("left", ["scores", "neither"])
def test_a_run_whose_removal_was_killed_is_purged_as_none_that_was_published(
    gone: list[str], tmp_path: Path, left: str
) -> None:
    store = Store(str(tmp_path / "store"))
    publish_run(store, "r1", model="m1")
    publish_run(store, "r2", model="m2")
    store.write_json(f"runs/r1/{MARK}", {"references": ["models/m1"]})
    for name in {"done", "scores"} - {left}:
        store.delete(f"runs/r1/{name}")
    purge(purge_config(store, tmp_path), store)
    assert names_user(store, gone[0]) == []
    check_published(store, "r2", gone[0])
    assert remove_old_runs(store, current="r2", keep=1) == ["r1"]
    assert store.list("models") == ["m2"]


def test_a_publication_whose_removal_was_given_up_stays_whole(
    gone: list[str], tmp_path: Path
) -> None:
    store = Store(str(tmp_path / "store"))
    publish_run(store, "r1")
    store.write_json(f"runs/r1/{MARK}", {"references": []})
    with pytest.raises(CrossrecError, match="a run r1 that stays, found its removal"):
        purge(purge_config(store, tmp_path), store)
    store.delete(f"runs/r1/{MARK}")
    purge(purge_config(store, tmp_path), store)
    assert names_user(store, gone[0]) == []
    check_published(store, "r1", gone[0])


def test_a_run_at_work_is_left_alone(gone: list[str], tmp_path: Path) -> None:
    store, other = (Store(str(tmp_path / "store")) for _ in range(2))
    publish_run(store, "r1")
    with (
        hold(other, "r1", on_lost=lambda: None),
        pytest.raises(UserError, match="r1"),
    ):
        purge(purge_config(store, tmp_path), store)
    assert len(names_user(store, gone[0])) == 3


def test_purge_of_nobody_is_a_mistake(store: Store) -> None:
    with pytest.raises(ConfigError, match=r"data\.forget: expected a Parquet"):
        purge(config_of(store, "purge"), store)
