"""Stage 2: histories/s of the sequence model, beside RecTools' SASRec of equal size."""

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
from crossrec.runlog import start_logging
from crossrec.storage import Store
from crossrec.train.launch import Folders, train_models


def bench_train(folder: Path, events: int, rounds: int, settings: dict[str, int]) -> dict[str, Any]:
    """Train on one domain, by turns here and with RecTools' SASRec of equal size; compare speeds.

    Equal are data, width, layers, heads, history length, batch and negatives; the time is that of
    the epochs, without preparing, encoding or validating.
    """
    data = ensure_data(folder, events, settings["items"], DOMAINS[:1])
    peer_settings = settings | {"events": str(data / "events")}
    ensure_peers()
    speeds: dict[str, list[float]] = {"crossrec": [], "rectools_sasrec": []}
    for number in range(rounds):
        ours = run_apart(_train_here, data, folder / f"store-{number}", settings)
        theirs = run_peer("sasrec.py", peer_settings)
        for name, found in (("crossrec", ours), ("rectools_sasrec", theirs)):
            # The first epoch pays for starting threads and filling caches.
            speeds[name] += [found["histories"] / s for s in found["epoch_seconds"][1:]]
    medians = {name: statistics.median(found) for name, found in speeds.items()}
    return {
        "benchmark": "train",
        **settings,
        "events": events,
        "histories_per_second": {name: round(value, 1) for name, value in medians.items()},
        "ratio": round(medians["crossrec"] / medians["rectools_sasrec"], 2),
        "cpus": os.cpu_count(),
    }


def _train_here(data: Path, root: Path, settings: dict[str, int]) -> dict[str, Any]:
    """Train as the night does, its first phase alone."""
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
