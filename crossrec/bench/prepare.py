"""Stage 1: from events to histories."""

import os
import shutil
import time
from pathlib import Path
from typing import Any

import ray

from crossrec.bench.data import ensure_data
from crossrec.bench.memory import MemoryPeak
from crossrec.config import Config
from crossrec.data.prepare import prepare
from crossrec.runlog import start_logging
from crossrec.storage import Store

OBJECT_STORE_BYTES = 512 * 2**20


def bench_prepare(folder: Path, events: int) -> dict[str, Any]:
    """Make events, prepare them on a local Ray, and return what it took."""
    data = ensure_data(folder, events)
    shutil.rmtree(folder / "store", ignore_errors=True)

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
