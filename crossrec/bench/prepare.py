"""Stage 1: from events to histories, beside one shot of Polars on the same data."""

import os
import shutil
import statistics
from pathlib import Path
from typing import Any

import ray

from crossrec.bench.data import ensure_data, run_apart
from crossrec.bench.memory import MemoryPeak
from crossrec.bench.one_shot import prepare_in_one_shot
from crossrec.config import Config
from crossrec.data.prepare import prepare
from crossrec.runlog import start_logging
from crossrec.storage import Store

OBJECT_STORE_BYTES = 512 * 2**20


def bench_prepare(folder: Path, events: int, rounds: int) -> dict[str, Any]:
    """Make events, prepare them by turns on a local Ray and with Polars; compare seconds.

    The start of Ray is not in them.
    """
    data = ensure_data(folder, events)
    config = Config.model_validate(
        {
            "data": {"events": str(data / "events"), "items": str(data / "items")},
            "storage": {"root": str(folder / "store")},
        }
    )
    ours, theirs = [], []
    for _ in range(rounds):
        shutil.rmtree(folder / "store", ignore_errors=True)
        ours.append(run_apart(_prepare_on_ray, config))
        shutil.rmtree(folder / "one-shot", ignore_errors=True)
        buckets = int(ours[0]["buckets"])
        theirs.append(run_apart(prepare_in_one_shot, data, folder / "one-shot", buckets))
    shutil.rmtree(folder / "one-shot")
    seconds = statistics.median(found["seconds"] for found in ours)
    polars_seconds = statistics.median(found["seconds"] for found in theirs)
    return {
        "benchmark": "prepare",
        "events": events,
        "users": ours[0]["users"],
        "rounds": rounds,
        "seconds": {"crossrec": round(seconds, 2), "polars": round(polars_seconds, 2)},
        "times_polars": round(seconds / polars_seconds, 2),
        "events_per_second": round(events / seconds),
        "peak_pss_mib": {
            "crossrec": max(found["peak_bytes"] for found in ours) >> 20,
            "polars": max(found["peak_bytes"] for found in theirs) >> 20,
        },
        "idle_pss_mib": max(found["idle_bytes"] for found in ours) >> 20,
        "cpus": os.cpu_count(),
    }


def _prepare_on_ray(config: Config) -> dict[str, Any]:
    start_logging()
    ray.init(object_store_memory=OBJECT_STORE_BYTES, include_dashboard=False, log_to_driver=False)
    with MemoryPeak() as memory:
        summary = prepare(config, Store(config.storage.root))
    ray.shutdown()
    facts = {name: summary[name] for name in ("users", "buckets", "seconds")}
    return facts | {"idle_bytes": memory.first_bytes, "peak_bytes": memory.peak_bytes}
