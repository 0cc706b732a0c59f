"""What `run_job` does around a stage, in this process and without a Ray: `tests/test_jobs.py` has
the commands themselves."""

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crossrec import job
from crossrec import notify as hook
from crossrec.config import Config
from crossrec.errors import ConfigError, CrossrecError
from crossrec.lease import hold
from crossrec.runlog import log, stage
from crossrec.storage import Store
from tests.webhook import Webhook, webhook

SECRET = "/services/T0/hunter2hunter2"


class RunMetrics:
    """Those of a Ray that does not run."""

    def __init__(self, published_at: str | None) -> None:
        pass

    def on_stage(self, event: object) -> None:
        pass

    def on_end(self, said: dict[str, Any]) -> None:
        pass


@pytest.fixture(autouse=True)
def _without_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("CROSSREC_WEBHOOK", raising=False)
    monkeypatch.setattr(job, "_ray", contextlib.nullcontext)
    monkeypatch.setattr("crossrec.runmetrics.RunMetrics", RunMetrics)
    monkeypatch.setattr(hook, "PAUSES_S", (0.05, 0.1))
    before = (log.handlers[:], log.level, log.propagate, signal.getsignal(signal.SIGTERM))
    yield
    log.handlers[:], log.level, log.propagate = before[:3]
    signal.signal(signal.SIGTERM, before[3])


@pytest.fixture
def server() -> Iterator[Webhook]:
    with webhook() as running:
        yield running


def night_that_works(config: Config, store: Store) -> dict[str, Any]:
    with stage("prepare") as facts:
        facts["rows"] = 3
    return {"users": 1}


def night_that_fails(config: Config, store: Store) -> dict[str, Any]:
    night_that_works(config, store)
    with stage("score"):
        raise CrossrecError("runs/x/done: expected all buckets, found 3 that failed; rerun")


def night_that_is_wrong(config: Config, store: Store) -> dict[str, Any]:
    with stage("prepare"):
        raise ConfigError("data.events: expected Parquet, found none; give data.events=...")


def night_that_is_stopped(config: Config, store: Store) -> dict[str, Any]:
    with stage("finetune"):
        signal.raise_signal(signal.SIGTERM)
    raise AssertionError("it went on")


def run(root: Path | str, night: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run a night as jobs/nightly.py runs its own; return the exit status."""
    given = [f"storage.root={root}", "run_id=r", "data.events=/e", "data.items=/i", *arguments]
    config = "jobs/configs/nightly.yaml"
    monkeypatch.setattr("sys.argv", ["jobs/nightly.py", config, *given])
    with pytest.raises(SystemExit) as ended:
        job.run_job("A night.", f"{__name__}:{night}")
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    ("night", "ending"),
    [
        ("night_that_works", ("done", 0, None)),
        ("night_that_fails", ("failed", 1, "score")),
        ("night_that_is_wrong", ("failed", 2, "prepare")),
        ("night_that_is_stopped", ("interrupted", 1, "finetune")),
    ],
)
def test_webhook_gets_what_the_summary_says(
    tmp_path: Path,
    server: Webhook,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    night: str,
    ending: tuple[str, int, str | None],
) -> None:
    monkeypatch.setenv("CROSSREC_WEBHOOK", server.url + SECRET)
    assert run(tmp_path, night, monkeypatch) == ending[1]
    (request,) = server.requests
    said = json.loads(request.body)
    assert said == json.loads((tmp_path / "runs/r/summary.json").read_text())
    assert (said["status"], said["exit_code"], said.get("failed_stage")) == ending
    assert said["command"] == "nightly"
    out, err = capsys.readouterr()
    assert bool(out) == (ending[0] == "done")
    assert ("Traceback" in err) == (night == "night_that_fails")
    # The last line says what went wrong, and with it how to mend it.
    assert said["error"] is None or said["error"] in err.splitlines()[-1]
    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert not [text for text in (out, err, request.body.decode(), *written) if "hunter2" in text]


def test_webhook_that_fails_does_not_fail_the_night(
    tmp_path: Path,
    server: Webhook,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.answers[:] = [500] * 9
    notified = f"notify.webhook={server.url}{SECRET}"
    assert run(tmp_path, "night_that_works", monkeypatch, notified) == 0
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1])["users"] == 1
    assert err.splitlines()[-1].endswith(f"{server.url} did not take the summary: HTTP 500")
    assert "hunter2" not in err


def test_job_that_finds_another_at_work_leaves_its_summary(
    tmp_path: Path, server: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CROSSREC_WEBHOOK", server.url)
    store = Store(str(tmp_path))
    with hold(store, "r", lambda: None):
        assert run(tmp_path, "night_that_works", monkeypatch) == 2
    assert not store.exists("runs/r/summary.json")
    said = json.loads(server.requests[0].body)
    assert "held by process" in said["error"]
    assert (said["status"], said["exit_code"], said["stages"]) == ("failed", 2, {})


def test_store_that_cannot_be_used_is_told_by_the_webhook(
    tmp_path: Path, server: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CROSSREC_WEBHOOK", server.url)
    (tmp_path / "file").write_text("in the way")
    assert run(tmp_path / "file" / "store", "night_that_works", monkeypatch) == 2
    assert json.loads(server.requests[0].body)["exit_code"] == 2


def test_logs_for_a_collector_are_json_to_the_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CROSSREC_LOG", "json")
    assert run(tmp_path, "night_that_fails", monkeypatch) == 1
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["stage"] for line in lines] == ["prepare"] * 2 + ["score"] * 2
    assert {line["run_id"] for line in lines} == {"r"}
    assert lines[-1]["level"] == "error"
    assert lines[-1]["message"].endswith("; the same command continues")
    assert "CrossrecError" in lines[-1]["traceback"]


def test_config_that_is_wrong_is_one_json_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CROSSREC_LOG", "json")
    assert run(tmp_path, "night_that_works", monkeypatch, "score.topk=5") == 2
    (line,) = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert "did you mean top_k?" in line["message"]
    assert "traceback" not in line


def test_what_is_not_of_a_run_leaves_its_summary_alone(
    tmp_path: Path, server: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CROSSREC_WEBHOOK", server.url)
    given = [f"storage.root={tmp_path}", "run_id=r", "data.events=/e", "data.items=/i"]
    monkeypatch.setattr("sys.argv", ["publish.py", "jobs/configs/nightly.yaml", *given])
    with pytest.raises(SystemExit):
        job.run_job("Back.", f"{__name__}:night_that_works", is_of_run=False)
    assert not (tmp_path / "runs/r/summary.json").exists()
    assert server.requests == []
