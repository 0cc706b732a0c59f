import datetime as dt
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from crossrec import runlog
from crossrec.errors import ConfigError
from crossrec.runlog import (
    StageEvent,
    log,
    name_run,
    print_summary,
    stage,
    start_logging,
    watching,
)


@pytest.fixture(autouse=True)
def logging_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("CROSSREC_LOG", raising=False)
    monkeypatch.setattr(runlog, "_now", runlog._Now())
    before = (log.handlers[:], log.level, log.propagate)
    root = logging.getLogger().handlers[:]
    yield
    log.handlers[:], log.level, log.propagate = before
    logging.getLogger().handlers[:] = root
    logging.captureWarnings(False)


def test_stage_logs_one_line_with_its_facts_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    start_logging()
    with stage("prepare") as facts:
        facts["users"] = 12_345
        facts["reasons"] = {"null id": 2}
    out, err = capsys.readouterr()
    first, last = err.splitlines()
    assert out == ""
    assert first.endswith("prepare ...")
    assert "prepare done: users 12,345, seconds 0.0" in last
    assert "null id" not in last


def test_stage_gives_seconds_and_a_rate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([100.0, 104.0])
    monkeypatch.setattr("crossrec.runlog.time.perf_counter", lambda: next(clock))
    start_logging()
    with stage("score") as facts:
        facts["rows"] = 20_000
    assert facts["seconds"] == 104.0 - 100.0
    assert f"{20_000 / 4:,.0f} rows/s" in capsys.readouterr().err


def test_stage_that_fails_is_not_logged_as_done(capsys: pytest.CaptureFixture[str]) -> None:
    start_logging()

    def fail() -> None:
        with stage("score"):
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert "done" not in capsys.readouterr().err


def test_logging_started_twice_says_things_once(capsys: pytest.CaptureFixture[str]) -> None:
    start_logging()
    start_logging()
    log.info("hello")
    logging.getLogger("another.library").info("chatter")
    assert [line.split()[-1] for line in capsys.readouterr().err.splitlines()] == ["hello"]


def test_summary_is_one_json_line_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    print_summary({"run_id": "día 🚀", "users": 3})
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    assert json.loads(out) == {"run_id": "día 🚀", "users": 3}
    assert err == ""


def json_lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_json_lines_have_run_stage_and_facts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CROSSREC_LOG", "json")
    start_logging()
    name_run("2026-11-26")
    with stage("prepare") as facts:
        log.warning("odd: %s", "día")
        facts |= {"rows": 20_000, "loss": float("nan"), "reasons": {"null id": 2}}
    log.info("after")
    began, odd, done, after = json_lines(capsys)
    keys = {"ts", "level", "run_id", "stage", "message", "facts"}
    assert all(set(line) == keys for line in (began, odd, done, after))
    assert {line["run_id"] for line in (began, odd, done, after)} == {"2026-11-26"}
    assert [line["stage"] for line in (began, odd, done)] == ["prepare"] * 3
    assert after["stage"] is None
    assert (odd["level"], odd["message"], odd["facts"]) == ("warning", "odd: día", {})
    seconds = done["facts"]["seconds"]
    assert done["facts"] == {
        "rows": 20_000,
        "loss": None,
        "reasons": {"null id": 2},
        "seconds": seconds,
    }
    assert dt.datetime.fromisoformat(done["ts"]).tzinfo == dt.UTC


def test_json_lines_keep_a_traceback_and_warnings_of_others_on_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CROSSREC_LOG", "json")
    start_logging()
    start_logging()
    logging.getLogger("another.library").info("chatter")
    logging.getLogger("another.library").warning("two\nlines")
    try:
        raise ValueError("no")
    except ValueError as error:
        log.error("failed", exc_info=error, extra={"stage": "score"})
    theirs, failed = json_lines(capsys)
    assert theirs["message"] == "two\nlines"
    assert failed["stage"] == "score"
    assert failed["traceback"].splitlines()[-1] == "ValueError: no"


def test_lines_for_people_end_with_what_was_said(capsys: pytest.CaptureFixture[str]) -> None:
    start_logging()
    log.error("failed", exc_info=ValueError("no"))
    lines = capsys.readouterr().err.splitlines()
    assert lines[-2] == "ValueError: no"
    assert lines[-1].endswith(" failed")


def test_unknown_form_of_logs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSREC_LOG", "jsno")
    with pytest.raises(ConfigError, match="CROSSREC_LOG: expected lines or json, found 'jsno'"):
        start_logging()


def test_watcher_sees_stages_begin_end_and_fail() -> None:
    seen: list[StageEvent] = []

    def fail() -> None:
        with stage("score") as facts:
            facts["users"] = 7
            raise ValueError("no")

    with watching(seen.append):
        with stage("prepare") as facts:
            facts["rows"] = 3
        with pytest.raises(ValueError, match="no"):
            fail()
    with stage("publish"):
        pass
    assert [(event.name, event.state) for event in seen] == [
        ("prepare", "began"),
        ("prepare", "done"),
        ("score", "began"),
        ("score", "failed"),
    ]
    assert seen[1].facts["rows"] == 3
    assert seen[3].facts["users"] == 7
    assert seen[3].facts["seconds"] >= 0
