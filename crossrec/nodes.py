"""What one node of the cluster can hold: a task or actor that fits on none would wait for ever.

num_cpus = min(8, largest_node_cpus())
with torch_threads(num_cpus): ...            # within the task
"""

from collections.abc import Iterator
from contextlib import contextmanager

import ray
import torch


def largest_node_cpus() -> int:
    """Return the CPUs of the largest node that is alive, at least 1; Ray is initialised."""
    nodes = (node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])
    return max(1, int(max(nodes, default=0)))


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
