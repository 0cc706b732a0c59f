"""The k best of many items for many queries, by peers' own functions; one JSON line of seconds.

    python crossrec/bench/peers/topk.py '{"items": 100000, "queries": 10000, "width": 128, "k": 10}'

Runs in an environment of its own (requirements.txt beside it), without crossrec.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any


def main() -> None:
    """Time each peer once, after a small warm-up; print {"seconds", "equal"}."""
    settings = json.loads(sys.argv[1])

    import faiss
    import numpy as np
    import torch
    from implicit.cpu.topk import topk

    draw = np.random.default_rng(17)
    items, queries = (
        draw.standard_normal((settings[name], settings["width"]), np.float32)
        for name in ("items", "queries")
    )
    k = settings["k"]
    index = faiss.IndexFlatIP(settings["width"])
    index.add(items)
    items_T = torch.from_numpy(items)

    def in_batches(part: torch.Tensor) -> Any:
        found = [torch.topk(part[n : n + 512] @ items_T.T, k) for n in range(0, len(part), 512)]
        return torch.cat([one.indices for one in found])

    peers: dict[str, Callable[[Any], Any]] = {
        "torch.topk(q @ v.T)": lambda part: torch.topk(torch.from_numpy(part) @ items_T.T, k)[1],
        "torch.topk(q @ v.T), 512 queries at once": lambda part: in_batches(torch.from_numpy(part)),
        "faiss IndexFlatIP": lambda part: index.search(part, k)[1],
        "implicit topk": lambda part: topk(items, part, k)[0],
    }
    seconds = {}
    for name, search in peers.items():
        search(queries[:512])
        began = time.perf_counter()
        search(queries)
        seconds[name] = time.perf_counter() - began
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
