import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cluster.kuberay import start_night
from cluster.kuberay.start_night import RayJobs, start
from tests.cluster.files import CLUSTER, DATE

MANIFEST = CLUSTER / "kuberay/rayjob.yaml"
NAME = f"crossrec-{DATE}"


class Api(ThreadingHTTPServer):
    """Answers for rayjobs as Kubernetes does; a RayJob's status is the next of `says`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.jobs: dict[str, dict[str, Any]] = {}
        self.says: list[dict[str, Any] | int] = []
        self.tokens: list[str] = []


class Handler(BaseHTTPRequestHandler):
    server: Api

    def do_POST(self) -> None:
        job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = job["metadata"]["name"]
        known = name in self.server.jobs
        self.server.jobs.setdefault(name, job)
        self.answer(409 if known else 201, job)

    def do_GET(self) -> None:
        name = self.path.rsplit("/", 1)[1]
        says = self.server.says
        now = says.pop(0) if len(says) > 1 else says[0]
        if isinstance(now, int):
            self.answer(now, {})
        else:
            self.answer(200, {**self.server.jobs[name], "status": now})

    def answer(self, code: int, value: dict[str, Any]) -> None:
        assert self.path.startswith("/apis/ray.io/v1/namespaces/crossrec/rayjobs")
        self.server.tokens.append(self.headers["Authorization"])
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def api() -> Iterator[Api]:
    server = Api()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def jobs(api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RayJobs:
    monkeypatch.setattr(start_night, "PAUSE_S", 0.01)
    (tmp_path / "namespace").write_text("crossrec")
    (tmp_path / "token").write_text("a-token\n")
    return RayJobs(f"http://127.0.0.1:{api.server_port}", tmp_path)


def test_night_is_created_under_its_date_and_followed_to_its_end(
    api: Api, jobs: RayJobs, capsys: pytest.CaptureFixture[str]
) -> None:
    api.says = [
        {},
        {"jobDeploymentStatus": "Initializing"},
        {"jobDeploymentStatus": "Running"},
        {"jobDeploymentStatus": "Retrying"},
        {"jobDeploymentStatus": "Running"},
        {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"},
    ]
    assert start(jobs, MANIFEST, DATE) == 0
    assert list(api.jobs) == [NAME]
    assert f"run_id={DATE} " in api.jobs[NAME]["spec"]["entrypoint"]
    assert "RUN_ID" not in json.dumps(api.jobs[NAME])
    stages = [line.rsplit(" ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert stages == ["created", "New", "Initializing", "Running", "Retrying", "Running",
                      "Complete"]  # fmt: skip
    assert set(api.tokens) == {"Bearer a-token"}


def test_night_that_is_there_already_is_followed_and_not_doubled(
    api: Api, jobs: RayJobs, capsys: pytest.CaptureFixture[str]
) -> None:
    api.says = [{"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}]
    assert start(jobs, MANIFEST, DATE) == 0
    assert start(jobs, MANIFEST, DATE) == 0
    assert len(api.jobs) == 1
    assert "is there already" in capsys.readouterr().out


@pytest.mark.parametrize(
    "status",
    [
        {"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded", "message": "too long"},
        {"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"},
        {"jobDeploymentStatus": "ValidationFailed", "reason": "ValidationFailed"},
    ],
)
def test_night_that_failed_fails_the_cronjob_s_job(
    api: Api, jobs: RayJobs, status: dict[str, Any]
) -> None:
    api.says = [{"jobDeploymentStatus": "Running"}, status]
    assert start(jobs, MANIFEST, DATE) == 1


def test_api_server_may_be_away_for_a_while_but_not_for_ever(
    api: Api, jobs: RayJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.says = [503, 503, {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}]
    assert start(jobs, MANIFEST, DATE) == 0
    monkeypatch.setattr(start_night, "LOST_S", 0.05)
    api.says = [503]
    assert start(jobs, MANIFEST, DATE) == 1


@pytest.mark.parametrize("code", [403, 404])
def test_rayjob_that_may_not_be_read_or_was_deleted_ends_it(
    api: Api, jobs: RayJobs, code: int
) -> None:
    api.says = [code]
    assert start(jobs, MANIFEST, DATE) == 1


@pytest.mark.parametrize("text", ["kind: ConfigMap", "- a list", "kind: RayJob", ": no {yaml"])
def test_manifest_that_is_no_night_is_the_user_s_mistake(
    api: Api, jobs: RayJobs, tmp_path: Path, text: str
) -> None:
    path = tmp_path / "other.yaml"
    path.write_text(text)
    assert start(jobs, path, DATE) == 2
    assert not api.jobs


def test_manifest_without_the_date_in_its_entrypoint_is_refused(
    api: Api, jobs: RayJobs, tmp_path: Path
) -> None:
    path = tmp_path / "rayjob.yaml"
    path.write_text(MANIFEST.read_text().replace("run_id=RUN_ID", "run_id=always"))
    assert start(jobs, path, DATE) == 2
    assert not api.jobs


def test_script_needs_nothing_but_yaml(tmp_path: Path) -> None:
    """It starts in the pod's 64 MiB: neither Ray nor crossrec is imported."""
    found = subprocess.run(
        [sys.executable, "-X", "importtime", CLUSTER / "kuberay/start_night.py"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert found.returncode == 2
    assert "expected MANIFEST" in found.stderr
    loaded = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in found.stderr.splitlines()
              if line.startswith("import time:")}  # fmt: skip
    assert "yaml" in loaded
    assert not loaded & {"ray", "crossrec", "torch", "kubernetes"}
