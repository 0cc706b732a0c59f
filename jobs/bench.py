"""Measure a stage on made-up data of any size: seconds and peak memory.

    python jobs/bench.py prepare --events 5000000

Memory is the proportional set size (shared pages counted once) summed over the whole process tree,
Ray's own processes and its object store among them. The last line of stdout is one JSON object.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")

DOMAINS = ("shop", "social", "video")
ITEMS = 100_000
EVENTS_A_USER = 5_000_000 / 194_000
EVENTS_A_FILE = 5_000_000 // 32
SAMPLE_S = 0.2
OBJECT_STORE_BYTES = 512 * 2**20


def main() -> None:
    """Parse the arguments, run one benchmark, print its JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    benchmarks = parser.add_subparsers(dest="benchmark", required=True)
    prepare = benchmarks.add_parser("prepare", help="stage 1: from events to histories")
    prepare.add_argument("--events", type=int, default=5_000_000, help="rows (5000000)")
    prepare.add_argument("--folder", help="for data and results; default: a temporary one")
    options = parser.parse_args()
    folder = options.folder or tempfile.mkdtemp(prefix="crossrec-bench-")
    try:
        print(json.dumps(bench_prepare(Path(folder), options.events)), flush=True)
    finally:
        if not options.folder:
            shutil.rmtree(folder)


def bench_prepare(folder: Path, events: int) -> dict[str, Any]:
    """Make events, prepare them on a local Ray, and return what it took."""
    data = folder / f"events-{events}"
    if not data.exists():
        # In a process of its own, so that its memory is gone before the measurement.
        maker = multiprocessing.get_context("spawn").Process(target=make_data, args=(data, events))
        maker.start()
        maker.join()
        if maker.exitcode:
            raise SystemExit(f"making data failed with exit code {maker.exitcode}")
    shutil.rmtree(folder / "store", ignore_errors=True)

    import ray

    from crossrec.config import Config
    from crossrec.data.prepare import prepare
    from crossrec.runlog import start_logging
    from crossrec.storage import Store

    start_logging()
    config = Config.model_validate(
        {
            "data": {"events": str(data / "events"), "items": str(data / "items")},
            "storage": {"root": str(folder / "store")},
        }
    )
    ray.init(object_store_memory=OBJECT_STORE_BYTES, include_dashboard=False, log_to_driver=False)
    memory = MemoryPeak()
    began = time.perf_counter()
    with memory:
        summary = prepare(config, Store(config.storage.root))
    seconds = time.perf_counter() - began
    ray.shutdown()
    return {
        "benchmark": "prepare",
        "events": summary["events"],
        "users": summary["users"],
        "seconds": round(seconds, 2),
        "events_per_second": round(events / seconds),
        "peak_pss_mib": memory.peak_bytes >> 20,
        "idle_pss_mib": memory.first_bytes >> 20,
        "cpus": os.cpu_count(),
    }


def make_data(folder: Path, events: int) -> None:
    """Write events in files of 156,250, and the items; some users and items are far more active."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    unfinished = folder.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    for name in ("events", "items"):
        (unfinished / name).mkdir(parents=True)
    item_ids = pa.array(np.char.add("item-", np.arange(ITEMS).astype(str)))
    owners = pa.array(DOMAINS).take(pa.array(np.arange(ITEMS) % len(DOMAINS)))
    titles = pa.array(np.char.add("a thing of kind ", (np.arange(ITEMS) % 997).astype(str)))
    items = pa.table({"item_id": item_ids, "domain": owners, "title": titles})
    pq.write_table(items, unfinished / "items" / "items.parquet")
    users = max(1, round(events / EVENTS_A_USER))
    for number, first in enumerate(range(0, events, EVENTS_A_FILE)):
        draw = np.random.default_rng(number)
        rows = min(EVENTS_A_FILE, events - first)
        user = (users * draw.random(rows) ** 2).astype(np.int64)
        item = pa.array((ITEMS * draw.random(rows) ** 3).astype(np.int64))
        seconds = draw.integers(1_600_000_000, 1_700_000_000, rows)
        table = {
            "user_id": pa.array(np.char.add("user-", user.astype(str))),
            "item_id": item_ids.take(item),
            "domain": owners.take(item),
            "timestamp": pa.array(seconds, pa.timestamp("s")).cast(pa.timestamp("us")),
        }
        pq.write_table(pa.table(table), unfinished / "events" / f"part-{number:05d}.parquet")
    unfinished.rename(folder)


class MemoryPeak:
    """Samples the memory of this process and all below it while its block runs."""

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
        while not self._stop.wait(SAMPLE_S):
            self.peak_bytes = max(self.peak_bytes, tree_pss_bytes(os.getpid()))


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


if __name__ == "__main__":
    main()
