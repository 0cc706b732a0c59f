"""Stage 4: users/s of the scoring stage, beside the same torch calls in a plain loop.

On demand also pairs/s beside RecTools' SASRec, an incremental night beside the full one, and what
reasons cost.
"""

import os
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import ray
import torch

from crossrec.bench.backbone import make_backbone
from crossrec.bench.data import (
    DOMAINS,
    TRAIN_SETTINGS,
    ensure_data,
    ensure_more_events,
    run_apart,
)
from crossrec.bench.environment import run_peer
from crossrec.bench.loop import Loop
from crossrec.bench.memory import MemoryPeak
from crossrec.bench.prepare import OBJECT_STORE_BYTES
from crossrec.config import Config
from crossrec.data.prepare import prepare
from crossrec.job import LOGICAL_CPUS
from crossrec.model.checkpoint import load_fusions, save_fusions
from crossrec.model.integrity import write_checksums
from crossrec.runlog import start_logging
from crossrec.score.reasons import find_reasons
from crossrec.storage import Store
from crossrec.train.launch import finetune

RUN = "model"

SEQUENCE = 0.1
"""Of `Fusion.sequence`, where few steps have earned none."""


def bench_score(
    folder: Path,
    settings: dict[str, int],
    changed: float,
    peer_events: int,
    explain: int,
) -> dict[str, Any]:
    """Train for a few steps, then score all users, by turns on Ray and in a loop; compare speeds.

    The stage is timed from the start of its actors to the last completion record; the loop has
    model, items and histories in memory when its clock starts, and keeps nothing of what it finds.

    Args:
        folder: for data and results.
        settings: of data.SCORE_SETTINGS.
        changed: share of the users who have a new event when an incremental night comes; 0: none.
        peer_events: events, of one domain with a third of the items, that RecTools' SASRec is
            fitted to for an epoch before its `recommend` is timed; 0: it is left out.
        explain: reasons an item, which are found in the loop after each bucket's lists; 0: none.
    """
    events, items, top_k = settings["events"], settings["items"], settings["top_k"]
    data = ensure_data(folder, events, items)
    config = config_of(folder, data, top_k)
    shutil.rmtree(folder / "store", ignore_errors=True)
    model = run_apart(train, config)
    found: dict[str, list[dict[str, float]]] = {"stage": [], "loop": []}
    for number in range(settings["rounds"]):
        found["stage"].append(run_apart(score_on_ray, config, model, f"round-{number}"))
        found["loop"].append(run_apart(_score_in_a_loop, config, model, f"round-{number}"))
    speeds = {
        name: statistics.median(turn["users"] / turn["seconds"] for turn in turns)
        for name, turns in found.items()
    }
    first = found["stage"][0]
    more: dict[str, Any] = {}
    if changed:
        newer = ensure_more_events(data, events, changed)
        more["incremental"] = run_apart(score_the_changed, config, model, str(newer))
    if explain:
        more["explained_times"] = run_apart(_explain_in_a_loop, config, model, explain)
    if peer_events:
        theirs = _recommend(folder, peer_events, items // len(DOMAINS), top_k)
        ours = speeds["stage"] * len(DOMAINS)
        more["pairs_per_second"] = {"stage": round(ours, 1), "rectools_sasrec": round(theirs, 1)}
        more["times_rectools"] = round(ours / theirs, 2)
    return {
        "benchmark": "score",
        **settings,
        "users": int(first["users"]),
        "pairs": int(first["pairs"]),
        "seconds": [round(turn["seconds"], 2) for turn in found["stage"]],
        "users_per_second": {name: round(value, 1) for name, value in speeds.items()},
        "share_of_loop": round(speeds["stage"] / speeds["loop"], 3),
        "peak_pss_mib": max(int(turn["peak_bytes"]) for turn in found["stage"]) >> 20,
        **more,
        "cpus": os.cpu_count(),
    }


def config_of(folder: Path, data: Path, top_k: int) -> Config:
    """Return what a run on made-up data is configured by, with a backbone of random weights."""
    return Config.model_validate(
        {
            "run_id": RUN,
            "data": {"events": str(data / "events"), "items": str(data / "items")},
            "storage": {"root": str(folder / "store")},
            "model": {"backbone": make_backbone(folder / "backbone")},
            "train": {"epochs": 1, "max_steps": 20},
            "score": {"top_k": top_k},
        }
    )


def _recommend(folder: Path, events: int, items: int, top_k: int) -> float:
    """Return the users/s of RecTools' SASRec, of the same width and depth, on one domain."""
    data = ensure_data(folder, events, items, DOMAINS[:1])
    settings = TRAIN_SETTINGS | {"epochs": 1, "recommend": top_k}
    found = run_peer("sasrec.py", settings | {"events": str(data / "events")})
    return float(found["users"] / found["recommend_seconds"])


def score_the_changed(config: Config, model: str, events: str) -> dict[str, float]:
    """Publish the first round's lists, then score who has new events."""
    from crossrec.publish import publish
    from crossrec.score.pipeline import score

    start_ray()
    store = Store(config.storage.root)
    full = config.model_copy(update={"run_id": "round-0"})
    publish(full, store)
    data = config.data.model_copy(update={"events": events})
    settings = config.score.model_copy(update={"model": model, "mode": "incremental"})
    night = config.model_copy(update={"run_id": "increment", "data": data, "score": settings})
    prepared = prepare(night, store)
    summary = score(night, store)
    ray.shutdown()
    return {
        "prepare_seconds": prepared["seconds"],
        "seconds": summary["streaming_seconds"],
        "users": summary["users"],
    }


def start_ray() -> None:
    """Start a Ray on this machine, as a job does."""
    start_logging()
    ray.init(
        num_cpus=max(LOGICAL_CPUS, os.cpu_count() or 1),
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
    )


def train(config: Config) -> str:
    """Prepare, train for a few steps, and return the model's id."""
    start_ray()
    store = Store(config.storage.root)
    prepare(config, store)
    model: str = finetune(config, store)["model"]
    use_the_sequence(store, model)
    ray.shutdown()
    return model.removeprefix("models/")


def use_the_sequence(store: Store, model: str) -> float:
    """Give the sequence weight: few steps earn it none, and scoring would go without it."""
    fusions = load_fusions(store, model)
    with torch.no_grad():
        fusions["model"].sequence.fill_(SEQUENCE)
    save_fusions(store, model, fusions)
    write_checksums(store, model)
    return SEQUENCE


def score_on_ray(config: Config, model: str, run_id: str) -> dict[str, float]:
    """Run the stage with a model; return users, pairs, seconds and peak bytes."""
    from crossrec.score.pipeline import score

    start_ray()
    store = Store(config.storage.root)
    chosen = config.score.model_copy(update={"model": model})
    config = config.model_copy(update={"run_id": run_id, "score": chosen})
    prepare(config, store)
    with MemoryPeak() as memory:
        summary = score(config, store)
    ray.shutdown()
    facts = {name: summary[name] for name in ("users", "pairs", "streaming_seconds")}
    facts["seconds"] = facts.pop("streaming_seconds")
    return facts | {"peak_bytes": memory.peak_bytes}


def loop_of(config: Config, model: str, run_id: str) -> Loop:
    """Return a loop over what a run that scored with a model has left."""
    named = config.model_copy(update={"run_id": run_id})
    return Loop.of(named, f"models/{model}", f"runs/{run_id}/items")


def _score_in_a_loop(config: Config, model: str, run_id: str) -> dict[str, float]:
    loop = loop_of(config, model, run_id)
    began = time.perf_counter()
    for histories in loop.histories:
        loop.score(histories)
    return {"users": loop.users, "seconds": time.perf_counter() - began}


def _explain_in_a_loop(config: Config, model: str, n: int) -> float:
    """Return how many times as long as scoring alone scoring with reasons takes.

    The median over buckets, each scored, then explained.
    """
    loop = loop_of(config, model, "round-0")
    times = []
    for histories in loop.histories:
        began = time.perf_counter()
        lists = loop.score(histories)
        scored = time.perf_counter()
        find_reasons(loop.scorer, histories, loop.day, lists, n)
        times.append((time.perf_counter() - began) / (scored - began))
    return round(statistics.median(times), 2)
