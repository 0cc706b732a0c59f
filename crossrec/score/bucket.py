"""One bucket, the unit of work: its histories in, one file a domain and one completion record out.

ray.data.from_items(buckets).map(ReadBucket, ...).map_batches(ScoreBucket, ...)
"""

import hashlib
import posixpath
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from crossrec.data.candidates import Candidates, read_candidates
from crossrec.data.editors import read_edits
from crossrec.data.histories import Prepared, read_item_ids
from crossrec.data.replay import (
    Histories,
    before,
    flatten,
    new_events,
    select_users,
    up_to,
)
from crossrec.heap import give_back
from crossrec.model.checkpoint import Encoder, load_model
from crossrec.model.recommender import Recommender
from crossrec.schema import bucket_name, domain_folder
from crossrec.score.because import add_reasons
from crossrec.score.catalogue import load_items
from crossrec.score.lists import to_table
from crossrec.score.narrow import Precision
from crossrec.score.progress import Counters, attempt
from crossrec.score.reasons import EXPLAINED, find_reasons
from crossrec.score.scorer import Scorer
from crossrec.score.steering import Steered, Steering, read_prices
from crossrec.score.takeover import Earlier, same_histories, take_over
from crossrec.storage import Store, encode_parquet

OUTCOME = pa.schema(
    [
        ("bucket", pa.int64()),
        ("users", pa.int64()),
        ("failed", pa.string()),
        ("of_store", pa.bool_()),
    ]
)
"""What comes of a bucket: `failed` says why it has no record, and is "" where it has one."""


@dataclass(frozen=True)
class ScoreJob:
    """What every scoring actor does with a bucket.

    model: folder of the model. items: folder of the item matrix. day: the day that is predicted;
    only earlier events are known. outputs: folder of the lists by system. domains: those to write
    lists for. done: folder of the completion records. new_places: those of a list that are kept for
    items which nobody has touched. candidates: folder of what the rules let through; without it,
    all items may be in lists. active_until: where given, only users are scored who do something new
    in days day..active_until-1, which is how a hold-out is judged. earlier: of an incremental
    night, the publication whose lists are taken over; later events count as of the day before.
    precision: of the item matrices by which the best are found. encoder: by which the model reads
    histories. steered: how lists are steered, by
    system. explain: reasons at most of each item that the model lists. traits: folder of what the
    rules look at of users; without it no user fulfils what an item requires.
    """

    store: Store
    prepared: Prepared
    model: str
    items: str
    day: int
    outputs: dict[str, str]
    domains: tuple[str, ...]
    top_k: int
    done: str
    new_places: int = 0
    candidates: str | None = None
    active_until: int | None = None
    earlier: Earlier | None = None
    precision: Precision = "fp32"
    encoder: Encoder = "full"
    steered: Mapping[str, Steering] = field(default_factory=dict)
    explain: int = 0
    traits: str | None = None

    def record_path(self, bucket: int) -> str:
        """Return where a bucket's completion record lies."""
        return f"{self.done}/{bucket_name(bucket)}.json"

    def read_candidates(self) -> dict[str, Candidates]:
        """Return which items lists may hold, by domain."""
        if self.candidates is None:
            return {}
        return {
            domain: read_candidates(self.store, self.candidates, domain) for domain in self.domains
        }

    def read_steered(self) -> Steered:
        """Return how lists are steered, with the items' prices where any list needs them."""
        added: dict[str, Tensor] = {}
        if any(steering.is_edited for steering in self.steered.values()) and self.candidates:
            for name in self.domains:
                edits = read_edits(self.store, self.candidates, name)
                if edits is not None:
                    added[name] = torch.from_numpy(edits.added.copy())
        if not any(steering.popularity_control for steering in self.steered.values()):
            return Steered(self.steered, added=added)
        prices = read_prices(self.store, self.items)
        names = {number: domain.name for number, domain in enumerate(self.prepared.domains)}
        by_name = {names[number]: part for number, part in prices.items()}
        return Steered(self.steered, by_name, added)

    def load_recommender(self) -> Recommender:
        """Return the model, with the encoder that it scores by."""
        return load_model(self.store, self.model, self.encoder).recommender

    def open_scorer(self) -> Scorer:
        """Load model, item side and rules into a scorer."""
        return Scorer(
            self.load_recommender(),
            load_items(self.store, self.prepared, self.items),
            self.prepared.domains,
            self.read_candidates(),
            self.precision,
            self.read_steered(),
        )


def active_users(histories: Histories, start: int, stop: int) -> Histories:
    """Return the known users who do something new in days start..stop-1, with all their events."""
    users, _ = new_events(histories, start, stop)
    is_active = np.zeros(len(histories.lengths), bool)
    is_active[users] = True
    return select_users(histories, is_active)


class ScoreBucket:
    """Ray Data actor: scores a bucket's users, writes its files, then its record."""

    def __init__(self, job: ScoreJob) -> None:
        self.job = job
        self.counters = Counters()
        self.scorer = job.open_scorer()
        # Reasons are of any domain.
        named = [domain.name for domain in job.prepared.domains] if job.explain else job.domains
        self.item_ids = {domain: read_item_ids(job.store, job.prepared, domain) for domain in named}

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Score one bucket; return a table of one row of OUTCOME."""
        row = batch.to_pylist()[0]
        bucket, users, failure = row["bucket"], 0, None
        if not row["failed"]:
            found, failure = attempt(lambda: self._score(bucket, row["histories"]))
            users = found or 0
            give_back()
        outcome = {
            "bucket": [bucket],
            "users": [users],
            "failed": [failure.said if failure else row["failed"]],
            "of_store": [failure.of_store if failure else row["of_store"]],
        }
        return pa.table(outcome, schema=OUTCOME)

    def _score(self, bucket: int, data: bytes) -> int:
        """Write a bucket's lists and its record; return how many users it has."""
        began = time.perf_counter()
        histories = flatten(pa.ipc.open_stream(data).read_all())
        if self.job.active_until is not None:
            histories = active_users(histories, self.job.day, self.job.active_until)
        if self.job.earlier is None:
            return self._score_all(bucket, before(histories, self.job.day), began)
        return self._score_changed(bucket, up_to(histories, self.job.day), began)

    def _score_all(self, bucket: int, known: Histories, began: float) -> int:
        lists = self._lists(known)
        scored = time.perf_counter()
        files = [self._write(bucket, where, table) for where, table in lists.items()]
        users = len(known.lengths)
        self._finish(bucket, {"users": users, "files": files}, users, (began, scored))
        return users

    def _score_changed(self, bucket: int, known: Histories, began: float) -> int:
        """Score the users whose history is new; take over the lists of the others."""
        assert self.job.earlier is not None
        store, earlier = self.job.store, self.job.earlier
        past = up_to(earlier.histories(store, bucket), self.job.day)
        record = earlier.record(store, bucket)
        places = same_histories(past, known)
        users, changed = len(places), int((places < 0).sum())
        if np.array_equal(places, np.arange(len(past.lengths))):
            kept = {"users": users, "files": record["files"], "scored_users": 0}
            self._finish(bucket, kept, 0, (began, time.perf_counter()))
            return users
        lists = self._lists(select_users(known, places < 0))
        scored = time.perf_counter()
        paths = {
            posixpath.basename(posixpath.dirname(f["path"])): f["path"] for f in record["files"]
        }
        files = []
        for (system, domain), new in lists.items():
            taken = store.read_parquet(paths[domain_folder(domain)])
            table = take_over(taken, new, places)
            files.append(self._write(bucket, (system, domain), table))
        made = {"users": users, "files": files, "scored_users": changed}
        self._finish(bucket, made, changed, (began, scored))
        return users

    def _lists(self, known: Histories) -> dict[tuple[str, str], pa.Table]:
        """Return the lists of users by system and domain, as tables of schema.scores_schema."""
        job = self.job
        wanted = [(system, domain) for system in job.outputs for domain in job.domains]
        lists = self.scorer.score(known, job.day, wanted, job.top_k, job.new_places)
        tables = {
            where: to_table(known.user_ids, found, self.item_ids[where[1]])
            for where, found in lists.items()
        }
        if job.explain:
            listed = {domain: lists[EXPLAINED, domain] for domain in job.domains}
            reasons = find_reasons(self.scorer, known, job.day, listed, job.explain)
            for domain, rows_BKN in reasons.items():
                where, of_items = (EXPLAINED, domain), rows_BKN[listed[domain].rows >= 0]
                tables[where] = add_reasons(tables[where], of_items, self.item_ids)
        return tables

    def _write(self, bucket: int, where: tuple[str, str], table: pa.Table) -> dict[str, Any]:
        """Write the lists of a system and domain; return what the record says of their file."""
        system, domain = where
        folder = f"{self.job.outputs[system]}/{domain_folder(domain)}"
        data = encode_parquet(table)
        digest = hashlib.sha256(data).hexdigest()
        path = f"{folder}/{bucket_name(bucket)}.{digest[:12]}.parquet"
        self.job.store.write_bytes(path, data)
        return {"path": path, "rows": table.num_rows, "bytes": len(data), "sha256": digest}

    def _finish(
        self, bucket: int, made: dict[str, Any], scored_users: int, times: tuple[float, float]
    ) -> None:
        """Write the record of a bucket whose files are there, and count."""
        (began, scored), written = times, time.perf_counter()
        record = {"bucket": bucket, **made, "seconds": round(written - began, 3)}
        self.job.store.write_json(self.job.record_path(bucket), record)
        lists = len(self.job.outputs) * len(self.job.domains)
        self.counters.count(
            users=scored_users,
            pairs=scored_users * lists,
            compute=scored - began,
            write=written - scored,
        )
