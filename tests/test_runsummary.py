import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from crossrec.config import Config
from crossrec.errors import ALERT
from crossrec.lease import hold
from crossrec.runlog import stage, watching
from crossrec.runsummary import (
    Ending,
    RunSummary,
    digest_config,
    published_at,
    read_summary,
)
from crossrec.storage import Store
from tests.runs import config_of

RUN = "2026-11-26"


def describe(error: BaseException) -> Ending:
    return "failed", f"{type(error).__name__}: {error}", 1


def run_stages(
    config: Config, store: Store, stages: dict[str, dict[str, Any]], command: str = "nightly"
) -> RunSummary:
    """Run made-up stages as a job does: each gives its facts, or raises what it holds."""
    summary = RunSummary(config, command)
    with contextlib.suppress(OSError), hold(store, config.run_id, lambda: None):
        with summary.kept(store, describe), watching(summary.on_stage):
            for name, facts in stages.items():
                with stage(name) as said:
                    said |= {key: value for key, value in facts.items() if key != "raises"}
                    if "raises" in facts:
                        raise facts["raises"]
    return summary


PREPARED = {"rows": 1_000, "users": 40, "events": 940, "items": 50, "rejected": 10}
WHOLE: dict[str, dict[str, Any]] = {
    "prepare": PREPARED | {"rejected_share": 0.01, "reasons": {"null id": 10}},
    "finetune": {"epochs": 3, "loss": float("nan")},
    "evaluate": {
        "ndcg@10": 0.25,
        "baseline": {"best_baseline": "als", "best_baseline_ndcg@10": 0.2},
    },
    "score": {"users": 40, "pairs": 80},
    "publish": {"created": "2026-11-26T02:00:00+00:00", "files": 4, "rows": 80, "bytes": 9_000},
}


def test_summary_of_a_night_says_what_an_operator_asks(store: Store) -> None:
    store.write_bytes(f"runs/{RUN}/scores/a.parquet", b"x" * 5_000)
    store.write_bytes("runs/another/scores/a.parquet", b"x" * 50_000)
    run_stages(config_of(store, RUN), store, WHOLE)
    said = store.read_json(f"runs/{RUN}/summary.json")
    assert (said["status"], said["exit_code"], said["error"]) == ("done", 0, None)
    assert (said["run_id"], said["command"], said["attempts"]) == (RUN, "nightly", {"nightly": 1})
    assert list(said["stages"]) == sorted(WHOLE)
    for entry in said["stages"].values():
        assert (entry["status"], entry["attempts"]) == ("done", 1)
        assert entry["total_seconds"] == entry["seconds"] >= 0
    assert said["stages"]["prepare"]["facts"]["reasons"] == {"null id": 10}
    assert said["stages"]["finetune"]["facts"]["loss"] is None
    assert said["rows"] == {
        "in": 1_000,
        "out": 80,
        "rejected": 10,
        "rejected_share": 0.01,
        "users": 40,
        "events": 940,
        "items": 50,
    }
    assert said["metrics"] == {
        "ndcg@10": 0.25,
        "best_baseline": "als",
        "best_baseline_ndcg@10": 0.2,
    }
    assert said["publication"]["created"] == "2026-11-26T02:00:00+00:00"
    assert said["publication"]["files"] == 4
    # The lease and the summary itself are a few kB.
    assert 5_000 < said["bytes"] < 5_000 + 10_000
    assert {"python", "crossrec", "ray", "torch"} <= set(said["versions"])
    assert "80 lists, NDCG@10 0.2500 (als 0.2000)" in said["text"]


def test_summary_of_a_failure_names_stage_error_and_exit_code(store: Store) -> None:
    stages = WHOLE | {"score": {"raises": OSError("no\nroom left")}}
    run_stages(config_of(store, RUN), store, stages)
    said = store.read_json(f"runs/{RUN}/summary.json")
    assert (said["status"], said["failed_stage"], said["exit_code"]) == ("failed", "score", 1)
    assert said["error"] == "OSError: no room left"
    assert said["stages"]["score"]["status"] == "failed"
    assert said["stages"]["evaluate"]["status"] == "done"
    assert "publish" not in said["stages"]
    assert said["rows"]["in"] == 1_000
    assert "publication" not in said
    assert said["text"].endswith(", exit 1: OSError: no room left")
    assert "nightly failed in score" in said["text"]


def test_summary_of_a_night_that_the_gate_stopped_says_why(store: Store) -> None:
    gate = {"decision": "keep", "reasons": ["the share of rejected events is 0.2"]}
    stages = {**WHOLE, "gate": gate}
    said = run_stages(config_of(store, RUN), store, stages).said
    assert (said["status"], said["exit_code"]) == ("done", ALERT)
    assert said["alert"] == gate["reasons"]
    assert said["text"].endswith("; to look at: the share of rejected events is 0.2")
    # Another job on the run is judged by itself.
    said = run_stages(config_of(store, RUN), store, {"score": WHOLE["score"]}, "score").said
    assert (said["exit_code"], "alert" in said) == (0, False)


def test_rerun_continues_the_summary(store: Store) -> None:
    config = config_of(store, RUN)
    run_stages(config, store, WHOLE | {"score": {"raises": OSError("no")}})
    first = store.read_json(f"runs/{RUN}/summary.json")
    # finetune was done: it is no stage of the rerun.
    rest = {name: facts for name, facts in WHOLE.items() if name != "finetune"}
    run_stages(config, store, rest)
    said = store.read_json(f"runs/{RUN}/summary.json")
    assert (said["status"], said["attempts"]) == ("done", {"nightly": 2})
    assert said["error"] is None
    assert "failed_stage" not in said
    assert said["began"] == first["began"]
    assert said["stages"]["finetune"] == first["stages"]["finetune"]
    again = said["stages"]["score"]
    assert (again["attempts"], again["status"]) == (2, "done")
    spent = first["stages"]["score"]["seconds"] + again["seconds"]
    assert again["total_seconds"] == pytest.approx(spent)


def test_stage_that_is_run_alone_adds_to_the_summary(store: Store) -> None:
    config = config_of(store, RUN)
    run_stages(config, store, {"prepare": WHOLE["prepare"]}, command="prepare")
    run_stages(config, store, {"score": WHOLE["score"]}, command="score")
    said = store.read_json(f"runs/{RUN}/summary.json")
    assert (said["command"], said["attempts"]) == ("score", {"prepare": 1, "score": 1})
    assert said["rows"]["in"] == 1_000
    assert said["stages"]["score"]["facts"]["pairs"] == 80
    assert said["stages"]["prepare"]["status"] == "done"


def test_job_that_is_killed_leaves_what_it_had_done(store: Store) -> None:
    """All that a kill leaves is what was written before it."""
    config = config_of(store, RUN)
    killed = RunSummary(config, "nightly")
    with watching(killed.on_stage):
        killed._begin(store)
        with stage("prepare") as facts:
            facts |= PREPARED
        kept = contextlib.ExitStack()
        kept.enter_context(stage("score"))
        left = store.read_json(f"runs/{RUN}/summary.json")
        kept.close()
    assert left["status"] == "running"
    assert left["stages"]["prepare"]["status"] == "done"
    assert left["stages"]["score"]["status"] == "running"
    store.write_json(f"runs/{RUN}/summary.json", left)
    run_stages(config, store, {"prepare": PREPARED})
    said = store.read_json(f"runs/{RUN}/summary.json")
    assert said["stages"]["score"]["status"] == "interrupted"
    assert said["attempts"] == {"nightly": 2}


def test_job_that_lost_the_run_leaves_the_summary_to_the_other(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    config = config_of(store, RUN)
    summary = RunSummary(config, "nightly")

    def lose() -> None:
        with hold(store, RUN, lambda: None), summary.kept(store, describe):
            taken = store.read_json(f"runs/{RUN}/lock/1.json")
            store.write_json(f"runs/{RUN}/lock/2.json", {**taken, "token": "another"})
            store.write_json(f"runs/{RUN}/summary.json", {"of": "another"})
            raise KeyboardInterrupt

    with pytest.raises(Exception, match="no other job is at work on"):
        lose()
    assert store.read_json(f"runs/{RUN}/summary.json") == {"of": "another"}


def test_damaged_summary_is_begun_anew(store: Store) -> None:
    store.write_bytes(f"runs/{RUN}/summary.json", b"{")
    assert read_summary(store, RUN) is None
    run_stages(config_of(store, RUN), store, WHOLE)
    assert store.read_json(f"runs/{RUN}/summary.json")["attempts"] == {"nightly": 1}


def test_summary_that_cannot_be_written_ends_no_job(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    (tmp_path / f"runs/{RUN}/summary.json").mkdir(parents=True)
    summary = run_stages(config_of(store, RUN), store, WHOLE)
    assert summary.said["status"] == "done"


def test_summary_holds_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = ["hunter2option", "hunter2hook", "hunter2aws", "hunter2token", "hunter2password"]
    option, hook, aws, token, password = secrets
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", aws)
    monkeypatch.setenv("WANDB_API_KEY", token)
    url = f"https://hooks.example.org/T0/{hook}"
    settings = {
        "run_id": RUN,
        "storage": {"root": str(tmp_path), "options": {"secret": option}},
        "notify": {"webhook": url},
    }
    config = Config.model_validate(settings)
    store = Store(config.storage.root, config.storage.options)
    said = f"cannot reach {url} with {option} {aws} {token} at s3://me:{password}@host/x"
    summary = run_stages(config, store, {"prepare": {"raises": OSError(said)}})
    expected = "OSError: cannot reach *** with *** *** *** at s3://***@host/x"
    assert summary.said["error"] == expected
    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) == 2  # the summary and the lease
    for text in (*written, json.dumps(summary.said), repr(config), json.dumps(config.public())):
        assert "hunter2" not in text


def test_digest_of_the_config_changes_with_settings_alone(tmp_path: Path) -> None:
    def digest(**settings: Any) -> str:
        whole = {"storage": {"root": str(tmp_path)}, "run_id": "a", **settings}
        return digest_config(Config.model_validate(whole))

    assert digest() == digest(run_id="b") == digest(notify={"webhook": "https://h.example.org/x"})
    assert digest() != digest(score={"top_k": 49})


def test_publication_is_as_old_as_the_run_that_readers_follow(store: Store) -> None:
    assert published_at(store) is None
    run_stages(config_of(store, RUN), store, WHOLE)
    assert published_at(store) is None
    manifest = {"run_id": RUN, "manifest": f"runs/{RUN}/manifest.json"}
    store.write_json("current.json", manifest)
    assert published_at(store) == "2026-11-26T02:00:00+00:00"
    store.write_json("current.json", manifest | {"run_id": "older"})
    assert published_at(store) is None
