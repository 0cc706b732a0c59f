"""Judged lists of a run that goes on with other settings; without Ray, and without scoring."""

from pathlib import Path
from typing import Any

import pytest

from crossrec.config import Config
from crossrec.evaluate import holdout as holdout_module
from crossrec.evaluate.holdout import Holdout, Lists, score_holdout
from crossrec.evaluate.lists import files_of
from crossrec.score.bucket import ScoreJob
from crossrec.score.catalogue import FORMAT
from crossrec.storage import Store
from tests.evaluate.holdout import write_prepared

BUCKETS = 2


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The buckets that were scored, in place of scoring them."""
    found: list[int] = []

    def score(job: ScoreJob, buckets: range, num_actors: int | None) -> None:
        for bucket in buckets:
            if not job.store.exists(job.record_path(bucket)):
                paths = [
                    f"{folder}/domain=film/bucket-{bucket}.{job.precision}-{job.new_places}.parquet"
                    for folder in job.outputs.values()
                ]
                for path in paths:
                    job.store.write_bytes(path, b"lists")
                files = [{"path": path} for path in paths]
                job.store.write_json(job.record_path(bucket), {"files": files})
                found.append(bucket)

    def build_items(store: Store, *arguments: Any) -> None:
        store.write_json(f"{arguments[-1]}/items.json", {"format": FORMAT})

    monkeypatch.setattr(holdout_module, "score_buckets", score)
    monkeypatch.setattr(holdout_module, "build_items", build_items)
    return found


def judged(store: Store, scored: list[int], **settings: Any) -> tuple[list[int], list[str]]:
    """Score the hold-out; return which buckets that took, and the model's files."""
    prepared = write_prepared(store, {"film": ["f0"]}, [{"anna": [(0, 3)]}, {"bob": [(0, 4)]}])
    config = Config.model_validate({"storage": {"root": store.root}, "score": settings})
    lists = Lists("models/m", {"model": "runs/r/holdout", "other": "runs/r/o/other"}, "runs/r/o")
    scored.clear()
    job = score_holdout(config, store, Holdout(prepared, prepared, 3, 5, range(BUCKETS)), lists)
    return list(scored), files_of(job, range(BUCKETS))["model"]


@pytest.mark.parametrize("settings", [{"precision": "int8"}, {"new_share": 0.5}], ids=str)
def test_a_rerun_with_other_settings_makes_all_judged_lists_anew(
    tmp_path: Path, scored: list[int], settings: dict[str, Any]
) -> None:
    store = Store(str(tmp_path))
    assert judged(store, scored)[0] == [0, 1]
    # As of a job that was killed.
    store.delete("runs/r/o/done/bucket-00001.json")
    again, files = judged(store, scored, **settings)
    assert again == [0, 1]
    folder = "runs/r/holdout/domain=film"
    assert [f"{folder}/{name}" for name in store.list(folder)] == files


def test_a_rerun_with_the_same_settings_does_what_is_missing(
    tmp_path: Path, scored: list[int]
) -> None:
    store = Store(str(tmp_path))
    _, files = judged(store, scored)
    assert judged(store, scored, num_actors=2) == ([], files)
    store.delete("runs/r/o/done/bucket-00001.json")
    assert judged(store, scored) == ([1], files)
