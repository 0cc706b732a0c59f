import datetime as dt
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from crossrec.status import last_runs, to_table
from crossrec.storage import Store

ROOT = Path(__file__).parents[1]


def write_run(store: Store, run_id: str, **said: Any) -> None:
    """Write what a night leaves of itself; keys given win."""
    summary: dict[str, Any] = {
        "format": 1,
        "run_id": run_id,
        "command": "nightly",
        "status": "done",
        "attempts": {"nightly": 1},
        "began": "2026-11-01T00:00:00+00:00",
        "attempt_began": f"{run_id[:10]}T01:30:00+00:00",
        "seconds": 465.0,
        "stages": {
            "prepare": {"status": "done", "seconds": 8.5, "total_seconds": 8.5},
            "score": {"status": "done", "seconds": 17.3, "total_seconds": 1_234.5},
        },
        "rows": {"in": 74_985, "out": 12_000, "rejected_share": 0.0123},
        "metrics": {"ndcg@10": 0.22664, "best_baseline_ndcg@10": 0.18031},
        "bytes": 4_197_241,
    }
    store.write_json(f"runs/{run_id}/summary.json", summary | said)


def write_lease(store: Store, run_id: str, seconds_ago: float, released: bool = False) -> None:
    beat = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=seconds_ago)
    says = {"token": "t", "released": released, "beat_at": beat.isoformat()}
    store.write_json(f"runs/{run_id}/lock/1.json", says)


@pytest.fixture
def nights(store: Store) -> Store:
    """Three nights, of which the last failed and the one before is current."""
    write_run(store, "2026-11-24")
    write_run(store, "2026-11-25", attempts={"nightly": 2})
    failed = {
        "prepare": {"status": "done", "total_seconds": 9.0},
        "score": {"status": "failed", "total_seconds": 3.0},
    }
    write_run(
        store,
        "2026-11-26",
        status="failed",
        failed_stage="score",
        error="OSError: no",
        stages=failed,
        rows={"in": 80_000},
        metrics={},
        bytes=None,
    )
    store.write_json("current.json", {"run_id": "2026-11-25", "manifest": "m"})
    return store


def test_table_shows_the_last_runs_newest_first(nights: Store) -> None:
    lines = [line.split() for line in to_table(last_runs(nights, 2)).splitlines()]
    heads = "run status began prepare score rows rejected lists ndcg@10 baseline size"
    assert lines[0] == heads.split()
    date, clock = "2026-11-26", "01:30"
    unknown = ["-", "-", "-", "-", "-"]
    assert lines[1] == [
        date,
        "failed",
        "in",
        "score",
        date,
        clock,
        "9.0",
        "3.0",
        "80,000",
        *unknown,
    ]
    date = "2026-11-25"
    figures = ["74,985", "1.23%", "12,000", "0.2266", "0.1803", "4.2", "MB"]
    begun = [date, "*", "done", "(2", "times)", date, clock]
    assert lines[2] == [*begun, "8.5", "1,234.5", *figures]
    assert len(lines) == 3


def test_columns_line_up(nights: Store) -> None:
    lines = to_table(last_runs(nights, 3)).splitlines()
    assert len({line.index(" 01:30") for line in lines[1:]}) == 1
    assert lines[0].index("status") == lines[1].index("failed") == lines[2].index("done")
    assert len({len(line) for line in lines[2:]} | {len(lines[0])}) == 1


@pytest.mark.parametrize(
    ("seconds_ago", "released", "status"),
    [(1, False, "running"), (3_600, False, "died"), (1, True, "died")],
)
def test_run_at_work_is_told_from_one_that_died(
    store: Store, seconds_ago: float, released: bool, status: str
) -> None:
    stages = {"score": {"status": "running"}}
    write_run(store, "2026-11-26", status="running", stages=stages)
    write_lease(store, "2026-11-26", seconds_ago, released)
    (row,) = last_runs(store, 1)
    assert (row["status"], row["stage"]) == (status, "score")


def test_stage_run_alone_is_named(store: Store) -> None:
    write_run(store, "2026-11-26", command="score", attempts={"nightly": 3, "score": 1})
    assert "score done  " in to_table(last_runs(store, 1))


def test_run_that_somebody_should_look_at_says_so(store: Store) -> None:
    write_run(store, "2026-11-26", alert=["the number of days without events is 2"])
    write_run(store, "2026-11-25", alert=[])
    rows = last_runs(store, 2)
    assert [bool(row["alert"]) for row in rows] == [True, False]
    lines = to_table(rows).splitlines()
    assert "done, look" in lines[1]
    assert "look" not in lines[2]


def test_run_without_a_summary_is_there_too(store: Store) -> None:
    store.write_json("runs/2026-11-23/plan.json", {})
    store.write_bytes("runs/2026-11-22/summary.json", b"{")
    assert [row["status"] for row in last_runs(store, 5)] == ["unknown", "unknown"]
    assert to_table(last_runs(store, 5)).splitlines()[1].split()[:3] == [
        "2026-11-23",
        "unknown",
        "-",
    ]


def test_runs_named_without_a_date_come_in_by_when_they_began(nights: Store) -> None:
    write_run(nights, "zero", attempt_began="2026-11-25T12:00:00+00:00")
    write_run(nights, "old", attempt_began="2025-01-01T12:00:00+00:00")
    names = [row["run_id"] for row in last_runs(nights, 3)]
    assert names == ["2026-11-26", "zero", "2026-11-25"]


def test_of_many_runs_only_the_last_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path))
    first = dt.date(2024, 1, 1)
    names = [str(first + dt.timedelta(days=day)) for day in range(400)]
    for name in names:
        write_run(store, name)
    opened = []
    read = Store.read_bytes

    def count(self: Store, path: str) -> bytes:
        opened.append(path)
        return read(self, path)

    monkeypatch.setattr(Store, "read_bytes", count)
    assert [row["run_id"] for row in last_runs(store, 3)] == names[:-4:-1]
    assert len(opened) == 1 + 3  # current.json, and a summary each


def run_status(store: Store, *arguments: str) -> subprocess.CompletedProcess[str]:
    given = [f"storage.root={store.root}", *arguments]
    return subprocess.run(
        [sys.executable, "jobs/status.py", "jobs/configs/demo.yaml", *given],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_command_ends_with_a_line_of_json(nights: Store) -> None:
    ended = run_status(nights, "runs=2")
    assert ended.returncode == 0, ended.stderr
    *table, last = ended.stdout.splitlines()
    said = json.loads(last)
    assert [row["run_id"] for row in said["runs"]] == ["2026-11-26", "2026-11-25"]
    assert said["runs"][0]["error"] == "OSError: no"
    assert said["runs"][1]["is_current"]
    assert "\n".join(table) == to_table(said["runs"])


def test_command_tells_a_store_without_runs(tmp_path: Path) -> None:
    ended = run_status(Store(str(tmp_path / "none")))
    assert ended.returncode == 0
    assert ended.stdout.splitlines()[0] == f"no runs under {tmp_path}/none"
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("given", ["runs=0", "runs=all"])
def test_command_tells_a_number_that_is_none(tmp_path: Path, given: str) -> None:
    ended = run_status(Store(str(tmp_path)), given)
    assert ended.returncode == 2
    assert "runs: expected a number from 1 to 1000" in ended.stderr.splitlines()[-1]


def test_status_needs_neither_ray_nor_torch() -> None:
    script = "import sys; sys.argv = ['x']; import jobs.status; print(*sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(ended.stdout.split())
    assert "crossrec.status" in loaded
    assert not {"ray", "torch", "transformers"} & loaded
