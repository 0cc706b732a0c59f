import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from crossrec.errors import ConfigError
from crossrec.storage import Store
from crossrec.train import workers
from crossrec.train.workers import Run
from tests.train.elastic_run import EPOCHS, KILLED_AFTER, USERS

ROOT = Path(__file__).parents[2]
PATIENCE_S = 500
"""A busy machine takes long to start two nodes; a quiet one a few seconds."""


@pytest.mark.slow
def test_training_goes_on_with_the_workers_of_the_nodes_that_are_there(
    short_folder: Path, tiny_backbone: str
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    log = short_folder / "log"
    with log.open("wb") as said:
        status = subprocess.run(
            [sys.executable, "-m", "tests.train.elastic_run", str(short_folder), tiny_backbone],
            cwd=ROOT,
            env={**environment, "PYTHONPATH": str(ROOT)},
            stdout=said,
            stderr=said,
            timeout=PATIENCE_S,
        ).returncode
    assert status == 0, log.read_text()[-3000:]
    curve = json.loads((short_folder / "curve.json").read_text())
    assert [point["epoch"] for point in curve] == list(range(EPOCHS + 1))
    counts = [point["workers"] for point in curve[1:]]
    # Two, one after the kill, and two again when a node has joined.
    assert [count for count, _ in itertools.groupby(counts)] == [2, 1, 2]
    assert counts.index(1) >= KILLED_AFTER - 1
    assert {point["histories"] for point in curve[1:]} == {USERS}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, float]]:
    """What a cluster has, and what an autoscaler may bring it to."""
    said: dict[str, dict[str, float]] = {"now": {"CPU": 4.0}, "most": {}}
    monkeypatch.setattr(ray, "cluster_resources", lambda: said["now"])
    monkeypatch.setattr(workers, "_limits", lambda: said["most"])
    monkeypatch.setattr(workers, "largest_node_cpus", lambda with_gpu: int(said["now"]["CPU"]))
    return said


def run_of(tmp_path: Path, count: int, fewest: int | None = None) -> Run:
    return Run(Store(str(tmp_path)), "runs", "x", count, fewest)


def test_more_workers_than_there_is_room_for_are_refused_by_name(
    tmp_path: Path, cluster: dict[str, dict[str, float]]
) -> None:
    with pytest.raises(ConfigError, match=r"train\.num_workers: expected room for 4 workers"):
        workers.scale_workers(run_of(tmp_path, 4))
    with pytest.raises(ConfigError, match=r"train\.min_workers: expected room for 4 workers"):
        workers.scale_workers(run_of(tmp_path, 8, 4))


def test_elastic_workers_need_room_for_the_fewest(
    tmp_path: Path, cluster: dict[str, dict[str, float]]
) -> None:
    scaling = workers.scale_workers(run_of(tmp_path, 8, 2))
    assert (scaling.min_workers, scaling.max_workers) == (2, 8)
    assert not workers.scale_workers(run_of(tmp_path, 2)).elasticity_enabled


def test_what_an_autoscaler_may_add_counts_as_there(
    tmp_path: Path, cluster: dict[str, dict[str, float]]
) -> None:
    cluster["most"] = {"CPU": 64, "GPU": 4}
    scaling = workers.scale_workers(run_of(tmp_path, 4))
    assert scaling.num_workers == 4
    assert scaling.use_gpu
    with pytest.raises(ConfigError, match="64 CPUs and 4 GPUs"):
        workers.scale_workers(run_of(tmp_path, 5))


def test_worker_asks_for_no_more_cpus_than_a_node_has(
    tmp_path: Path, cluster: dict[str, dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster["now"] = {"CPU": 6.0}
    assert workers.scale_workers(run_of(tmp_path, 1)).resources_per_worker == {"CPU": 3, "GPU": 0}
    monkeypatch.setattr(workers, "largest_node_cpus", lambda with_gpu: 2)
    assert workers.scale_workers(run_of(tmp_path, 1)).resources_per_worker == {"CPU": 2, "GPU": 0}
