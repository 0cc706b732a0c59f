"""New items whose texts are no honest descriptions, found before the night's lists are made.

    counts = write_findings(job, "runs/2014-06-08/candidates")      # {"copied text": 3}

Beside the findings lies what the report shows of them (`describe`):

    {"trial": 50, "domain": {"shop": {"items": 403, "new": 83, "held_back": 3, "reasons":
        {"copied text": 1, ...}}}, "examples": [{"domain": "shop", "item_id": "i7", "text": "thing",
        "reason": "copied text", "share": None}, ...]}

What can be seen in a text alone, `crossrec.data.texts` finds. A text stuffed with what everybody
looks for is seen in the users whom it attracts: of a sample, those for whom it is among the first
PLACES of the domain by the text's part of the score. The texts of items with events say how many
that may be.

Tensor suffixes: B users, I items of the domain, K places.
"""

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from crossrec.data.histories import read_catalogue
from crossrec.data.replay import Histories, slice_users
from crossrec.data.tasks import plain_errors
from crossrec.data.texts import (
    ATTRACTS,
    FINDINGS,
    TOLD,
    TRIAL,
    count_faults,
    faults_of,
    too_attractive,
)
from crossrec.nodes import count_cpus_and_gpus, largest_node_cpus, torch_threads
from crossrec.runlog import log
from crossrec.schema import DOMAIN, ITEM_ID
from crossrec.score.bucket import ScoreJob
from crossrec.score.limits import Terms
from crossrec.score.prices import CPUS_A_TASK, PLACES, sample_users
from crossrec.score.scorer import Scorer

SCHEMA = pa.schema(
    [
        pa.field(DOMAIN, pa.string(), nullable=False),
        pa.field(ITEM_ID, pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("share", pa.float64()),
    ]
)
"""One row an item and reason; row: within its domain; share: of users whom the text attracts."""

EXAMPLES, EXAMPLE_LENGTH = 3, 100
"""Of a domain and reason, and characters of their texts, in the report."""


def write_findings(job: ScoreJob, folder: str) -> dict[str, int]:
    """Look at the texts of all new items, once, on an initialised Ray; return counts by reason."""
    path = f"{folder}/{FINDINGS}"
    if not job.store.exists(path):
        gpus = min(1, count_cpus_and_gpus()[1])
        threads = min(largest_node_cpus(with_gpu=gpus > 0), CPUS_A_TASK)
        task = ray.remote(num_cpus=threads, num_gpus=gpus)(_write_findings)
        with plain_errors():
            ray.get(task.remote(job, path, threads))
    counts = count_faults(job.store.read_parquet(path, ["reason"]).column("reason").to_pylist())
    for reason, items in counts.items():
        log.warning("score: %s new items: %s; see %s", f"{items:,}", reason, job.store.uri(path))
    return counts


def _write_findings(job: ScoreJob, path: str, threads: int) -> None:
    with torch_threads(threads):
        scorer, users = replace(job, steered={}).open_scorer(), sample_users(job)
        found: list[dict[str, Any]] = []
        told: dict[str, Any] = {"trial": TRIAL, "domain": {}, "examples": []}
        for domain in job.prepared.domains:
            table = read_catalogue(job.store, job.prepared, domain.name, [ITEM_ID, "text"])
            columns = table.combine_chunks()
            own = find_texts(scorer, users, job.day, domain.name, columns)
            counts, examples = describe(own, columns.column("text"))
            sizes = {"items": len(columns), "new": len(scorer.new[domain.name])}
            told["domain"][domain.name] = sizes | counts
            told["examples"] += examples
            found += own
    job.store.write_json(f"{posixpath.dirname(path)}/{TOLD}", told)
    job.store.write_parquet(path, pa.Table.from_pylist(found, SCHEMA))


def describe(
    found: Sequence[Mapping[str, Any]], texts: pa.ChunkedArray
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return how many items of a domain are held back, by reason, and a few of each.

    Args:
        found: what `find_texts` returned.
        texts: of the domain's items.
    """
    reasons = count_faults(row["reason"] for row in found)
    counts = {"held_back": len({row["row"] for row in found}), "reasons": reasons}
    examples = []
    for reason in reasons:
        own = [row for row in found if row["reason"] == reason]
        own.sort(key=lambda row: -(row["share"] or 0))
        for row in own[:EXAMPLES]:
            said = {name: row[name] for name in (DOMAIN, ITEM_ID, "reason", "share")}
            examples.append(said | {"text": str(texts[row["row"]])[:EXAMPLE_LENGTH]})
    return counts, examples


def find_texts(
    scorer: Scorer, users: Histories, day: int, name: str, items: pa.Table
) -> list[dict[str, Any]]:
    """Return what is wrong with the texts of a domain's new items, rows of SCHEMA.

    Args:
        scorer: of all items.
        users: a sample.
        day: the day that is predicted.
        name: of the domain.
        items: columns `item_id` and `text` of the domain.
    """
    is_new = np.zeros(len(items), bool)
    is_new[scorer.new[name].cpu().numpy()] = True
    if not is_new.any():
        return []
    faults = faults_of(items.column("text").combine_chunks(), is_new)
    shares = attracted(scorer, users, day, name)
    faults[ATTRACTS] = too_attractive(shares, is_new)
    ids = items.column(ITEM_ID)
    return [
        {
            DOMAIN: name,
            ITEM_ID: ids[row].as_py(),
            "row": row,
            "reason": reason,
            "share": float(shares[row]) if reason == ATTRACTS else None,
        }
        for reason, rows in faults.items()
        for row in rows.tolist()
    ]


@torch.inference_mode()
def attracted(scorer: Scorer, users: Histories, day: int, name: str) -> np.ndarray:
    """Return for what share of users each item of a domain is among the best by its text, (I,).

    Of those who have not had it, and to whom texts of the domain are not all the same.
    """
    domain = scorer.domains[scorer.index[name]]
    size = domain.stop - domain.start
    shown_I, had_I, asked = torch.zeros(size), torch.zeros(size), 0
    for start in range(0, len(users.lengths), scorer.batch):
        terms = scorer.terms(slice_users(users, start, start + scorer.batch), day, name)
        # The first product is the text's: `Scorer.terms`.
        by_text = Terms(terms.products[:1], [], terms.seen_S2)
        rows_BK, scores_BK = by_text.top_k(PLACES)
        is_apart_B = scores_BK[:, 0] > scores_BK[:, -1]
        rows_BK, seen_S2 = rows_BK[is_apart_B], terms.seen_S2[is_apart_B[terms.seen_S2[:, 0]]]
        shown_I += torch.bincount(rows_BK[rows_BK >= 0], minlength=size).cpu()
        had_I += torch.bincount(seen_S2.unique(dim=0)[:, 1], minlength=size).cpu()
        asked += int(is_apart_B.sum())
    shares: np.ndarray = (shown_I / (asked - had_I).clamp(min=1)).numpy()
    return shares
