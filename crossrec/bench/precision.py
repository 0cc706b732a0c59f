"""Item matrices of fewer bits, and the query encoder: what they cost, and what is lost by them.

In: a run that has scored. Out: a row a precision, each bucket scored by turns; and how much of the
time of a pass goes to the encoder, as it is and compiled.

    {"rows": [{"precision": "int8", "pairs_per_second", "times", "recall", "lowest_recall",
      "matrix_mib"}, ...], "encoder": {"share", "compiled_times", "compiling_seconds"}}

recall: of the items of fp32's lists, those that are in these; lowest_recall: of the worst list.
times: as fast as fp32, the median over buckets and turns.
"""

import statistics
import time
from typing import Any, get_args

import numpy as np
import torch

from crossrec.bench.loop import Loop
from crossrec.config import Config
from crossrec.data.replay import slice_users
from crossrec.model import newest
from crossrec.model.inference import user_queries
from crossrec.score.lists import Lists
from crossrec.score.narrow import Precision
from crossrec.score.scorer import USERS_A_BATCH

EXACT: Precision = "fp32"
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


def compare_precisions(config: Config, model: str, rounds: int) -> dict[str, Any]:
    """Score all buckets with each precision, `rounds` times by turns; return the module's head."""
    loops = {precision: Loop.of(config, model, "round-0", precision) for precision in PRECISIONS}
    seconds: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    recalls: dict[str, list[np.ndarray]] = {precision: [] for precision in PRECISIONS}
    histories = loops[EXACT].histories
    for loop in loops.values():
        loop.score(histories[0])
    for _ in range(rounds):
        for bucket in histories:
            exact: dict[str, Lists] = {}
            for precision, loop in loops.items():
                began = time.perf_counter()
                found = loop.score(bucket)
                seconds[precision].append(time.perf_counter() - began)
                exact = exact or found
                recalls[precision] += [_recall(exact[name], found[name]) for name in exact]
    pairs = loops[EXACT].users * len(loops[EXACT].wanted)
    rows = []
    for precision, loop in loops.items():
        found_parts = [part for part in loop.scorer.narrowed if part is not None]
        size = sum(part.bytes for part in found_parts or vars(loop.scorer.state).values())
        spent, recall = seconds[precision], np.concatenate(recalls[precision])
        turns = [exact / own for exact, own in zip(seconds[EXACT], spent, strict=True)]
        rows.append(
            {
                "precision": precision,
                "pairs_per_second": round(pairs * rounds / sum(spent), 1),
                "times": round(statistics.median(turns), 3),
                "recall": round(float(recall.mean()), 6),
                "lowest_recall": round(float(recall.min()), 4),
                "matrix_mib": round(size / 2**20, 1),
            }
        )
    return {"rows": rows, "encoder": _time_encoder(loops[EXACT], sum(seconds[EXACT]) / rounds)}


def _recall(exact: Lists, found: Lists) -> np.ndarray:
    """Return the share of each list's items that another holds, (users,)."""
    is_there = (exact.rows[:, :, None] == found.rows[:, None, :]).any(2) & (exact.rows >= 0)
    share: np.ndarray = is_there.sum(1) / np.maximum((exact.rows >= 0).sum(1), 1)
    return share


def _time_encoder(loop: Loop, whole: float) -> dict[str, float]:
    """Return the encoder's share of a pass of `whole` seconds, and what compiling it brings."""
    plain, compiled = newest._encode, torch.compile(newest._encode, dynamic=True)
    bare = _ask(loop, with_sequence=False)
    encoder = _ask(loop) - bare
    newest._encode = compiled
    try:
        first, again = _ask(loop), _ask(loop)
    finally:
        newest._encode = plain
    return {
        "share": round(encoder / whole, 4),
        "compiled_times": round(encoder / (again - bare), 2),
        "compiling_seconds": round(first - again, 1),
    }


def _ask(loop: Loop, with_sequence: bool = True) -> float:
    """Return the seconds in which all users' queries are made."""
    scorer, began = loop.scorer, time.perf_counter()
    for bucket in loop.histories:
        for start in range(0, len(bucket.lengths), USERS_A_BATCH):
            part = slice_users(bucket, start, start + USERS_A_BATCH)
            known = scorer.recommender, scorer.state, part, scorer.bounds, loop.day
            user_queries(*known, with_sequence)
    return time.perf_counter() - began
