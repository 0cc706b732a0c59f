"""What cluster/local.sh makes of its keys and of how the job ended; no Ray is started."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

RAY = """
import enum
import types

JobStatus = enum.Enum("JobStatus", "SUCCEEDED FAILED")
JobStatus.is_terminal = lambda self: True


class JobSubmissionClient:
    def __init__(self, address):
        pass

    def get_job_info(self, name):
        return types.SimpleNamespace(status=JobStatus.FAILED, driver_exit_code=CODE)

    def get_job_logs(self, name):
        return SAID
"""
"""Of `ray.job_submission`, what the script asks for."""

SAID = json.dumps({"scores": "/s/runs/n/scores", "report": "/s/runs/n/report.html"})

STUBS = """
install() { :; }
isolate() { temp=$PWD; }
start_ray() { head=$$; }
submit_job() {
    printf '%s\\n' "$@" >arguments
    : >job.log
    [ "$CODE" = 0 ] || return 1 # as `ray job submit` says of every failure
    echo "$SAID" >job.log
}
nightly "$@"
"""
"""In place of what the script does with Ray."""


def nightly(folder: Path, code: int, *keys: str) -> tuple[subprocess.CompletedProcess[str], str]:
    """Run the command with a job that ends so; return how it ended, and what was submitted."""
    script = (ROOT / "cluster/local.sh").read_text(encoding="utf-8")
    functions, found, _ = script.partition("\ncase ${1:-} in\n")
    assert found
    (folder / "cluster").mkdir()
    (folder / "cluster/local.sh").write_text(functions + STUBS, encoding="utf-8")
    (folder / "ray").mkdir()
    (folder / "ray/__init__.py").touch()
    answers = f"CODE, SAID = {code}, {SAID!r}\n"
    (folder / "ray/job_submission.py").write_text(answers + RAY, encoding="utf-8")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    variables = {**os.environ, "PATH": path, "PYTHONPATH": str(folder)}
    ended = subprocess.run(
        ["bash", "cluster/local.sh", *keys],
        cwd=folder,
        env=variables | {"CODE": str(code), "SAID": SAID},
        capture_output=True,
        text=True,
        check=False,
    )
    return ended, (folder / "arguments").read_text(encoding="utf-8")


@pytest.mark.parametrize("code", [0, 1, 2, 3])
def test_nightly_ends_as_its_job_and_says_where_what_was_published_lies(
    tmp_path: Path, code: int
) -> None:
    ended, _ = nightly(tmp_path, code)
    assert ended.returncode == code, ended.stderr
    assert ended.stdout.endswith(f"{SAID}\n") == (code in (0, 3))


def test_nightly_makes_every_path_absolute(tmp_path: Path) -> None:
    keys = [f"data.{name}" for name in ("events", "items", "users", "forget", "relations")]
    keys += ["storage.root", "score.candidates.allow", "score.candidates.deny"]
    _, submitted = nightly(tmp_path, 0, *(f"{key}=in/x" for key in keys), "score.top_k=5")
    for key in keys:
        assert f"{key}={tmp_path}/in/x\n" in submitted
    assert "score.top_k=5\n" in submitted


def test_nightly_leaves_what_is_no_relative_path(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    keys = ["data.users=null", "data.forget=s3://b/forget", "model.backbone=org/name"]
    _, submitted = nightly(tmp_path, 0, *keys, "model.image_backbone=images")
    assert all(f"{key}\n" in submitted for key in keys)
    assert f"model.image_backbone={tmp_path}/images\n" in submitted
