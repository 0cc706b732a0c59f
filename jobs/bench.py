"""Measure a stage on made-up data of any size: seconds and peak memory, or speed beside a peer.

    python jobs/bench.py prepare --events 5000000
    python jobs/bench.py train --events 300000 --items 10000 --negatives 64

Peers (jobs/peers) run in an environment of their own, `.peers`, made where it is missing; they and
crossrec take turns. Memory is the proportional set size (shared pages counted once) summed over the
whole process tree, Ray's own processes and its object store among them. The last line of stdout is
one JSON object.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / "jobs" / "peers"

DOMAINS = ("shop", "social", "video")
ITEMS = 100_000
TRAIN_SETTINGS = {
    "items": 10_000,
    "width": 128,
    "layers": 2,
    "heads": 4,
    "length": 50,
    "batch": 128,
    "negatives": 64,
    "epochs": 3,
}
"""Of `train`, the peer's too; no negatives: softmax over all items."""

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
    train = benchmarks.add_parser("train", help="stage 2: histories/s, beside RecTools' SASRec")
    train.add_argument("--events", type=int, default=300_000, help="rows (300000)")
    for name, value in TRAIN_SETTINGS.items():
        train.add_argument(f"--{name}", type=int, default=value, help=f"({value})")
    train.add_argument("--rounds", type=int, default=3, help="turns of each (3)")
    for benchmark in (prepare, train):
        benchmark.add_argument("--folder", help="for data and results; default: a temporary one")
    options = parser.parse_args()
    folder = options.folder or tempfile.mkdtemp(prefix="crossrec-bench-")
    bench = {"prepare": bench_prepare, "train": bench_train}[options.benchmark]
    try:
        print(json.dumps(bench(Path(folder), options)), flush=True)
    finally:
        if not options.folder:
            shutil.rmtree(folder)


def ensure_data(
    folder: Path, events: int, items: int = ITEMS, domains: Sequence[str] = DOMAINS
) -> Path:
    """Make events and items where they are missing; return their folder."""
    data = folder / f"events-{events}-items-{items}-domains-{len(domains)}"
    if not data.exists():
        # In a process of its own, so that its memory is gone before the measurement.
        arguments = (data, events, items, domains)
        maker = multiprocessing.get_context("spawn").Process(target=make_data, args=arguments)
        maker.start()
        maker.join()
        if maker.exitcode:
            raise SystemExit(f"making data failed with exit code {maker.exitcode}")
    return data


def bench_prepare(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Make events, prepare them on a local Ray, and return what it took."""
    events = options.events
    data = ensure_data(folder, events)
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


def bench_train(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Train on one domain, by turns here and with RecTools' SASRec of equal size; compare speeds.

    Equal are data, width, layers, heads, history length, batch and negatives; the time is that of
    the epochs, without preparing, encoding or validating.
    """
    data = ensure_data(folder, options.events, options.items, DOMAINS[:1])
    settings = {name: getattr(options, name) for name in TRAIN_SETTINGS}
    peer_settings = settings | {"events": str(data / "events")}
    python = ensure_peers()
    speeds: dict[str, list[float]] = {"crossrec": [], "rectools_sasrec": []}
    for number in range(options.rounds):
        ours = run_apart(_train_here, (data, folder / f"store-{number}", settings))
        theirs = json.loads(
            subprocess.run(
                [python, PEERS / "sasrec.py", json.dumps(peer_settings)],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            ).stdout.splitlines()[-1]
        )
        for name, found in (("crossrec", ours), ("rectools_sasrec", theirs)):
            # The first epoch pays for starting threads and filling caches.
            speeds[name] += [found["histories"] / s for s in found["epoch_seconds"][1:]]
    medians = {name: statistics.median(found) for name, found in speeds.items()}
    return {
        "benchmark": "train",
        **settings,
        "events": options.events,
        "histories_per_second": {name: round(value, 1) for name, value in medians.items()},
        "ratio": round(medians["crossrec"] / medians["rectools_sasrec"], 2),
        "cpus": os.cpu_count(),
    }


def _train_here(data: Path, root: Path, settings: dict[str, int]) -> dict[str, Any]:
    """Train as the night does, its first phase alone."""
    import ray

    from crossrec.config import Config
    from crossrec.data.histories import open_prepared
    from crossrec.data.prepare import prepare
    from crossrec.runlog import start_logging
    from crossrec.storage import Store
    from crossrec.train.launch import Folders, train_models

    start_logging()
    shutil.rmtree(root, ignore_errors=True)
    config = Config.model_validate(
        {
            "data": {"events": str(data / "events"), "items": str(data / "items")},
            "storage": {"root": str(root)},
            "model": {
                "width": settings["width"],
                "layers": settings["layers"],
                "heads": settings["heads"],
                "max_history": settings["length"],
            },
            "train": {
                "epochs": settings["epochs"],
                "patience": settings["epochs"],
                "batch_size": settings["batch"],
                "full_softmax_items": 0 if settings["negatives"] else settings["items"],
                "negatives": settings["negatives"] or 1,
            },
        }
    )
    ray.init(object_store_memory=OBJECT_STORE_BYTES, include_dashboard=False, log_to_driver=False)
    store = Store(str(root))
    prepared = open_prepared(store, prepare(config, store)["prepared"])
    trained = train_models(config, store, prepared, Folders("checkpoints", "selected"))
    ray.shutdown()
    curve = trained["training"]["curve"][1:]
    return {"histories": prepared.users, "epoch_seconds": [point["seconds"] for point in curve]}


def run_apart(function: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> Any:
    """Run a function in a process of its own, so that nothing of it stays; return its result."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def ensure_peers() -> Path:
    """Return the Python of the peers' environment, made where it is missing."""
    folder = ROOT / ".peers"
    python = folder / "bin" / "python"
    stamp = folder / ".installed"
    if not stamp.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        wanted = str(PEERS / "requirements.txt")
        subprocess.run([python, "-m", "pip", "install", "-qq", "-r", wanted], check=True)
        stamp.touch()
    return python


def make_data(folder: Path, events: int, items: int, domains: Sequence[str]) -> None:
    """Write events in files of 156,250, and the items; some users and items are far more active."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    unfinished = folder.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    for name in ("events", "items"):
        (unfinished / name).mkdir(parents=True)
    item_ids = pa.array(np.char.add("item-", np.arange(items).astype(str)))
    owners = pa.array(domains).take(pa.array(np.arange(items) % len(domains)))
    titles = pa.array(np.char.add("a thing of kind ", (np.arange(items) % 997).astype(str)))
    catalogue = pa.table({"item_id": item_ids, "domain": owners, "title": titles})
    pq.write_table(catalogue, unfinished / "items" / "items.parquet")
    users = max(1, round(events / EVENTS_A_USER))
    for number, first in enumerate(range(0, events, EVENTS_A_FILE)):
        draw = np.random.default_rng(number)
        rows = min(EVENTS_A_FILE, events - first)
        user = (users * draw.random(rows) ** 2).astype(np.int64)
        item = pa.array((items * draw.random(rows) ** 3).astype(np.int64))
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
