"""A Ray of two nodes on this machine, of which one can be killed.

    with two_nodes(folder, 3, 5) as second:
        second.kill()
        third = join(folder / "third.log", 5)       # which is to be killed too

For a process of its own: the tests' Ray has one node, and a process has one Ray.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray

ATTEMPTS = 5
"""To start the second node, which a busy machine may be too slow for."""

STORE_BYTES = 100 * 2**20


@dataclass(frozen=True)
class Node:
    """A node with all of its processes."""

    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        """Kill whatever is left of it."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)


@contextmanager
def two_nodes(folder: Path, first_cpus: int, second_cpus: int) -> Iterator[Node]:
    """Start Ray with a node in this process and one beside it; give the second.

    Args:
        folder: for Ray's sockets, so its path must be short, and for a log.
        first_cpus: of the node in this process.
        second_cpus: of the other.
    """
    ray.init(
        address="local",
        num_cpus=first_cpus,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=STORE_BYTES,
        _temp_dir=str(folder / "ray"),
    )
    try:
        second = join(folder / "node.log", second_cpus)
        try:
            yield second
        finally:
            second.kill()
    finally:
        ray.shutdown()


def join(log: Path, cpus: int) -> Node:
    """Start one more node, and return it when Ray knows it."""
    address, before = ray.get_runtime_context().gcs_address, _alive()
    start = [str(Path(sys.executable).with_name("ray")), "start", "--block"]
    start += [f"--address={address}", f"--num-cpus={cpus}"]
    start += [f"--object-store-memory={STORE_BYTES}"]
    with log.open("wb") as said:
        for _ in range(ATTEMPTS):
            node = Node(subprocess.Popen(start, stdout=said, stderr=said, start_new_session=True))
            while node.process.poll() is None:
                if _alive() - before:
                    return node
                time.sleep(0.1)
    raise RuntimeError(log.read_text())


def _alive() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}
