"""Which items belong together by what a team knows (`data.relations`): one more neighbour table.

In: Parquet of `item_id`, `relation`, `related_item_id`, perhaps `domain`, `related_domain` (else
the same domain) and `weight`. Out: prepared/<digest>/relations.parquet, a row (row, related,
weight) for each pair of catalogue rows; bad rows go to rejects/ with their reason. Relations lead
both ways, but those of ONE_WAY: who has a camera may want its case, who has the case has the
camera.

    summary |= relate(shared, index, job, footers, summary["rejects"])      # in prepare
    related = related_neighbours(store, prepared)                           # one a domain
"""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import scipy.sparse as sp

from crossrec.data.cooccurrence import NEIGHBOURS, Neighbours
from crossrec.data.events import ItemIndex, find_rows, id_faults
from crossrec.data.hashing import Array
from crossrec.data.histories import Prepared
from crossrec.data.inputs import (
    CHUNK_ROWS,
    Footer,
    Input,
    Segment,
    check_column,
    plan_chunks,
    read_chunk,
)
from crossrec.data.rejects import DUPLICATE, Origins, count_reasons, reject_table
from crossrec.data.sparse import keep_highest
from crossrec.data.tasks import Job, plain_errors
from crossrec.errors import InputError, explain
from crossrec.runlog import log
from crossrec.schema import DOMAIN, ITEM_ID, WEIGHT
from crossrec.storage import Store

RELATION, RELATED_ID, RELATED_DOMAIN = "relation", "related_item_id", "related_domain"
REQUIRED = (ITEM_ID, RELATION, RELATED_ID)
COLUMNS = (*REQUIRED, DOMAIN, RELATED_DOMAIN, WEIGHT)

ONE_WAY = ("accessory",)
"""Relations that lead from `item_id` to `related_item_id` alone."""

UNKNOWN, UNKNOWN_RELATED = "unknown item", "unknown related item"
ITSELF, BAD_WEIGHT = "related to itself", "weight that is not above 0"
REASONS = (
    "",
    *(f"{what} {name}" for name in REQUIRED for what in ("null", "empty")),
    UNKNOWN,
    UNKNOWN_RELATED,
    ITSELF,
    BAD_WEIGHT,
    DUPLICATE,
)

RELATED_UNIT = 1e-3
"""Weight of two items that are related to one another alone: where the logarithm of an overlap
bends (`model.fusion.OVERLAP_FLOOR`), so that two related events count for more than one."""


def check_relations(source: Input, footers: Sequence[Footer], domains: int) -> None:
    """Check the columns of the table.

    Raises:
        InputError: one is missing or of another type; without `domain` where there are several.
    """
    for name in REQUIRED:
        check_column(source, footers, name, "string")
    for name, kind in ((DOMAIN, "string"), (RELATED_DOMAIN, "string"), (WEIGHT, "number")):
        if any(name in footer.types for footer in footers) or (name == DOMAIN and domains > 1):
            check_column(source, footers, name, kind)


def relate(
    shared: Any,
    index: Any,
    job: Job,
    footers: Mapping[str, Sequence[Footer]],
    rejects: Mapping[str, Mapping[str, int]],
) -> dict[str, Any]:
    """Write the relations by a Ray task; return what the summary says of them, if there are any.

    Args:
        shared: reference to the job.
        index: reference to the items' index.
        job: its inputs are looked at.
        footers: of the tables.
        rejects: rows by table and reason, without those of this table.
    """
    if "relations" not in job.inputs:
        return {}
    segments = tuple(itertools.chain(*plan_chunks(footers["relations"], CHUNK_ROWS)))
    write = ray.remote(num_cpus=1)(write_relations)
    with plain_errors():
        reasons, facts = ray.get(write.remote(shared, index, segments, footers["relations"]))
    said = ", ".join(f"{reason} {n:,}" for reason, n in sorted(reasons.items())) or "none"
    log.info("prepare: relations pairs %s, rejected: %s", f"{facts['pairs']:,}", said)
    return {"relations": facts, "rejects": {**rejects, "relations": dict(sorted(reasons.items()))}}


def write_relations(
    job: Job, index: ItemIndex, chunk: Sequence[Segment], footers: Sequence[Footer]
) -> tuple[Counter[str], dict[str, Any]]:
    """Check the relations and write their pairs; memory grows with them, not with users."""
    source, origins = job.inputs["relations"], job.origins["relations"]
    check_relations(source, footers, len(index.domains))
    tables = list(read_chunk(source, chunk, list(COLUMNS)))
    if not tables:
        where, mend = source.store.uri(), "leave data.relations out"
        raise InputError(explain(where, "a table of relations", "no row", mend))
    pairs, rejects = find_pairs(
        pa.concat_tables(tables, promote_options="default").combine_chunks(), index, origins
    )
    if len(rejects):
        job.store.write_parquet(f"{job.folder}/rejects/relations.parquet", rejects)
    job.store.write_parquet(relations_path(job.folder), pairs)
    return count_reasons(rejects), {"pairs": len(pairs)}


def find_pairs(table: pa.Table, index: ItemIndex, origins: Origins) -> tuple[pa.Table, pa.Table]:
    """Return the pairs of catalogue rows with their weights added up, and the rejected rows.

    Args:
        table: rows with `origin`.
        index: of the catalogue.
        origins: of the table's files.
    """
    table = _with_optional(table, index)
    codes = id_faults(table, REQUIRED, REASONS)
    rows, related = (
        find_rows(
            index,
            *(table.column(name).fill_null("").combine_chunks() for name in (domain, item)),
        ).astype(np.int64)
        for domain, item in ((DOMAIN, ITEM_ID), (RELATED_DOMAIN, RELATED_ID))
    )
    weights = table.column(WEIGHT).to_numpy()
    is_good_weight = np.isfinite(weights) & (weights > 0)
    relation = table.column(RELATION).combine_chunks().dictionary_encode()
    kinds = relation.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    for reason, wrong in (
        (UNKNOWN, rows < 0),
        (UNKNOWN_RELATED, related < 0),
        (ITSELF, rows == related),
        (BAD_WEIGHT, ~is_good_weight),
    ):
        codes[(codes == 0) & wrong] = REASONS.index(reason)
    good = np.flatnonzero(codes == 0)
    keys = np.stack([rows[good], related[good], kinds[good]], 1)
    is_copy = np.ones(len(good), bool)
    is_copy[np.unique(keys, axis=0, return_index=True)[1]] = False
    codes[good[is_copy]] = REASONS.index(DUPLICATE)
    kept = good[~is_copy]
    names = relation.dictionary.to_pylist()
    leads_back = np.array([name not in ONE_WAY for name in names] + [False])[kinds[kept]]
    back = kept[leads_back]
    pairs = _add_up(
        np.concatenate([rows[kept], related[back]]),
        np.concatenate([related[kept], rows[back]]),
        np.concatenate([weights[kept], weights[back]]),
    )
    return pairs, reject_table(origins, table, codes, REASONS)


def _with_optional(table: pa.Table, index: ItemIndex) -> pa.Table:
    """Return the table with the columns that it may lack."""
    size = len(table)
    if DOMAIN not in table.column_names:
        only = pa.array([index.domains[0]], pa.large_string())
        table = table.append_column(DOMAIN, only.take(pa.array(np.zeros(size, np.int64))))
    related = table.column(DOMAIN)
    if RELATED_DOMAIN in table.column_names:
        related = pa.compute.coalesce(table.column(RELATED_DOMAIN), related)
        table = table.drop_columns(RELATED_DOMAIN)
    table = table.append_column(RELATED_DOMAIN, related)
    weights = pa.array(np.ones(size, np.float32))
    if WEIGHT in table.column_names:
        weights = table.column(WEIGHT).fill_null(1.0)
        table = table.drop_columns(WEIGHT)
    return table.append_column(WEIGHT, weights)


def _add_up(rows: Array, related: Array, weights: Array) -> pa.Table:
    """Return each pair once, by row, with the sum of its weights."""
    order = np.lexsort((weights, related, rows))
    rows, related, weights = rows[order], related[order], weights[order].astype(np.float64)
    is_first = np.ones(len(rows), bool)
    is_first[1:] = (np.diff(rows) != 0) | (np.diff(related) != 0)
    starts = np.flatnonzero(is_first)
    summed = np.add.reduceat(weights, starts) if len(starts) else weights
    return pa.table(
        {
            "row": rows[starts].astype(np.int32),
            "related": related[starts].astype(np.int32),
            WEIGHT: summed.astype(np.float32),
        }
    )


def related_neighbours(store: Store, prepared: Prepared) -> list[Neighbours]:
    """Return the related items of every catalogue row in each domain; of a view, those it shows.

    A weight is divided by the root of what both items have in all: an item that is related to
    everything says little. The heaviest `cooccurrence.NEIGHBOURS` of an item are kept.
    """
    table = store.read_parquet(relations_path(prepared.folder))
    rows, related = (table.column(name).to_numpy().astype(np.int64) for name in ("row", "related"))
    weights = table.column(WEIGHT).to_numpy().astype(np.float64)
    if prepared.view is not None:
        start, stop = prepared.view.start, prepared.view.stop
        shown = (rows >= start) & (rows < stop) & (related >= start) & (related < stop)
        rows, related, weights = rows[shown] - start, related[shown] - start, weights[shown]
    out, into = (np.bincount(ends, weights, prepared.items) for ends in (rows, related))
    scaled = (RELATED_UNIT * weights / np.sqrt(out[rows] * into[related])).astype(np.float32)
    found = []
    for domain in prepared.domains:
        inside = (related >= domain.start) & (related < domain.stop)
        shape = (prepared.items, domain.stop - domain.start)
        places = (rows[inside], related[inside] - domain.start)
        kept = keep_highest(sp.coo_matrix((scaled[inside], places), shape), NEIGHBOURS)
        counts = np.bincount(kept.rows, minlength=prepared.items)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        found.append(Neighbours(offsets, kept.columns.astype(np.int32), kept.values))
    return found


def relations_path(folder: str) -> str:
    """Return where the pairs are."""
    return f"{folder}/relations.parquet"
