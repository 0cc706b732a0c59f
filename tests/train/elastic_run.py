"""A small training by one or two workers on two nodes; one is killed, later another one joins.

python -m tests.train.elastic_run FOLDER BACKBONE          # writes FOLDER/curve.json

In a process of its own: the tests' Ray has one node, and a process has one Ray.
"""

import json
import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

from crossrec.data.histories import histories_path
from crossrec.data.stream import stream_histories
from crossrec.train import workers
from crossrec.train.export import Phase
from crossrec.train.loop import train_loop
from crossrec.train.progress import parse_progress
from crossrec.train.workers import Run, run_workers
from tests.nodes import Node, join, two_nodes
from tests.train.test_epoch import histories, settings
from tests.train.test_task import make_job

EPOCHS = 80
KILLED_AFTER = 3
"""Epochs whose checkpoints are there when the node dies."""

USERS = 24

# Two CPUs a worker: the first node has room for one, with one left to read.
FIRST_CPUS, SECOND_CPUS = 3, 5


def newest(folder: Path) -> tuple[int, int]:
    """Return the newest epoch that a checkpoint knows and its workers, (-1, 0) before the first."""
    found = [(-1, 0)]
    for path in folder.glob("checkpoint_*/progress.json"):
        try:
            point = parse_progress(path.read_bytes())[-1]
            found.append((point.epoch, int(point.curve[-1].get("workers", 0))))
        except (ValueError, OSError):  # half written, or just removed
            continue
    return max(found)


def kill_and_join(node: Node, folder: Path, log: Path, joined: list[Node]) -> None:
    """Kill a node half way; when the rest have gone on without it, start another."""
    while newest(folder)[0] < KILLED_AFTER:
        time.sleep(0.05)
    node.kill()
    while newest(folder)[1] != 1:
        time.sleep(0.05)
    joined.append(join(log, SECOND_CPUS))


def main(folder: Path, backbone: str) -> None:
    job = make_job(folder, backbone)
    prepared = replace(job.prepared, users=USERS)
    job = replace(settings(job, batch_size=6, epochs=EPOCHS), prepared=prepared, epochs=EPOCHS)
    job.store.write_parquet(histories_path(prepared.folder, 0), histories([3] * USERS))
    # Ray Train first waits for as many workers as before: it hears of a dead node each 20 s only.
    workers.RESIZE_AFTER_S = 5.0
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "15"
    with two_nodes(folder, FIRST_CPUS, SECOND_CPUS) as second:
        run = Run(job.store, "runs", "elastic", workers=2, min_workers=1)
        folder_of_run = Path(job.store.full_path(run.checkpoints))
        joined: list[Node] = []
        arguments = second, folder_of_run, folder / "third.log", joined
        threading.Thread(target=kill_and_join, args=arguments, daemon=True).start()
        datasets = {"histories": stream_histories(job.store, prepared)}
        config = {"phases": [Phase("select", job, "models/x", {})], "tracked": run.folder}
        try:
            saved = run_workers(run, train_loop, config, datasets)
        finally:
            for node in joined:
                node.kill()
    (folder / "curve.json").write_text(json.dumps(saved.phases[-1].curve))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
