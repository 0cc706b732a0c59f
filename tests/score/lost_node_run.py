"""Scoring by three actors on a Ray of two nodes, of which one is killed on the way.

python -m tests.score.lost_node_run FOLDER CONFIG.yaml      # writes FOLDER/summary.json

In a process of its own: the tests' Ray has one node, and a process has one Ray.
"""

import json
import sys
import threading
import time
from pathlib import Path

import yaml

from crossrec.config import Config
from crossrec.score.pipeline import score
from crossrec.storage import Store
from tests.nodes import Node, two_nodes

KILLED_AFTER = 16
"""Buckets that are done when the node dies."""

ACTORS = 3

# Two CPUs an actor and two to read: one node has no room for all three.
CPUS = 4


def kill_half_way(node: Node, store: Store, done: str) -> None:
    while len(store.list(done)) < KILLED_AFTER:
        time.sleep(0.01)
    node.kill()


def main(folder: Path, path: Path) -> None:
    config = Config.model_validate(yaml.safe_load(path.read_text()))
    store = Store(config.storage.root)
    with two_nodes(folder, CPUS, CPUS) as second:
        done = f"runs/{config.run_id}/done"
        threading.Thread(target=kill_half_way, args=(second, store, done), daemon=True).start()
        summary = score(config, store)
        killed = second.process.poll()
    (folder / "summary.json").write_text(json.dumps({**summary, "killed": killed}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
