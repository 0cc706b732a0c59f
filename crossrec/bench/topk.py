"""Stage 4, its kernel: exact top-K, beside torch, faiss and implicit on the same vectors."""

import os
import statistics
import time
from typing import Any

from crossrec.bench.data import run_apart
from crossrec.bench.environment import ensure_peers, run_peer

OURS = "crossrec top_k"


def bench_topk(items: int, queries: int, width: int, k: int, rounds: int) -> dict[str, Any]:
    """Find the k best of random items for random queries, by turns; compare the seconds."""
    settings = {"items": items, "queries": queries, "width": width, "k": k}
    seconds: dict[str, list[float]] = {}
    ensure_peers()
    for _ in range(rounds):
        found = {OURS: run_apart(_search_here, settings)}
        for name, spent in (found | run_peer("topk.py", settings)).items():
            seconds.setdefault(name, []).append(spent)
    medians = {name: statistics.median(spent) for name, spent in seconds.items()}
    return {
        "benchmark": "topk",
        **settings,
        "rounds": rounds,
        "seconds": {name: round(value, 3) for name, value in medians.items()},
        "times_as_fast": {
            name: round(value / medians[OURS], 2) for name, value in medians.items() if name != OURS
        },
        "cpus": os.cpu_count(),
    }


def _search_here(settings: dict[str, int]) -> float:
    import numpy as np
    import torch

    from crossrec.score.scorer import USERS_A_BATCH
    from crossrec.score.topk import top_k

    draw = np.random.default_rng(17)
    items, queries = (
        torch.from_numpy(draw.standard_normal((settings[name], settings["width"]), np.float32))
        for name in ("items", "queries")
    )
    nothing_seen = torch.zeros(0, 2, dtype=torch.int64)

    def search(part: torch.Tensor) -> None:
        for start in range(0, len(part), USERS_A_BATCH):
            top_k([(part[start : start + USERS_A_BATCH], items)], [], nothing_seen, settings["k"])

    with torch.inference_mode():
        search(queries[:USERS_A_BATCH])
        began = time.perf_counter()
        search(queries)
        return time.perf_counter() - began
