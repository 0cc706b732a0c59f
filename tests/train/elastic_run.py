"""A small training by one or two workers on a Ray of two nodes, of which one is killed half way.

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
from crossrec.train.export import Phase
from crossrec.train.loop import train_loop
from crossrec.train.progress import parse_progress
from crossrec.train.workers import Run, run_workers
from tests.nodes import Node, two_nodes
from tests.train.test_epoch import histories, settings
from tests.train.test_task import make_job

EPOCHS = 12
KILLED_AFTER = 3
"""Epochs whose checkpoints are there when the node dies."""

USERS = 24

# Two CPUs a worker: the first node has room for one, with one left to read.
FIRST_CPUS, SECOND_CPUS = 3, 5


def newest_epoch(folder: Path) -> int:
    """Return the newest epoch that a checkpoint knows, -1 before the first."""
    found = [-1]
    for path in folder.glob("checkpoint_*/progress.json"):
        try:
            found.append(parse_progress(path.read_bytes())[-1].epoch)
        except (ValueError, OSError):  # half written, or just removed
            continue
    return max(found)


def kill_half_way(node: Node, folder: Path) -> None:
    while newest_epoch(folder) < KILLED_AFTER:
        time.sleep(0.05)
    node.kill()


def main(folder: Path, backbone: str) -> None:
    job = make_job(folder, backbone)
    prepared = replace(job.prepared, users=USERS)
    job = replace(settings(job, batch_size=6, epochs=EPOCHS), prepared=prepared, epochs=EPOCHS)
    job.store.write_parquet(histories_path(prepared.folder, 0), histories([3] * USERS))
    # Ray Train first waits for as many workers as before: it hears of a dead node each 20 s only.
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "15"
    with two_nodes(folder, FIRST_CPUS, SECOND_CPUS) as second:
        run = Run(job.store, "runs", "elastic", workers=2, min_workers=1)
        folder_of_run = Path(job.store.full_path(run.checkpoints))
        threading.Thread(target=kill_half_way, args=(second, folder_of_run), daemon=True).start()
        datasets = {"histories": stream_histories(job.store, prepared)}
        config = {"phases": [Phase("select", job, "models/x", {})], "tracked": run.folder}
        saved = run_workers(run, train_loop, config, datasets)
    (folder / "curve.json").write_text(json.dumps(saved.phases[-1].curve))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
