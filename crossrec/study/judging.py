"""Train a model of a study and judge the lists that it makes of the hold-out.

runs/<run_id>/study/<model>-<digest>/result.json   written last: a rerun does what is missing

result = train_and_score(config, store, holdout, folder)
pairs = measure(store, truth, result["files"], holdout)
"""

import time
from collections.abc import Sequence
from typing import Any

import polars as pl
import pyarrow as pa

from crossrec.config import Config
from crossrec.evaluate.holdout import Holdout, Lists, score_holdout
from crossrec.evaluate.lists import files_of, read_lists, with_domains
from crossrec.evaluate.metrics import find_ranks, measure_pairs
from crossrec.evaluate.pipeline import K
from crossrec.storage import Store
from crossrec.train.continued import Start
from crossrec.train.launch import Folders, train_models


def train_and_score(
    config: Config,
    store: Store,
    holdout: Holdout,
    folder: str,
    beside: Sequence[str] = (),
    start: Start | None = None,
) -> dict[str, Any]:
    """Train a model and score the hold-out with it, unless that is done.

    Args:
        config: of the training.
        store: of the run.
        holdout: as the model sees it.
        folder: where to.
        beside: other systems of `score.catalogue` that need no training.
        start: a model to go on from; without it training begins at the start.

    Returns:
        seconds: of the training. trained: weights that learned. items_read: times that an item
        went through a backbone that learns. files: paths of the model's lists. beside: those of
        the others.
    """
    if not store.exists(f"{folder}/result.json"):
        began = time.perf_counter()
        folders = Folders(f"{folder}/train", f"{folder}/selected")
        curve = train_models(config, store, holdout.whole, folders, start)["training"]["curve"]
        seconds = time.perf_counter() - began
        outputs = {"model": f"{folder}/holdout"} | {name: f"{folder}/{name}" for name in beside}
        job = score_holdout(config, store, holdout, Lists(folders.selected, outputs, folder))
        files = files_of(job, holdout.buckets)
        result = {
            "seconds": round(seconds, 2),
            "trained": curve[0]["trained"],
            "items_read": sum(point.get("items_read", 0) for point in curve),
            "files": files.pop("model"),
            "beside": files,
        }
        store.write_json(f"{folder}/result.json", result)
    found: dict[str, Any] = store.read_json(f"{folder}/result.json")
    return found


def measure(store: Store, truth: pa.Table, paths: Sequence[str], holdout: Holdout) -> pl.DataFrame:
    """Return a row a pair of the truth: user_id, domain, events_in_domain, ndcg@K, hr@K."""
    names = [domain.name for domain in holdout.known.domains]
    lists = with_domains(read_lists(store, paths, names))
    ranked = find_ranks(truth, lists, K)
    events = ranked.unique("pair", keep="first", maintain_order=True)["events_in_domain"]
    return measure_pairs(ranked, [K]).with_columns(events)
