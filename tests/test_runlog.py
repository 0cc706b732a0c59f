import json
import logging
from collections.abc import Iterator

import pytest

from crossrec.runlog import log, print_summary, stage, start_logging


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    before = (log.handlers[:], log.level, log.propagate)
    yield
    log.handlers[:], log.level, log.propagate = before


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
