"""What steering lists costs: the hold-out judged at several values of control and diversity.

    runs/<run_id>/steering/<digest>/<setting>/domain=<d>/*.parquet     lists

    metrics["steering"] = judge_steering(config, job, holdout, truth, items)
    {"k": 10, "published": {"popularity_control": 0.5, "diversity": 0.0}, "settings": [S, ...]}
    S = {"popularity_control": 0.5, "diversity": 0.0, "ndcg@10", "hr@10", "coverage@10", "gini@10",
         "novelty@10", "distance@10", "cost": {"pairs", "difference", "low", "high", "better"},
         "domain": {"shop": {"coverage@10", "gini@10", "novelty@10", "distance@10"}, ...}}

The first setting is that of lists by score alone, which all other figures of metrics.json are
about. cost: its NDCG minus the setting's, with a paired interval. What lists show is measured by
domain; the figures of all are the domains' means. Prices are found on what was known before the
hold-out.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from crossrec.config import Config
from crossrec.evaluate.bootstrap import compare
from crossrec.evaluate.exposure import measure_distance, measure_exposure
from crossrec.evaluate.holdout import Holdout, score_lists
from crossrec.evaluate.judged import MODEL
from crossrec.evaluate.lists import files_of, read_lists, with_domains
from crossrec.evaluate.metrics import find_ranks, measure_pairs, number_users
from crossrec.evaluate.truth import KnownItems
from crossrec.score.bucket import ScoreJob
from crossrec.score.catalogue import load_items
from crossrec.score.prices import write_prices
from crossrec.score.steering import Steering

Array = np.ndarray

VALUES = (0.25, 0.5, 0.75, 1.0)
"""Beside 0, of each dial."""


def asked_settings(config: Config) -> list[Steering]:
    """Return the settings to judge beside lists by score alone, those of the config last."""
    settings = []
    if config.evaluate.steering:
        settings += [Steering(popularity_control=value) for value in VALUES]
        settings += [Steering(diversity=value) for value in VALUES]
    own = _judged(config)
    return list(dict.fromkeys([*settings, *([own] if own.is_on else [])]))


def _judged(config: Config) -> Steering:
    """Return the config's dials: editors' rules are the night's, and not judged."""
    return replace(Steering.of(config.score), is_edited=False)


def judge_steering(
    config: Config, job: ScoreJob, holdout: Holdout, truth: pa.Table, items: KnownItems, k: int = 10
) -> dict[str, Any] | None:
    """Write lists of all settings on an initialised Ray, and judge them; None if none are asked.

    Args:
        config: of the run.
        job: that made the lists of the hold-out, by score alone.
        holdout: the hold-out.
        truth: of the hold-out.
        items: what was known of the catalogue.
        k: only the first k of a list count.
    """
    settings = asked_settings(config)
    if not settings:
        return None
    names = {_name(setting): setting for setting in settings}
    # By the settings, so that a rerun with others does not take these lists for its own.
    digest = hashlib.sha256(json.dumps(list(names)).encode()).hexdigest()[:8]
    folder = f"runs/{config.run_id}/steering/{digest}"
    outputs = {name: f"{folder}/{name}" for name in names}
    steered = replace(job, outputs=outputs, done=f"{folder}/done", steered=names)
    if any(setting.popularity_control for setting in settings):
        write_prices(steered)
    score_lists(steered, holdout.buckets, config.score.num_actors)
    files = files_of(steered, holdout.buckets)
    files = {MODEL: files_of(job, holdout.buckets)[MODEL], **files}
    texts_IW = load_items(job.store, job.prepared, job.items).state.texts_IW.numpy()
    found: list[dict[str, Any]] = []
    ndcg: dict[str, Array] = {}
    users = np.zeros(0, np.int64)
    for name, paths in files.items():
        lists = read_lists(job.store, paths, items.names)
        pairs = measure_pairs(find_ranks(truth, with_domains(lists), k), [k])
        ndcg[name], users = pairs[f"ndcg@{k}"].to_numpy(), number_users(pairs)
        setting = names.get(name, Steering())
        measured = {
            measure: round(float(pairs[measure].to_numpy().mean()), 5) if len(pairs) else None
            for measure in (f"ndcg@{k}", f"hr@{k}")
        }
        domains = measure_lists(lists, items, texts_IW, k)
        found.append(
            {**setting.public(), **measured, **_means(list(domains.values())), "domain": domains}
        )
    costs = compare(ndcg[MODEL], {name: ndcg[name] for name in names}, users)
    for part, name in zip(found[1:], names, strict=True):
        part["cost"] = costs.get(name)
    return {"k": k, "published": _judged(config).public(), "settings": found}


def measure_lists(
    lists: dict[str, pa.Table], items: KnownItems, texts_IW: Array, k: int
) -> dict[str, dict[str, float | None]]:
    """Return what the lists of each domain show, and how much their items differ."""
    found = {}
    for name, (start, stop) in zip(items.names, items.bounds, strict=True):
        ids, events = items.item_ids[start:stop], items.events[start:stop]
        found[name] = measure_exposure(lists[name], ids, events, k)
        found[name] |= measure_distance(lists[name], ids, texts_IW[start:stop], k)
    return found


def _means(parts: Sequence[dict[str, float | None]]) -> dict[str, float | None]:
    """Return the mean over domains of each measure; of those that have it."""
    means: dict[str, float | None] = {}
    for name in parts[0]:
        values = [value for part in parts if (value := part[name]) is not None]
        means[name] = round(float(np.mean(values)), 5) if values else None
    return means


def _name(setting: Steering) -> str:
    """Return the name of a setting's folder.

    >>> _name(Steering(popularity_control=0.5))
    'control-0.5-diversity-0'
    """
    return f"control-{setting.popularity_control:g}-diversity-{setting.diversity:g}"
