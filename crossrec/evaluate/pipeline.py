"""Stage 3, evaluate: judge the hold-out on lists that the scoring code wrote.

runs/<run_id>/holdout/domain=<d>/*.parquet              the model's lists
runs/<run_id>/baselines/<system>/domain=<d>/*.parquet   the baselines' lists
runs/<run_id>/metrics.json, report.html

metrics = evaluate(config, store)
"""

import datetime as dt
from typing import Any

import numpy as np
import pyarrow as pa

from crossrec.config import Config
from crossrec.data.histories import Prepared, open_prepared, read_catalogue, read_histories
from crossrec.data.replay import before, flatten, load_activity, new_events
from crossrec.evaluate.metrics import judge
from crossrec.evaluate.report import render_report
from crossrec.evaluate.sample import sample_users
from crossrec.model.inference import domain_of_rows
from crossrec.runlog import stage
from crossrec.schema import DOMAIN, ITEM_ID, USER_ID, domain_folder
from crossrec.score.bucket import ScoreJob
from crossrec.score.catalogue import HOLDOUT, build_items
from crossrec.score.pipeline import new_places, score_buckets
from crossrec.storage import Store

MAX_USERS = 200_000
"""Users of the input among whom the hold-out is judged: more do not change the third digit of a
mean."""

LIST_LENGTH = 50
"""Items a judged list holds."""

K = 10


def evaluate(config: Config, store: Store) -> dict[str, Any]:
    """Run the stage on an initialised Ray; return what metrics.json holds."""
    run = f"runs/{config.run_id}"
    with stage("evaluate") as facts:
        summary = store.read_json(f"{run}/prepare.json")
        prepared = open_prepared(store, summary["prepared"])
        finetuned = store.read_json(f"{run}/finetune.json")
        start, stop = finetuned["days"]["holdout"], finetuned["days"]["night"]
        buckets = range(_buckets_to_judge(prepared))
        items = f"{run}/baselines/items"
        if not store.exists(f"{items}/systems.json"):
            build_items(store, prepared, finetuned["selected"], start, HOLDOUT, items)
        job = ScoreJob(
            store=store,
            prepared=prepared,
            model=finetuned["selected"],
            items=items,
            day=start,
            outputs={
                name: f"{run}/holdout" if name == "model" else f"{run}/baselines/{name}"
                for name in HOLDOUT
            },
            domains=tuple(domain.name for domain in prepared.domains),
            top_k=LIST_LENGTH,
            done=f"{run}/baselines/done",
            new_places=new_places(config, LIST_LENGTH),
            active_until=stop,
        )
        score_buckets(job, buckets, config.score.num_actors)
        truth = holdout_truth(store, prepared, buckets, start, stop)
        judged = {name: judge(truth, _read_lists(job, name, buckets), K) for name in HOLDOUT}
        metrics = {
            "run_id": config.run_id,
            "k": K,
            "holdout": _describe(truth, start, stop),
            "systems": judged,
            "training": finetuned["training"] | {"fusion": finetuned["fusion"]},
            "model": {
                "id": finetuned["model"].rsplit("/", 1)[1],
                "backbone": config.model.backbone,
            },
            "data": summary,
        }
        store.write_json(f"{run}/metrics.json", metrics)
        sample = sample_users(job, truth, buckets)
        store.write_bytes(f"{run}/report.html", render_report(metrics, sample).encode())
        best = judged["model"]["all"] or {}
        facts |= {"pairs": metrics["holdout"]["pairs"], "ndcg@10": best.get("ndcg@10")}
        facts["report"] = store.uri(f"{run}/report.html")
    return metrics | {"seconds": facts["seconds"]}


def _buckets_to_judge(prepared: Prepared) -> int:
    """Return how many buckets, each a random sample of users, hold about MAX_USERS."""
    return max(1, min(prepared.buckets, MAX_USERS * prepared.buckets // max(prepared.users, 1)))


def holdout_truth(
    store: Store, prepared: Prepared, buckets: range, start: int, stop: int
) -> pa.Table:
    """Return what known users did for the first time in days start..stop-1.

    Returns:
        user_id, domain, item_id, is_cold_item (no event of anybody before `start`),
        is_cold_in_domain (the user had no event in the domain before `start`).
    """
    is_warm = load_activity(store, prepared).counts(-(2**31), start) > 0
    names = [domain.name for domain in prepared.domains]
    bounds = [(domain.start, domain.stop) for domain in prepared.domains]
    item_ids = pa.concat_arrays(
        [read_catalogue(store, prepared, name)[ITEM_ID].combine_chunks() for name in names]
    )
    parts = []
    for bucket in buckets:
        histories = flatten(read_histories(store, prepared, bucket))
        users, rows = new_events(histories, start, stop)
        domains = domain_of_rows(rows, bounds)
        known = before(histories, start)
        had = np.unique(known.owners * len(bounds) + domain_of_rows(known.rows, bounds))
        parts.append(
            pa.table(
                {
                    USER_ID: histories.user_ids.take(pa.array(users)),
                    DOMAIN: pa.array(names).take(pa.array(domains)),
                    ITEM_ID: item_ids.take(pa.array(rows)),
                    "is_cold_item": ~is_warm[rows],
                    "is_cold_in_domain": ~np.isin(users * len(bounds) + domains, had),
                }
            )
        )
    return pa.concat_tables(parts)


def _read_lists(job: ScoreJob, system: str, buckets: range) -> pa.Table:
    """Return a system's lists, as the records name them: user_id, domain, item_ids."""
    tables = []
    for bucket in buckets:
        for file in job.store.read_json(job.record_path(bucket))["files"]:
            for domain in job.domains:
                if file["path"].startswith(f"{job.outputs[system]}/{domain_folder(domain)}/"):
                    table = job.store.read_parquet(file["path"], [USER_ID, "item_ids"])
                    names = pa.array([domain] * table.num_rows, pa.string())
                    tables.append(table.append_column(DOMAIN, names))
    return pa.concat_tables(tables)


def _describe(truth: pa.Table, start: int, stop: int) -> dict[str, Any]:
    first, end = (dt.date(1970, 1, 1) + dt.timedelta(days=int(day)) for day in (start, stop))
    users = truth.select([USER_ID]).group_by(USER_ID).aggregate([])
    pairs = truth.select([USER_ID, DOMAIN]).group_by([USER_ID, DOMAIN]).aggregate([])
    return {
        "start": first.isoformat(),
        "stop": end.isoformat(),
        "days": stop - start,
        "users": users.num_rows,
        "pairs": pairs.num_rows,
    }
