"""Stage 3, evaluate: judge the hold-out on lists that the scoring code and the baselines wrote.

runs/<run_id>/holdout/domain=<d>/*.parquet              the model's lists
runs/<run_id>/baselines/<system>/domain=<d>/*.parquet   the other systems' lists
runs/<run_id>/sample.json                               users that a person may look at
runs/<run_id>/calibration/domain=<d>/*.parquet          those of all users: are probabilities true?
runs/<run_id>/steering/*/*/domain=<d>/*.parquet         those at other settings of `score`
runs/<run_id>/metrics.json, report.html

metrics = evaluate(config, store)
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from crossrec.config import Config
from crossrec.data.histories import open_prepared
from crossrec.evaluate.baselines import BaselineJob, run_baselines
from crossrec.evaluate.bootstrap import compare
from crossrec.evaluate.calibration import judge_calibration
from crossrec.evaluate.exposure import measure_exposure
from crossrec.evaluate.faithful import judge_reasons
from crossrec.evaluate.groupcolumns import judge_asked_groups
from crossrec.evaluate.holdout import (
    LIST_LENGTH,
    Holdout,
    Lists,
    open_holdout,
    score_holdout,
    score_lists,
)
from crossrec.evaluate.judged import FULL_ENCODER, MODEL, PUBLISHED, best_baseline, ndcg_of
from crossrec.evaluate.lists import files_of, read_lists, with_domains
from crossrec.evaluate.metrics import (
    KS,
    find_ranks,
    judge_ranked,
    measure_pairs,
    number_users,
)
from crossrec.evaluate.ratings import judge_ratings
from crossrec.evaluate.report import render_report
from crossrec.evaluate.sample import sample_users
from crossrec.evaluate.steering import judge_steering
from crossrec.evaluate.truth import KnownItems
from crossrec.model.checkpoint import load_fusions
from crossrec.model.fusion import WITHOUT_RELATIONS
from crossrec.published import find_published
from crossrec.runlog import stage
from crossrec.schema import DOMAIN, USER_ID
from crossrec.score.bucket import ScoreJob
from crossrec.score.catalogue import HOLDOUT
from crossrec.storage import Store

K = 10
"""The k of the report's verdict, of the comparisons, and of what lists show of the catalogue."""

SAMPLE = "sample.json"

K_COLD = 50
"""The k at which systems are compared on new items, of which few are among the first."""


def evaluate(config: Config, store: Store) -> dict[str, Any]:
    """Run the stage on an initialised Ray; return what metrics.json holds."""
    run = f"runs/{config.run_id}"
    with stage("evaluate") as facts:
        summary = store.read_json(f"{run}/prepare.json")
        prepared = open_prepared(store, summary["prepared"])
        finetuned = store.read_json(f"{run}/finetune.json")
        holdout = open_holdout(config, prepared, finetuned["days"])
        lists = run_lists(config, store, finetuned["selected"])
        job = score_holdout(config, store, holdout, lists)
        records = run_baselines(_baseline_job(config, store, holdout, f"{run}/baselines"))
        files = files_of(job, holdout.buckets) | {
            name: [file["path"] for file in record["files"]] for name, record in records.items()
        }
        files |= whole_lists(config, holdout, job)
        files |= _published_lists(config, store, holdout, finetuned["selected"])
        items = holdout.known_items(store)
        truth = holdout.truth(store, items)
        metrics = {
            "run_id": config.run_id,
            "k": K,
            "ks": list(KS),
            "protocol": config.evaluate.protocol,
            "holdout": _describe(truth, holdout),
            **judge_systems(store, truth, files, items),
            **judge_scores(config, job, holdout, truth),
            "steering": judge_steering(config, job, holdout, truth, items),
            "groups": _judge_groups(config, store, truth, files[MODEL], items),
            **({"explanations": judge_reasons(job, holdout)} if job.explain else {}),
            "baselines": {name: {"seconds": record["seconds"]} for name, record in records.items()},
            "training": finetuned["training"]
            | {name: finetuned[name] for name in ("adapt", "fusion")},
            "model": {
                "id": finetuned["model"].rsplit("/", 1)[1],
                "backbone": config.model.backbone,
            },
            "data": summary,
        }
        store.write_json(f"{run}/{SAMPLE}", sample_users(job, truth, holdout.buckets))
        write_report(metrics, store)
        best = metrics["systems"]["model"]["all"] or {}
        facts |= {"pairs": metrics["holdout"]["pairs"], "ndcg@10": best.get("ndcg@10")}
        if (baseline := best_baseline(metrics)) is not None:
            reached = ndcg_of(metrics, baseline)
            facts["baseline"] = {"best_baseline": baseline, "best_baseline_ndcg@10": reached}
        facts["report"] = store.uri(f"{run}/report.html")
    return metrics | {"seconds": facts["seconds"]}


def _judge_groups(
    config: Config, store: Store, truth: pa.Table, paths: Sequence[str], items: KnownItems
) -> list[dict[str, Any]]:
    """Return the figures of the model's lists by the columns of `evaluate.groups`."""
    asked = config.evaluate.groups
    if not (asked.items or asked.users):
        return []
    lists = read_lists(store, paths, items.names)
    ranked = find_ranks(truth, with_domains(lists), K)
    return judge_asked_groups(config, store, ranked, lists, items)


def judge_scores(
    config: Config, job: ScoreJob, holdout: Holdout, truth: pa.Table
) -> dict[str, Any]:
    """Return how true the scores are, where they have a unit of their own.

    Args:
        config: of the run.
        job: that made the lists of the hold-out.
        holdout: the hold-out.
        truth: of the hold-out.

    Returns:
        ratings: what `judge_ratings` returns, of a model of ratings. calibration: what
        `judge_calibration` returns, where scores are probabilities. Else nothing.
    """
    if job.store.read_json(f"{job.model}/config.json")["ratings"]:
        return {"ratings": judge_ratings(job, holdout)}
    # Without a link, as where nobody did anything new, scores are published as they are.
    if load_fusions(job.store, job.model)["model"].has_link:
        folder = f"runs/{config.run_id}/calibration"
        found = judge_calibration(job, holdout, truth, folder, config.score.num_actors)
        return {"calibration": found}
    return {}


def run_lists(config: Config, store: Store, selected: str) -> Lists:
    """Return where a run's lists of its hold-out go; without relations too, where it has some."""
    run = f"runs/{config.run_id}"
    folder = f"{run}/baselines"
    more = {WITHOUT_RELATIONS} & set(load_fusions(store, selected))
    outputs = {name: f"{folder}/{name}" for name in (*HOLDOUT, *more)}
    outputs["model"] = f"{run}/holdout"
    return Lists(selected, outputs, folder, config.score.explain)


def whole_lists(config: Config, holdout: Holdout, job: ScoreJob) -> dict[str, list[str]]:
    """Return the lists of the model with its own encoder, where `job` scored by the small one."""
    if job.encoder == "full":
        return {}
    folder = f"runs/{config.run_id}/baselines/{FULL_ENCODER}"
    done = f"{folder}-work/done"
    whole = replace(job, encoder="full", outputs={MODEL: folder}, done=done, explain=0)
    score_lists(whole, holdout.buckets, config.score.num_actors)
    return {FULL_ENCODER: files_of(whole, holdout.buckets)[MODEL]}


def _published_lists(
    config: Config, store: Store, holdout: Holdout, selected: str
) -> dict[str, list[str]]:
    """Return the lists that the published model would show, where it is another and can make them.

    It is the one that has seen nothing of its own night's hold-out, with what is known of items and
    users today.
    """
    published = find_published(config, store)
    domains = tuple(domain.name for domain in holdout.known.domains)
    if published is None or published.selected == selected or published.domains != domains:
        return {}
    folder = f"runs/{config.run_id}/baselines/{PUBLISHED}"
    lists = Lists(published.selected, {MODEL: folder}, f"{folder}-work")
    job = score_holdout(config, store, holdout, lists)
    return {PUBLISHED: files_of(job, holdout.buckets)[MODEL]}


def write_report(metrics: dict[str, Any], store: Store) -> None:
    """Write metrics.json, and the page that shows them with the run's sample of users."""
    run = f"runs/{metrics['run_id']}"
    store.write_json(f"{run}/metrics.json", metrics)
    page = render_report(metrics, store.read_json(f"{run}/{SAMPLE}"))
    store.write_bytes(f"{run}/report.html", page.encode())


def _baseline_job(config: Config, store: Store, holdout: Holdout, folder: str) -> BaselineJob:
    return BaselineJob(
        store,
        holdout.known,
        holdout.start,
        holdout.active_until,
        holdout.buckets,
        LIST_LENGTH,
        config.seed,
        folder,
    )


def judge_systems(
    store: Store, truth: pa.Table, files: dict[str, list[str]], items: KnownItems
) -> dict[str, Any]:
    """Judge all systems alike, and compare the model with each of the others.

    Args:
        store: of the run.
        truth: of the hold-out.
        files: paths of each system's lists; "model" must be among them.
        items: what was known of the catalogue when the lists were made.

    Returns:
        systems: by name what `judge_ranked` returns, and `lists` by domain what `measure_exposure`
        returns. comparison: by name what `compare` returns for NDCG@K. comparison_by_domain: the
        same in each domain. comparison_cold_item: the same of the untrained backbone for HR@K_COLD
        on new items.
    """
    systems: dict[str, Any] = {}
    ndcg: dict[str, np.ndarray] = {}
    cold_hr: dict[str, np.ndarray] = {}
    users = cold_users = np.zeros(0, np.int64)
    domains = np.zeros(0, str)
    for name, paths in files.items():
        lists = read_lists(store, paths, items.names)
        ranked = find_ranks(truth, with_domains(lists), max(KS))
        systems[name] = judge_ranked(ranked) | {"lists": _measure_lists(lists, items)}
        pairs = measure_pairs(ranked, [K])
        ndcg[name], users = pairs[f"ndcg@{K}"].to_numpy(), number_users(pairs)
        domains = pairs[DOMAIN].to_numpy()
        if name in ("model", "untrained_backbone"):
            pairs = measure_pairs(ranked.filter("is_cold_item"), [K_COLD])
            cold_hr[name], cold_users = pairs[f"hr@{K_COLD}"].to_numpy(), number_users(pairs)
    return {
        "systems": systems,
        "comparison": compare_model(ndcg, users),
        "comparison_by_domain": {
            domain: compare_model(
                {name: values[domains == domain] for name, values in ndcg.items()},
                users[domains == domain],
            )
            for domain in np.unique(domains).tolist()
        },
        "comparison_cold_item": compare_model(cold_hr, cold_users),
    }


def compare_model(measured: dict[str, np.ndarray], users: np.ndarray) -> dict[str, Any]:
    """Return what `compare` says of "model" beside the other systems."""
    others = {name: values for name, values in measured.items() if name != "model"}
    return compare(measured["model"], others, users)


def _measure_lists(lists: dict[str, pa.Table], items: KnownItems) -> dict[str, Any]:
    """Return what the lists show of each domain's catalogue."""
    found = {}
    for name, (start, stop) in zip(items.names, items.bounds, strict=True):
        ids, events = items.item_ids[start:stop], items.events[start:stop]
        found[name] = measure_exposure(lists[name], ids, events, K)
    return found


def _describe(truth: pa.Table, holdout: Holdout) -> dict[str, Any]:
    first, end = (
        dt.date(1970, 1, 1) + dt.timedelta(days=int(day)) for day in (holdout.start, holdout.stop)
    )
    users = truth.select([USER_ID]).group_by(USER_ID).aggregate([])
    pairs = truth.select([USER_ID, DOMAIN]).group_by([USER_ID, DOMAIN]).aggregate([])
    return {
        "start": first.isoformat(),
        "stop": end.isoformat(),
        "days": holdout.stop - holdout.start,
        "users": users.num_rows,
        "pairs": pairs.num_rows,
    }
