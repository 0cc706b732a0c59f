import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.nights import DOMAINS, Night, change
from tests.webhook import Webhook, webhook

ROOT = Path(__file__).parents[1]
JOBS = (
    "prepare",
    "finetune",
    "evaluate",
    "gate",
    "score",
    "publish",
    "nightly",
    "tune",
    "status",
)


def run_job(
    *arguments: str, job: str = "nightly", variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, f"jobs/{job}.py", *arguments],
        cwd=ROOT,
        env={**os.environ, **(variables or {})},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def said_of_mistake(ended: subprocess.CompletedProcess[str]) -> str:
    """Return the last line of stderr of a job that a user's mistake ended."""
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    return ended.stderr.splitlines()[-1]


@pytest.mark.parametrize("job", JOBS)
def test_help_says_how_to_call_the_job(job: str) -> None:
    ended = run_job("--help", job=job)
    assert ended.returncode == 0
    assert f"jobs/{job}.py" in ended.stdout
    assert "section.key=value" in ended.stdout


def test_help_is_quick() -> None:
    """In CPU time, since the machine may be busy."""
    before = os.times()
    run_job("--help")
    after = os.times()
    cpu_s = after.children_user + after.children_system
    assert cpu_s - before.children_user - before.children_system < 3


def test_misspelt_key_is_named(tmp_path: Path) -> None:
    ended = run_job("jobs/configs/demo.yaml", f"storage.root={tmp_path}", "score.topk=5")
    assert "score.topk: expected a known key" in said_of_mistake(ended)
    assert "did you mean top_k?" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ("{train.learning_rat: [1e-3, 3e-3]}", "did you mean learning_rate?"),
        ("{model.heads: [3, 5]}", "width must be a multiple of heads"),
    ],
)
def test_search_space_that_cannot_be_is_told_before_any_work(
    tmp_path: Path, space: str, said: str
) -> None:
    arguments = (f"storage.root={tmp_path}/store", f"tune.space={space}", "tune.trials=2")
    ended = run_job("jobs/configs/tune.yaml", *arguments, job="tune")
    line = said_of_mistake(ended)
    assert "tune.space: expected" in line
    assert said in line
    assert len(ended.stderr.splitlines()) == 1
    assert not (tmp_path / "store").exists()


def test_missing_config_file_is_named(tmp_path: Path) -> None:
    ended = run_job(str(tmp_path / "none.yaml"))
    expected = f"{tmp_path}/none.yaml: expected a YAML config file, found No such file"
    assert expected in said_of_mistake(ended)


def test_storage_root_below_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    ended = run_job("jobs/configs/demo.yaml", f"storage.root={tmp_path}/file/store")
    assert f"{tmp_path}/file/store: expected" in said_of_mistake(ended)
    assert (tmp_path / "file").read_text() == "in the way"


def test_bucket_that_does_not_exist_is_told(s3_bucket: str) -> None:
    ended = run_job("jobs/configs/demo.yaml", f"storage.root={s3_bucket}-none/store")
    assert f"{s3_bucket}-none" in said_of_mistake(ended)
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in ended.stderr


def test_wrong_credentials_are_told_and_kept_secret(
    s3_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not os.environ.get("CROSSREC_TEST_S3_ENDPOINT"):
        from moto import settings

        monkeypatch.setattr(settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)
    wrong = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "hunter2hunter2"}
    ended = run_job("jobs/configs/demo.yaml", f"storage.root={s3_root}", variables=wrong)
    assert "expected credentials that the store accepts" in said_of_mistake(ended)
    assert "hunter2" not in ended.stderr


def test_corrupt_input_is_named(night: Night, joined: dict[str, str], tmp_path: Path) -> None:
    bad = tmp_path / "events.parquet"
    bad.write_bytes(b"PAR1 and no more")
    path = tmp_path / "config.yaml"
    config = change(night.config, data={"events": str(bad)}, storage={"root": str(tmp_path / "s")})
    path.write_text(yaml.safe_dump(config.public()))
    ended = run_job(str(path), variables=joined)
    assert f"{bad}: expected" in said_of_mistake(ended)


def test_nightly_ends_with_a_line_of_json(
    night: Night, joined: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(night.config.public()))
    with webhook() as server:
        told = {"CROSSREC_WEBHOOK": f"{server.url}/hunter2"}
        ended = run_job(str(path), variables={**joined, **told})
    assert ended.returncode == 0, ended.stderr
    summary = json.loads(ended.stdout.splitlines()[-1])
    check_record(night, server, summary)
    assert "hunter2" not in ended.stdout + ended.stderr
    assert summary["run_id"] == "night"
    assert summary["scores"] == night.store.uri("runs/night/scores")
    assert summary["pairs"] == summary["users"] * len(DOMAINS)
    assert summary["ndcg@10"] == night.summary["ndcg@10"]


def check_record(night: Night, server: Webhook, summary: dict[str, Any]) -> None:
    """Hold what the night leaves for operators against what it printed."""
    said = night.read_json("summary.json")
    (request,) = server.requests
    assert json.loads(request.body) == said
    assert (said["status"], said["exit_code"], said["command"]) == ("done", 0, "nightly")
    # What is fine-tuned already is no stage of the rerun.
    stages = {name: entry["seconds"] for name, entry in said["stages"].items()}
    assert stages == {
        name: summary["seconds"][name]
        for name in ("prepare", "evaluate", "gate", "score", "publish")
    }
    assert said["rows"]["in"] == night.events.num_rows + night.items.num_rows
    assert said["rows"]["out"] == said["publication"]["pairs"] == summary["pairs"]
    ndcg = summary["ndcg@10"]
    own = {"model", "without_sequence", "step0"}
    best = max((name for name in ndcg if name not in own), key=lambda name: ndcg[name])
    assert said["metrics"] == {
        "ndcg@10": ndcg["model"],
        "best_baseline": best,
        "best_baseline_ndcg@10": ndcg[best],
    }
    folder = Path(night.store.full_path("runs/night"))
    files = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    # Its own last writing came after it looked.
    assert said["bytes"] == pytest.approx(files, abs=10_000)


@pytest.mark.slow
def test_job_starts_a_ray_of_its_own(tmp_path: Path) -> None:
    """Without RAY_ADDRESS; the one test that pays for a start."""
    began = time.time()
    ended = run_job(
        "jobs/configs/demo.yaml", f"storage.root={tmp_path}", "data.demo_users=50", job="prepare"
    )
    assert ended.returncode == 0, ended.stderr
    summary = json.loads(ended.stdout.splitlines()[-1])
    assert summary["storage_root"] == str(tmp_path)
    assert (tmp_path / summary["prepared"] / "summary.json").stat().st_mtime >= began
