"""The memory of a process and all below it, while a block runs.

    with MemoryPeak() as memory:
        ...
    memory.peak_bytes

It is the proportional set size (shared pages counted once) summed over the whole process tree,
Ray's own processes and its object store among them. Linux only.
"""

import os
import threading
import time
from pathlib import Path

SAMPLE_S = 0.2
"""Between samples at least."""

REST = 30
"""Times as long as a sample takes nothing is sampled: of processes with gigabytes mapped one takes
a tenth of a second, and what is measured beside it is not to notice."""


class MemoryPeak:
    """Samples the memory of this process and all below it while its block runs.

    first_bytes: at its start. peak_bytes: the most that was seen.
    """

    def __init__(self) -> None:
        self.first_bytes = self.peak_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "MemoryPeak":
        self.first_bytes = self.peak_bytes = tree_pss_bytes(os.getpid())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        rest = SAMPLE_S
        while not self._stop.wait(rest):
            began = time.perf_counter()
            self.peak_bytes = max(self.peak_bytes, tree_pss_bytes(os.getpid()))
            rest = max(SAMPLE_S, REST * (time.perf_counter() - began))


def tree_pss_bytes(root: int) -> int:
    """Return the proportional set size of a process and all its descendants (Linux)."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # The command's name, in parentheses, may hold spaces.
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    total, todo = 0, [root]
    while todo:
        process = todo.pop()
        todo += children.get(process, [])
        try:
            rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
        except OSError:
            continue
        sizes = dict(line.split(":", 1) for line in rollup.splitlines()[1:])
        total += int(sizes["Pss"].split()[0]) * 1024
    return total
