"""Stage 2: histories/s of the sequence model, beside RecTools' SASRec of equal size.

On demand also those of one worker of one thread, and of two.
"""

import os
import shutil
import statistics
from pathlib import Path
from typing import Any

import ray

from crossrec.bench.data import DOMAINS, ensure_data, run_apart
from crossrec.bench.environment import ensure_peers, run_peer
from crossrec.bench.prepare import OBJECT_STORE_BYTES
from crossrec.config import Config
from crossrec.data.histories import open_prepared
from crossrec.data.prepare import prepare
from crossrec.job import LOGICAL_CPUS
from crossrec.runlog import start_logging
from crossrec.storage import Store
from crossrec.train.launch import Folders, train_models


def bench_train(
    folder: Path, events: int, rounds: int, workers: int, settings: dict[str, int]
) -> dict[str, Any]:
    """Train on one domain, by turns here and with RecTools' SASRec of equal size; compare speeds.

    Equal are data, width, layers, heads, history length, batch and negatives; the time is that of
    the epochs, without preparing, encoding or validating.

    Args:
        folder: for data and results.
        events: of the data.
        rounds: turns of each.
        workers: that have a thread each, beside one that has; 0: without.
        settings: of data.TRAIN_SETTINGS.
    """
    data = ensure_data(folder, events, settings["items"], DOMAINS[:1])
    peer_settings = settings | {"events": str(data / "events")}
    ensure_peers()
    ours, theirs = [], []
    for number in range(rounds):
        store = folder / f"store-{number}"
        ours.append(run_apart(_train_here, data, store, settings, 1, LOGICAL_CPUS))
        theirs.append(run_peer("sasrec.py", peer_settings))
    medians = {"crossrec": _speed(ours), "rectools_sasrec": _speed(theirs)}
    more: dict[str, Any] = {}
    if workers:
        numbers = (1, workers)
        turns: dict[int, list[dict[str, Any]]] = {number: [] for number in numbers}
        for number in numbers * rounds:
            store = folder / f"workers-{number}"
            # Of two CPUs a worker one is for Ray Data, so that each has one thread.
            turns[number].append(run_apart(_train_here, data, store, settings, number, 2 * number))
        of_each = {number: round(_speed(found), 1) for number, found in turns.items()}
        more["histories_per_second_by_workers"] = of_each
        more["times_one_worker"] = round(of_each[workers] / of_each[1], 2)
        more["losses_by_workers"] = {number: found[0]["losses"] for number, found in turns.items()}
    return {
        "benchmark": "train",
        **settings,
        "events": events,
        "histories_per_second": {name: round(value, 1) for name, value in medians.items()},
        "ratio": round(medians["crossrec"] / medians["rectools_sasrec"], 2),
        "epoch_seconds": statistics.median(s for turn in ours for s in turn["epoch_seconds"][1:]),
        "rays_share": round(statistics.median(turn["rays_share"] for turn in ours), 4),
        **more,
        "cpus": os.cpu_count(),
    }


def _speed(turns: list[dict[str, Any]]) -> float:
    """Return the median of histories/s; the first epoch pays for threads and caches."""
    speeds: list[float] = [
        turn["histories"] / seconds for turn in turns for seconds in turn["epoch_seconds"][1:]
    ]
    return statistics.median(speeds)


def _train_here(
    data: Path, root: Path, settings: dict[str, int], workers: int, cpus: int
) -> dict[str, Any]:
    """Train as the night does, its first phase alone, on a Ray of so many CPUs.

    rays_share: of the epochs' time, what went into waiting for batches and into checkpoints.
    """
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
                "num_workers": workers,
                "epochs": settings["epochs"],
                "patience": settings["epochs"],
                "batch_size": settings["batch"],
                "full_softmax_items": 0 if settings["negatives"] else settings["items"],
                "negatives": settings["negatives"] or 1,
            },
        }
    )
    ray.init(
        num_cpus=cpus,
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
    )
    store = Store(str(root))
    prepared = open_prepared(store, prepare(config, store)["prepared"])
    trained = train_models(config, store, prepared, Folders("checkpoints", "selected"))
    ray.shutdown()
    curve = trained["training"]["curve"][1:]
    # Of the last epoch's checkpoint nothing is told.
    whole = curve[1:-1] or curve
    waited = sum(point["waiting"] * point["seconds"] for point in whole)
    written = sum(point.get("checkpoint_seconds", 0.0) for point in whole)
    return {
        "histories": prepared.users,
        "epoch_seconds": [point["seconds"] for point in curve],
        "losses": [point["loss"] for point in curve],
        "rays_share": (waited + written) / (sum(point["seconds"] for point in whole) + written),
    }
