"""What the cluster and one node of it can hold: what fits on no node would wait for ever.

cpus, gpus = count_cpus_and_gpus()
num_cpus = min(8, largest_node_cpus(with_gpu=gpus > 0))
with torch_threads(num_cpus): ...            # within the task
"""

from collections.abc import Iterator
from contextlib import contextmanager

import ray
import torch


def count_cpus_and_gpus() -> tuple[int, int]:
    """Return those of all nodes that are up, 0 where none has any; Ray is initialised."""
    resources = ray.cluster_resources()
    return int(resources.get("CPU", 0)), int(resources.get("GPU", 0))


def largest_node_cpus(with_gpu: bool = False) -> int:
    """Return the CPUs of the largest node that is alive, at least 1; Ray is initialised.

    with_gpu: of those that have a GPU, for what asks for both.
    """
    nodes = (node["Resources"] for node in ray.nodes() if node["Alive"])
    cpus = (node.get("CPU", 0) for node in nodes if node.get("GPU") or not with_gpu)
    return max(1, int(max(cpus, default=0)))


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Let torch use so many threads; then as many as before.

    Ray gives the process of a task to other tasks, whose sums depend on their number.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
