import datetime as dt
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crossrec.current import CURRENT, MARK, read_current
from crossrec.errors import CrossrecError, UserError
from crossrec.publish import publish, rollback, switch_back
from crossrec.retention import IDLE_S, remove_old_runs, remove_unfinished
from crossrec.storage import Store
from tests.runs import BUCKETS, DOMAINS, USERS, config_of, publish_run, scores_file, write_run


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

    def crash(self: Store, path: str, old: bytes | None, new: bytes) -> bool:
        assert path == CURRENT
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "swap_bytes", crash)
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


def test_old_runs_go_with_what_only_they_used(store: Store) -> None:
    publish_run(store, "r1", model="m1", prepared="prepared/p1")
    publish_run(store, "r2", model="m2", prepared="prepared/p2")
    publish_run(store, "r3", model="m2", prepared="prepared/p3")
    summary = publish_run(store, "r4", keep_runs=2, model="m4", prepared="prepared/p4")
    assert summary["removed_runs"] == ["r1", "r2"]
    assert store.list("runs") == ["r3", "r4"]
    assert store.list("models") == ["m2", "m4"]
    assert store.list("prepared") == ["p3", "p4"]


def test_the_run_that_trained_a_published_model_stays(store: Store) -> None:
    publish_run(store, "r1", model="m1", prepared="prepared/p1")
    publish_run(store, "r2", model="m2", prepared="prepared/p2")
    write_run(store, "r3", model="m1", prepared="prepared/p3")
    store.write_json("models/m1/config.json", {"facts": {"run_id": "r1"}})
    summary = publish(config_of(store, "r3", 1), store)
    assert summary["removed_runs"] == ["r2"]
    assert store.list("runs") == ["r1", "r3"]
    assert store.list("models") == ["m1"]


def test_run_that_was_never_published_stays_with_what_it_uses(store: Store) -> None:
    publish_run(store, "r1", model="m1", prepared="prepared/p1")
    store.write_json("runs/at-work/prepare.json", {"prepared": "prepared/p1"})
    store.write_bytes("models/in-training/config.json", b"{}")
    publish_run(store, "r2", keep_runs=1, model="m2", prepared="prepared/p2")
    assert store.list("runs") == ["at-work", "r2"]
    assert store.list("prepared") == ["p1", "p2"]
    assert store.list("models") == ["in-training", "m2"]


def fail_night(store: Store, run_id: str, began: str, command: str = "nightly") -> None:
    """Leave what a night leaves that failed once it had trained."""
    said = {"format": 1, "command": command, "attempt_began": began, "status": "failed"}
    store.write_json(f"runs/{run_id}/summary.json", said)
    store.write_json(f"runs/{run_id}/prepare.json", {"prepared": f"prepared/{run_id}"})
    store.write_json(f"runs/{run_id}/finetune.json", {"model": f"models/{run_id}"})
    store.write_json(f"prepared/{run_id}/summary.json", {})
    store.write_json(f"models/{run_id}/config.json", {})


def test_nights_that_failed_go_with_the_publications_of_their_time(store: Store) -> None:
    before, later = "2020-01-01T00:00:00+00:00", "2120-01-01T00:00:00+00:00"
    fail_night(store, "failed", before)
    fail_night(store, "failed-lately", later)
    fail_night(store, "search", before, command="tune")
    fail_night(store, "at-work", before)
    beat = dt.datetime.now(dt.UTC).isoformat()
    store.write_json("runs/at-work/lock/1.json", {"released": False, "beat_at": beat})
    publish_run(store, "r1", keep_runs=2)
    assert "failed" in store.list("runs"), "no publication is too many yet"
    assert publish_run(store, "r2", keep_runs=2)["removed_runs"] == ["failed"]
    assert store.list("runs") == ["at-work", "failed-lately", "r1", "r2", "search"]
    assert store.list("models") == ["at-work", "failed-lately", "m1", "search"]
    assert store.list("prepared") == ["at-work", "failed-lately", "p1", "search"]


def test_prepared_folders_that_were_never_finished_go_while_nobody_prepares(
    tmp_path: Path,
) -> None:
    store = Store(str(tmp_path))
    store.write_bytes("prepared/killed/histories/bucket-00000.parquet", b"half")
    store.write_bytes("prepared/named/histories/bucket-00000.parquet", b"half")
    store.write_json("prepared/finished/summary.json", {})
    store.write_json("runs/named/prepare.json", {"prepared": "prepared/named"})
    lock = {"released": False, "beat_at": dt.datetime.now(dt.UTC).isoformat()}
    store.write_json("runs/at-work/lock/1.json", lock)
    publish_run(store, "r1")
    assert "killed" in store.list("prepared"), "it may be what the job at work prepares"
    store.write_json("runs/at-work/prepare.json", {"prepared": "prepared/finished"})
    publish(config_of(store, "r1"), store)
    assert store.list("prepared") == ["finished", "named", "p1"]
    assert remove_unfinished(store) == []


def test_a_job_that_died_while_it_prepared_keeps_no_folder(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write_bytes("prepared/killed/histories/bucket-00000.parquet", b"half")
    beat = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=IDLE_S + 60)
    lock = {"released": False, "beat_at": beat.isoformat()}
    store.write_json("runs/died/lock/1.json", lock)
    assert remove_unfinished(store) == ["prepared/killed"]


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


def test_runs_that_others_stand_on_or_have_files_of_stay(store: Store) -> None:
    for run_id in ("old", "full", "monday", "tuesday", "wednesday"):
        publish_run(store, run_id)
    for run_id, stands_on, has_files_of in (
        ("monday", {"full": "full", "previous": "full"}, "full"),
        ("tuesday", {"full": "full", "previous": "monday"}, "monday"),
    ):
        manifest = store.read_json(f"runs/{run_id}/manifest.json") | stands_on
        manifest["files"][0]["path"] = scores_file(f"runs/{has_files_of}", 0, "shop")
        store.write_json(f"runs/{run_id}/manifest.json", manifest)
    # At work, and not yet published.
    store.write_json("runs/thursday/increment.json", {"full": "full", "previous": "tuesday"})
    assert remove_old_runs(store, current="wednesday", keep=1) == ["old"]
    store.delete("runs/thursday")
    assert remove_old_runs(store, current="tuesday", keep=1) == []
    assert remove_old_runs(store, current="wednesday", keep=1) == ["full", "monday", "tuesday"]


def test_a_night_whose_lists_were_all_made_anew_may_go(store: Store) -> None:
    for run_id in ("full", "monday", "tuesday"):
        publish_run(store, run_id)
    for run_id, previous in (("monday", "full"), ("tuesday", "monday")):
        stands_on = {"full": "full", "previous": previous}
        store.write_json(f"runs/{run_id}/increment.json", stands_on)
        path = f"runs/{run_id}/manifest.json"
        store.write_json(path, store.read_json(path) | stands_on)
    assert remove_old_runs(store, current="tuesday", keep=1) == ["monday"]


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


def publish_meanwhile(
    store: Store, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], object]
) -> None:
    """Let something happen between the verification of the next publication and its switch."""
    swap = Store.swap_bytes

    def wait(self: Store, path: str, old: bytes | None, new: bytes) -> bool:
        monkeypatch.setattr(Store, "swap_bytes", swap)
        meanwhile()
        return swap(self, path, old, new)

    monkeypatch.setattr(Store, "swap_bytes", wait)


@pytest.mark.parametrize("first", [True, False])
def test_of_two_publications_at_once_the_later_is_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    if not first:
        publish_run(store, "r0")
    write_run(store, "r1")
    publish_meanwhile(store, monkeypatch, lambda: publish_run(store, "r2"))
    before = "no publication" if first else "run r0"
    message = rf"expected what it said when this began \({before}\), found run r2; .*run publish"
    with pytest.raises(UserError, match=message):
        publish(config_of(store, "r1"), store)
    current = read_current(store)
    assert current
    assert current["run_id"] == "r2"
    assert store.exists("runs/r1/manifest.json")
    # Over the newer one, by will.
    publish(config_of(store, "r1"), store)
    current = read_current(store)
    assert current
    assert current["run_id"] == "r1"


def test_rollback_during_a_publication_is_not_lost(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for run_id in ("r1", "r2"):
        publish_run(store, run_id)
    write_run(store, "r3")
    publish_meanwhile(store, monkeypatch, lambda: rollback(store))
    with pytest.raises(UserError, match=r"\(run r2\), found run r1"):
        publish(config_of(store, "r3"), store)


def test_run_that_readers_are_switched_to_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another job rolls back after this one has chosen what to remove."""
    store = Store(str(tmp_path))
    for run_id in ("r1", "r2"):
        publish_run(store, run_id)
    write = Store.write_json

    def roll_back_first(self: Store, path: str, value: Any) -> None:
        if path == f"runs/r1/{MARK}":
            monkeypatch.setattr(Store, "write_json", write)
            rollback(store)
        write(self, path, value)

    monkeypatch.setattr(Store, "write_json", roll_back_first)
    assert remove_old_runs(store, current="r2", keep=1) == []
    current = read_current(store)
    assert current
    assert current["run_id"] == "r1"
    assert not store.exists(f"runs/r1/{MARK}")
    assert store.exists(scores_file("runs/r1", 0, "shop"))


def test_readers_are_not_switched_to_a_run_that_is_being_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another job marks it after this one has chosen it."""
    store = Store(str(tmp_path))
    for run_id in ("r1", "r2"):
        publish_run(store, run_id)
    before = store.read_bytes(CURRENT)

    def mark() -> None:
        store.write_json(f"runs/r1/{MARK}", {"references": []})

    publish_meanwhile(store, monkeypatch, mark)
    with pytest.raises(CrossrecError, match="expected a run r1 that stays, found its removal"):
        rollback(store)
    assert store.read_bytes(CURRENT) == before


def test_job_rolls_back(store: Store) -> None:
    for run_id in ("r1", "r2"):
        publish_run(store, run_id)
    assert switch_back(config_of(store, "r2"), store)["current"] == "r1"
