"""What cheaper inference costs: quality beside pairs/s and bytes, a row a way of scoring.

In: a run that was fine-tuned, or none: then a small night of demo data is trained. Out:

    {"rows": [{"row": "int8", "ndcg@10", "recall", "lowest_recall", "pairs_per_second", "times",
      "matrix_mib", "encoder_mib"}, ...], "share_of_encoder", "compiling_seconds", ...}

Each bucket of the night's users is scored by turns, in one thread; seconds are those of the
processor, which other work on the machine moves little. Rates are medians over rounds, times those
over buckets and rounds. ndcg@10: of the hold-out, by the model that has not seen it. recall: of the
items of the default's lists, those that are in these, over all users; lowest_recall: of the worst
list. matrix_mib: of the texts and vectors by which the best items are found.
"""

import os
import shutil
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from crossrec.bench.data import run_apart
from crossrec.bench.loop import Loop
from crossrec.bench.score import start_ray, use_the_sequence
from crossrec.config import Config
from crossrec.data.histories import open_prepared, read_item_ids
from crossrec.data.prepare import prepare
from crossrec.data.replay import slice_users
from crossrec.data.source import resolve_input
from crossrec.evaluate.holdout import LIST_LENGTH, open_holdout
from crossrec.evaluate.lists import with_domains
from crossrec.evaluate.metrics import find_ranks, judge_ranked
from crossrec.model import newest
from crossrec.model.checkpoint import Encoder, encoder_of, load_fusions
from crossrec.model.inference import user_queries
from crossrec.runlog import log
from crossrec.schema import USER_ID
from crossrec.score.catalogue import build_items, has_items
from crossrec.score.lists import Lists, to_table
from crossrec.score.narrow import Precision
from crossrec.score.scorer import USERS_A_BATCH
from crossrec.storage import Store
from crossrec.train.distil import distil
from crossrec.train.launch import finetune

RUN = "price"
K = 10


class Row(NamedTuple):
    """A way of scoring; the first of ROWS is the default."""

    name: str
    precision: Precision = "fp32"
    encoder: Encoder = "full"
    is_compiled: bool = False


ROWS = (
    Row("fp32"),
    Row("bf16", "bf16"),
    Row("int8", "int8"),
    Row("small encoder", encoder="small"),
    Row("compiled encoder", is_compiled=True),
    Row("int8, small encoder", "int8", "small"),
)


def bench_price(
    folder: Path, rounds: int, users: int, epochs: int, run: tuple[str, str] | None = None
) -> dict[str, Any]:
    """Train a night of demo data, unless a run is given, and score it in each way, in one process.

    Args:
        folder: for data and results.
        rounds: turns of each way.
        users: of the demo data.
        epochs: of the training.
        run: root and run_id of a night that went through score; rows of the small encoder are
            there if it was one with score.encoder=small and its sequence has weight.
    """
    given = None
    if run is None:
        config = demo_night(folder, users, epochs)
        given = run_apart(make_night, config)
    else:
        root, run_id = run
        said = Store(root).read_json(f"runs/{run_id}/plan.json")["config"]
        said["storage"] = {"root": root}
        config = Config.model_validate(said)
    found: dict[str, Any] = run_apart(compare, config, rounds)
    return {"benchmark": "price", "rounds": rounds, "weight_given_to_sequence": given, **found}


def demo_night(folder: Path, users: int, epochs: int) -> Config:
    """Return the config of a night of demo data, as jobs/configs/demo.yaml but for its size."""
    return Config.model_validate(
        {
            "run_id": RUN,
            "data": {"demo_users": users},
            "storage": {"root": str(folder / "store")},
            "model": {"width": 64},
            "train": {"epochs": epochs, "negatives": 512},
        }
    )


def make_night(config: Config) -> float | None:
    """Train, distil and write the item sides; return the weight that the sequence had to be given.

    On some data it earns none: then the model's encoder would say nothing.
    """
    start_ray()
    store = Store(config.storage.root)
    config = resolve_input(config, store)
    prepare(config, store)
    trained = finetune(config, store)
    models, days = [trained["selected"], trained["model"]], trained["days"]
    given = None
    if not load_fusions(store, trained["model"])["model"].sequence:
        given = max(use_the_sequence(store, model) for model in models)
    prepared = open_prepared(store, store.read_json(f"runs/{RUN}/prepare.json")["prepared"])
    until = dict(zip(models, (days["valid"], days["night"]), strict=True))
    distil(store, prepared, until, config.seed)
    for model, day, where in zip(
        models, (days["holdout"], days["night"]), _sides(RUN), strict=True
    ):
        if not has_items(store, where):
            build_items(store, prepared, model, day, ("model",), where)
    return given


def _sides(run_id: str) -> tuple[str, str]:
    """Return the folders of the item sides of the hold-out and of the night."""
    return f"runs/{run_id}/baselines/items", f"runs/{run_id}/items"


@dataclass
class Way:
    """A row at work: on the night's users, and on those of the hold-out; what was found."""

    row: Row
    night: Loop
    holdout: Loop
    seconds: list[list[float]]
    recall: list[np.ndarray]
    encode: Any

    def score(self, bucket: int) -> dict[str, Lists]:
        """Return the night's lists of a bucket by domain."""
        newest._encode = self.encode
        return self.night.score(self.night.histories[bucket])


def compare(config: Config, rounds: int) -> dict[str, Any]:
    """Score all buckets in each way, `rounds` times by turns; return the module's head."""
    torch.set_num_threads(1)  # as many as a scoring actor has on a CPU
    plain = newest._encode
    ways = open_ways(config, {False: plain, True: torch.compile(plain, dynamic=True)})
    compiling = 0.0
    for way in ways:
        began = time.perf_counter()
        way.score(0)
        if way.row.is_compiled:
            # By a compiler, in processes of its own.
            compiling = time.perf_counter() - began
    for _ in range(rounds):
        for way in ways:
            way.seconds.append([])
        for bucket in range(len(ways[0].night.histories)):
            exact: dict[str, Lists] = {}
            for way in ways:
                began = time.process_time()
                found = way.score(bucket)
                way.seconds[-1].append(time.process_time() - began)
                exact = exact or found
                way.recall += [recall(exact[name], found[name]) for name in exact]
    newest._encode = plain
    whole = statistics.median(map(sum, ways[0].seconds))
    share = (_ask(ways[0].night) - _ask(ways[0].night, with_sequence=False)) / whole
    return {
        "users": ways[0].night.users,
        "holdout_users": ways[0].holdout.users,
        "share_of_encoder": round(share, 4),
        "compiling_seconds": round(compiling, 1),
        "rows": [_judge(config, way, ways[0]) for way in ways],
    }


def open_ways(config: Config, encodes: dict[bool, Any]) -> list[Way]:
    """Return the rows that the run's models can be scored by; encodes: plain and compiled."""
    store = Store(config.storage.root)
    trained = store.read_json(f"runs/{config.run_id}/finetune.json")
    selected, model = trained["selected"], trained["model"]
    ways = []
    for row in ROWS:
        if encoder_of(store, model, row.encoder) != row.encoder:
            continue
        if row.is_compiled and shutil.which(os.environ.get("CXX", "g++")) is None:
            log.warning("price: %s is left out, torch.compile needs a C++ compiler", row.name)
            continue
        of_holdout, of_night = _sides(config.run_id)
        scored_by = row.precision, row.encoder
        night = Loop.of(config, model, of_night, scored_by)
        days = trained["days"]["holdout"], trained["days"]["night"]
        holdout = Loop.of(config, selected, of_holdout, scored_by, days)
        ways.append(Way(row, night, holdout, [], [], encodes[row.is_compiled]))
    return ways


def recall(exact: Lists, found: Lists) -> np.ndarray:
    """Return the share of each list's items that another holds, (users,).

    >>> exact, found = (
    ...     Lists(np.array([rows]), np.zeros((1, 3))) for rows in ([4, 2, -1], [2, 9, 5])
    ... )
    >>> recall(exact, found).tolist()  # 2 of 4 and 2
    [0.5]
    """
    is_there = (exact.rows[:, :, None] == found.rows[:, None, :]).any(2) & (exact.rows >= 0)
    share: np.ndarray = is_there.sum(1) / np.maximum((exact.rows >= 0).sum(1), 1)
    return share


def _judge(config: Config, way: Way, default: Way) -> dict[str, Any]:
    """Return a row of the table."""
    scorer = way.night.scorer
    narrowed = [part.bytes for part in scorer.narrowed if part is not None]
    exact = (part.nbytes for part in (scorer.state.texts_IW, scorer.state.vectors_IW))
    encoder = sum(part.nbytes for part in scorer.recommender.encoder.parameters())
    pairs = way.night.users * len(way.night.wanted)
    turns = [
        one / own
        for ones, owns in zip(default.seconds, way.seconds, strict=True)
        for one, own in zip(ones, owns, strict=True)
    ]
    shares = np.concatenate(way.recall)
    newest._encode = way.encode
    return {
        "row": way.row.name,
        f"ndcg@{K}": round(ndcg(config, way.holdout), 5),
        "recall": round(float(shares.mean()), 6),
        "lowest_recall": round(float(shares.min()), 4),
        "pairs_per_second": round(pairs / statistics.median(map(sum, way.seconds)), 1),
        "times": round(statistics.median(turns), 3),
        "matrix_mib": round((sum(narrowed) or sum(exact)) / 2**20, 3),
        "encoder_mib": round(encoder / 2**20, 3),
    }


def ndcg(config: Config, loop: Loop) -> float:
    """Return NDCG@K of a loop's lists of the hold-out, by full ranking."""
    store = Store(config.storage.root)
    run = f"runs/{config.run_id}"
    prepared = open_prepared(store, store.read_json(f"{run}/prepare.json")["prepared"])
    days = store.read_json(f"{run}/finetune.json")["days"]
    holdout = open_holdout(config, prepared, days)
    truth = holdout.truth(store, holdout.known_items(store))
    tables: dict[str, list[pa.Table]] = {domain.name: [] for domain in prepared.domains}
    ids = {name: read_item_ids(store, prepared, name) for name in tables}
    for histories in loop.histories:
        for name, lists in loop.score(histories, LIST_LENGTH).items():
            table = to_table(histories.user_ids, lists, ids[name]).select([USER_ID, "item_ids"])
            tables[name].append(table)
    lists = with_domains({name: pa.concat_tables(parts) for name, parts in tables.items()})
    figures = judge_ranked(find_ranks(truth, lists, K), [K])["all"]
    return float(figures[f"ndcg@{K}"])


def _ask(loop: Loop, with_sequence: bool = True) -> float:
    """Return the seconds in which all users' queries are made."""
    scorer, began = loop.scorer, time.process_time()
    for bucket in loop.histories:
        for start in range(0, len(bucket.lengths), USERS_A_BATCH):
            part = slice_users(bucket, start, start + USERS_A_BATCH)
            known = scorer.recommender, scorer.state, part, scorer.bounds, loop.day
            user_queries(*known, with_sequence)
    return time.process_time() - began


def to_markdown(found: dict[str, Any]) -> str:
    """Return the rows as a table.

    >>> print(to_markdown({"rows": [{"row": "fp32", "times": 1.0}]}))
    | row | times |
    |---|---|
    | fp32 | 1.0 |
    """
    names = list(found["rows"][0])
    lines = [names, ["---"] * len(names), *(row.values() for row in found["rows"])]
    rows = ["| " + " | ".join(map(str, line)) + " |" for line in lines]
    rows[1] = "|" + "---|" * len(names)
    return "\n".join(rows)
