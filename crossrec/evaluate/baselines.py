"""Collaborative baselines on the hold-out: each domain alone, and all domains together.

    runs/<run_id>/baselines/<system>/domain=<d>/bucket-*.parquet    lists, schema.SCORES
    runs/<run_id>/baselines/<system>/record.json                    files and seconds, written last

    records = run_baselines(job)      # {"item_knn": {"seconds": 1.9, "files": [...]}, ...}

One Ray task a system. It learns from the sample of histories that every stage learns from, and
serves the very users whom the hold-out judges, in blocks: memory grows with the items, not with the
users. A rerun does the systems that have no record yet.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from crossrec.data.histories import Prepared, read_histories, read_item_ids
from crossrec.data.replay import (
    Histories,
    before,
    flatten,
    new_events,
    sample_histories,
    select_users,
)
from crossrec.data.tasks import plain_errors
from crossrec.evaluate.collaborative import Fit, fit_als, fit_item_knn, learn, serve
from crossrec.nodes import largest_node_cpus, torch_threads
from crossrec.runlog import log
from crossrec.schema import bucket_name, domain_folder
from crossrec.score.lists import to_table
from crossrec.storage import Store

BASELINES: dict[str, tuple[Fit, bool]] = {
    "item_knn": (fit_item_knn, False),
    "als": (fit_als, False),
    "item_knn_all_domains": (fit_item_knn, True),
    "als_all_domains": (fit_als, True),
}
"""Systems: what learns, and whether from all domains together."""

CPUS_A_TASK = 4
"""At most: a task must fit on one node. On a small machine the tasks then follow each other in one
process, which has imported torch already."""


@dataclass(frozen=True)
class BaselineJob:
    """What every task does.

    day: the first one that is judged; only earlier events are known. active_until: users are served
    who do something new in days day..active_until-1, all where it is None. buckets: those whose
    users are judged.
    folder: of all systems.
    """

    store: Store
    prepared: Prepared
    day: int
    active_until: int | None
    buckets: range
    top_k: int
    seed: int
    folder: str

    def record_path(self, system: str) -> str:
        """Return where a system's record lies."""
        return f"{self.folder}/{system}/record.json"


def run_baselines(job: BaselineJob) -> dict[str, dict[str, Any]]:
    """Run the systems that have no record yet, on an initialised Ray; return all records."""
    missing = [name for name in BASELINES if not job.store.exists(job.record_path(name))]
    threads = task_threads()
    task = ray.remote(num_cpus=threads)(run_system)
    running = {task.remote(job, name, threads): name for name in missing}
    while running:
        (done,), _ = ray.wait(list(running), num_returns=1)
        with plain_errors():
            record = ray.get(done)
        log.info("evaluate: baseline %s, seconds %s", running.pop(done), record["seconds"])
    return {name: job.store.read_json(job.record_path(name)) for name in BASELINES}


def task_threads() -> int:
    """Return how many CPUs a task asks for, on an initialised Ray."""
    return min(largest_node_cpus(), CPUS_A_TASK)


def run_system(job: BaselineJob, system: str, threads: int) -> dict[str, Any]:
    """Learn, write the judged users' lists and the record last; return it."""
    with torch_threads(threads):
        return _run_system(job, system, threads)


def _run_system(job: BaselineJob, system: str, threads: int) -> dict[str, Any]:
    began = time.perf_counter()
    files = []
    for bucket, domain, lists in _make_lists(job, system, threads):
        folder = f"{job.folder}/{system}/{domain_folder(domain)}"
        path = f"{folder}/{bucket_name(bucket)}.parquet"
        job.store.write_parquet(path, lists)
        files.append({"path": path, "rows": lists.num_rows})
    record = {"system": system, "files": files, "seconds": round(time.perf_counter() - began, 2)}
    job.store.write_json(job.record_path(system), record)
    return record


def _make_lists(job: BaselineJob, system: str, threads: int) -> Iterator[tuple[int, str, pa.Table]]:
    """Yield bucket, domain and lists (schema.SCORES); one model at a time is in memory."""
    fit, is_joint = BASELINES[system]
    domains = job.prepared.domains
    item_ids = {d.name: read_item_ids(job.store, job.prepared, d.name) for d in domains}
    sample = before(sample_histories(job.store, job.prepared), job.day)
    for group in [domains] if is_joint else [(domain,) for domain in domains]:
        learned = learn(fit, sample, group, threads, job.seed)
        for bucket in job.buckets:
            known = _judged_users(job, bucket)
            for domain, lists in serve(learned, known, job.top_k).items():
                yield bucket, domain, to_table(known.user_ids, lists, item_ids[domain])


def _judged_users(job: BaselineJob, bucket: int) -> Histories:
    """Return what was known of the users whom the hold-out may judge."""
    histories = flatten(read_histories(job.store, job.prepared, bucket))
    if job.active_until is None:
        return before(histories, job.day)
    users, _ = new_events(histories, job.day, job.active_until)
    is_active = np.zeros(len(histories.lengths), bool)
    is_active[users] = True
    return before(select_users(histories, is_active), job.day)
