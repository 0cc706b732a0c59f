"""Measure a stage on made-up data of any size: seconds and peak memory, or speed beside a peer.

    python jobs/bench.py prepare --events 5000000
    python jobs/bench.py train --events 300000 --items 10000 --negatives 64
    python jobs/bench.py score --events 2000000 --items 75000 --changed 0.01 --peer_events 300000
    python jobs/bench.py scale --events 2577320 --larger 25773200 --changed 0.01
    python jobs/bench.py catalogue --items 10000000
    python jobs/bench.py price --users 1000 --epochs 5
    python jobs/bench.py topk --items 100000 --queries 10000

Peers (crossrec/bench/peers) run in an environment of their own, `.peers`, made where it is missing;
they and crossrec take turns. The last line of stdout is one JSON object.
"""

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")

from crossrec.bench.data import (
    CATALOGUE_SETTINGS,
    SCALE_SETTINGS,
    SCORE_SETTINGS,
    TOPK_SETTINGS,
    TRAIN_SETTINGS,
)


def main() -> None:
    """Parse the arguments, run one benchmark, print its JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    benchmarks = parser.add_subparsers(dest="benchmark", required=True)
    prepare = benchmarks.add_parser("prepare", help="stage 1: seconds, beside Polars")
    prepare.add_argument("--events", type=int, default=5_000_000, help="rows (5000000)")
    prepare.add_argument("--rounds", type=int, default=3, help="turns of each (3)")
    train = benchmarks.add_parser("train", help="stage 2: histories/s, beside RecTools' SASRec")
    train.add_argument("--events", type=int, default=300_000, help="rows (300000)")
    _add_settings(train, TRAIN_SETTINGS)
    train.add_argument("--rounds", type=int, default=3, help="turns of each (3)")
    train.add_argument("--workers", type=int, default=0, help="of one thread each (0: without)")
    score = benchmarks.add_parser("score", help="stage 4: users/s, beside a plain loop")
    _add_settings(score, SCORE_SETTINGS)
    score.add_argument("--changed", type=float, default=0, help="share of users with new events")
    score.add_argument("--peer_events", type=int, default=0, help="rows for RecTools (0: without)")
    score.add_argument("--explain", type=int, default=0, help="reasons an item (0: without)")
    scale = benchmarks.add_parser("scale", help="stage 4: two sizes, a kill, a night of changes")
    _add_settings(scale, SCALE_SETTINGS)
    scale.add_argument("--changed", type=float, default=0.01, help="share of users (0.01)")
    catalogue = benchmarks.add_parser("catalogue", help="stage 4 with very many items")
    _add_settings(catalogue, CATALOGUE_SETTINGS)
    price = benchmarks.add_parser("price", help="cheaper scoring: quality, pairs/s and bytes")
    price.add_argument("--rounds", type=int, default=3, help="turns of each (3)")
    price.add_argument("--users", type=int, default=1_000, help="of the demo data (1000)")
    price.add_argument("--epochs", type=int, default=5, help="of the training (5)")
    price.add_argument("--run", nargs=2, metavar=("ROOT", "RUN_ID"), help="a night that is there")
    topk = benchmarks.add_parser("topk", help="the kernel of stage 4, beside torch and faiss")
    _add_settings(topk, TOPK_SETTINGS)
    for benchmark in (prepare, train, score, scale, catalogue, price):
        benchmark.add_argument("--folder", help="for data and results; default: a temporary one")
    options = parser.parse_args()
    folder = Path(getattr(options, "folder", None) or tempfile.mkdtemp(prefix="crossrec-bench-"))
    try:
        print(json.dumps(run(options, folder)), flush=True)
    finally:
        if not getattr(options, "folder", None):
            shutil.rmtree(folder)


def _add_settings(parser: argparse.ArgumentParser, settings: dict[str, int]) -> None:
    for name, value in settings.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"({value})")


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run one benchmark; imports are here, because `--help` need not wait for Ray and torch."""

    def chosen(settings: dict[str, int]) -> dict[str, int]:
        return {name: getattr(options, name) for name in settings}

    if options.benchmark == "topk":
        from crossrec.bench.topk import bench_topk

        return bench_topk(**chosen(TOPK_SETTINGS))
    if options.benchmark == "prepare":
        from crossrec.bench.prepare import bench_prepare

        return bench_prepare(folder, options.events, options.rounds)
    if options.benchmark == "score":
        from crossrec.bench.score import bench_score

        more = options.changed, options.peer_events, options.explain
        return bench_score(folder, chosen(SCORE_SETTINGS), *more)
    if options.benchmark == "scale":
        from crossrec.bench.scale import bench_scale

        return bench_scale(folder, chosen(SCALE_SETTINGS), options.changed)
    if options.benchmark == "catalogue":
        from crossrec.bench.scale import bench_catalogue

        return bench_catalogue(folder, chosen(CATALOGUE_SETTINGS))
    if options.benchmark == "price":
        from crossrec.bench.price import bench_price, to_markdown

        made = options.rounds, options.users, options.epochs
        found = bench_price(folder, *made, options.run and tuple(options.run))
        print(to_markdown(found))
        return found
    from crossrec.bench.train import bench_train

    turns = options.rounds, options.workers
    return bench_train(folder, options.events, *turns, chosen(TRAIN_SETTINGS))


if __name__ == "__main__":
    main()
