"""Stage 4 at other sizes: many times the users, a kill half way, a 1 % night; very many items."""

import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from crossrec.bench.data import DOMAINS, ensure_data, ensure_more_events, run_apart
from crossrec.bench.score import config_of, score_on_ray, score_the_changed, train
from crossrec.config import Config
from crossrec.storage import Store

POLL_S = 0.5


def bench_scale(folder: Path, settings: dict[str, int], changed: float) -> dict[str, Any]:
    """Score few and many users of the same items with one model; return how they compare.

    Args:
        folder: for data and results.
        settings: of data.SCALE_SETTINGS. The run that is killed and run again is that of `events`.
        changed: share of the larger size's users who have a new event when an incremental night
            comes; 0: none does.
    """
    sizes = {name: settings[name] for name in ("events", "larger") if settings[name]}
    data = {name: ensure_data(folder, size, settings["items"]) for name, size in sizes.items()}
    shutil.rmtree(folder / "store", ignore_errors=True)
    configs = {name: config_of(folder, data[name], settings["top_k"]) for name in sizes}
    model = run_apart(train, configs["events"])
    whole = run_apart(score_on_ray, configs["events"], model, "whole")
    done, again = _killed_half_way(configs["events"], model)
    found: dict[str, Any] = {
        "benchmark": "scale",
        **settings,
        "smaller_run": _figures(whole),
        "rerun": {
            "done_before": done,
            "seconds": round(again["seconds"], 2),
            "of_the_whole": round(again["seconds"] / whole["seconds"], 3),
        },
        "cpus": os.cpu_count(),
    }
    if "larger" in sizes:
        larger = run_apart(score_on_ray, configs["larger"], model, "round-0")
        found["larger_run"] = _figures(larger)
        speeds = [turn["users"] / turn["seconds"] for turn in (larger, whole)]
        found["larger_over_smaller"] = {
            "users_per_second": round(speeds[0] / speeds[1], 3),
            "peak_memory": round(larger["peak_bytes"] / whole["peak_bytes"], 3),
        }
        if changed:
            newer = ensure_more_events(data["larger"], sizes["larger"], changed)
            night = run_apart(score_the_changed, configs["larger"], model, str(newer))
            share = night["seconds"] / larger["seconds"]
            found["incremental"] = {**night, "of_the_full": round(share, 3)}
    return found


def bench_catalogue(folder: Path, settings: dict[str, int]) -> dict[str, Any]:
    """Score users of one domain of very many items; return speed and memory.

    The model is trained on a hundredth of the items: to the others it is a night of new ones.
    """
    few = ensure_data(folder, settings["events"], max(settings["items"] // 100, 1), DOMAINS[:1])
    many = ensure_data(folder, settings["events"], settings["items"], DOMAINS[:1])
    shutil.rmtree(folder / "store", ignore_errors=True)
    model = run_apart(train, config_of(folder, few, settings["top_k"]))
    config = config_of(folder, many, settings["top_k"])
    turn = run_apart(score_on_ray, config, model, "whole")
    return {"benchmark": "catalogue", **settings, **_figures(turn), "cpus": os.cpu_count()}


def _figures(turn: dict[str, float]) -> dict[str, float]:
    return {
        "users": int(turn["users"]),
        "seconds": round(turn["seconds"], 2),
        "users_per_second": round(turn["users"] / turn["seconds"], 1),
        "peak_pss_mib": int(turn["peak_bytes"]) >> 20,
    }


def _killed_half_way(config: Config, model: str) -> tuple[int, dict[str, float]]:
    """Kill driver and Ray when half of the buckets are done; return how many, and the rerun."""
    store, run = Store(config.storage.root), "killed"
    process = multiprocessing.get_context("spawn").Process(
        target=_in_a_group, args=(config, model, run)
    )
    process.start()
    done = 0
    while process.is_alive():
        time.sleep(POLL_S)
        done = len(store.list(f"runs/{run}/done"))
        if done and 2 * done >= store.read_json(f"runs/{run}/prepare.json")["buckets"]:
            os.killpg(process.pid or 0, signal.SIGKILL)
    process.join()
    return done, run_apart(score_on_ray, config, model, run)


def _in_a_group(config: Config, model: str, run_id: str) -> None:
    os.setsid()
    score_on_ray(config, model, run_id)
