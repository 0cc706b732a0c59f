"""What one node of the cluster can hold: a task or actor that fits on none would wait for ever.

num_cpus = min(8, largest_node_cpus())
"""

import ray


def largest_node_cpus() -> int:
    """Return the CPUs of the largest node that is alive, at least 1; Ray is initialised."""
    nodes = (node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])
    return max(1, int(max(nodes, default=0)))
