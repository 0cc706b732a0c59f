"""What the phases of a training read, without any Ray."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train

from crossrec.config import Config
from crossrec.data.histories import Prepared
from crossrec.storage import Store
from crossrec.train import launch, loop
from crossrec.train.export import Phase
from crossrec.train.launch import Folders, Plan, plan_training, run_phases
from crossrec.train.loop import Worker, train_loop
from crossrec.train.progress import Progress
from crossrec.train.workers import Run
from tests.train.test_task import make_job


@pytest.fixture
def phases(tmp_path: Path, tiny_backbone: str) -> list[Phase]:
    """As under leave-one-out: what is judged knows no newest event, what is published does."""
    job = make_job(tmp_path, tiny_backbone)
    select = replace(job, prepared=job.prepared.without_newest())
    return [Phase("select", select, "selected", {}), Phase("refit", job, "model", {})]


def test_each_phase_has_a_dataset_of_what_it_may_know(
    phases: list[Phase], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stream(_: Store, prepared: Prepared, workers: int) -> Prepared:
        return prepared

    asked: dict[str, Any] = {}

    def run_workers(*arguments: Any) -> Any:
        asked.update(arguments[-1])
        return SimpleNamespace(phases=[])

    monkeypatch.setattr(launch, "stream_histories", stream)
    monkeypatch.setattr(launch, "run_workers", run_workers)
    run = Run(phases[0].job.store, "runs", "digest", workers=1)
    run_phases(Plan(phases, {}, None, []), run)
    assert [asked[phase.histories] for phase in phases] == [phase.job.prepared for phase in phases]
    assert len(asked) == 2
    asked.clear()
    run_phases(Plan([phases[1], replace(phases[1], name="again")], {}, None, []), run)
    assert asked == {"histories": phases[1].job.prepared}


def test_a_worker_trains_each_phase_on_its_own_share(
    phases: list[Phase], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[str, Any]] = []

    def train(phase: Phase, _: Sequence[Progress], __: Any, worker: Worker) -> Progress:
        read.append((phase.name, worker.shard))
        return Progress(phase.name)

    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(ray.train, "get_dataset_shard", lambda name: name)
    monkeypatch.setattr(loop, "_train_phase", train)
    train_loop({"phases": phases, "folder": "checkpoints", "tracked": "runs"})
    assert read == [(phase.name, phase.histories) for phase in phases]
    assert phases[0].histories != phases[1].histories


@pytest.mark.parametrize("protocol", ["time", "leave_one_out"])
def test_what_is_judged_is_not_learned_from(
    phases: list[Phase], monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    """Under leave-one-out epochs are judged by the newest event but the one that is held out."""
    whole, store = phases[1].job.prepared, phases[1].job.store
    monkeypatch.setattr(launch, "encode_catalogue", lambda *_: "vectors")
    said = {"storage": {"root": store.root}, "evaluate": {"protocol": protocol}}
    config = Config.model_validate(said | {"train": {"valid_days": 7}})
    plan = plan_training(config, store, whole, Folders("train", "selected", "model"))
    select, refit = (phase.job for phase in plan.phases)
    night, holdout, valid = (plan.days[name] for name in ("night", "holdout", "valid"))
    if protocol == "time":
        assert (select.prepared, select.valid, select.known_before) == (
            whole,
            (valid, holdout),
            valid,
        )
        assert select.newest_of is None
    else:
        judged = whole.without_newest()
        assert (select.newest_of, select.valid) == (judged, None)
        assert (select.prepared, select.known_before) == (judged.without_newest(), night)
    assert (refit.prepared, refit.known_before) == (whole, night)
    assert select.is_validated
    assert not refit.is_validated
