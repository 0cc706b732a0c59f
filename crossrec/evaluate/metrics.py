"""HR, Recall, NDCG and MRR of written lists against what users really did next.

In: the truth, one row a relevant (user_id, domain, item_id) with what was known before the judged
days (see `crossrec.evaluate.truth`); and the lists, one row a (user_id, domain) with `item_ids`,
best first. Out: figures over (user, domain) pairs, at several k. Every pair of the truth counts
alike, and a pair without a list scores 0.

An item's rank is its place in the written list: nothing is sorted here. Where scores were equal,
the lower catalogue row stands first; `crossrec.score.topk` makes it so for every system.

Anna's one item stands second in her list: NDCG 1/log2(3) = 0.63093, as first it would give 1. Ben
has two items, one of them first in his list: recall 1/2, NDCG 1 / (1 + 1/log2(3)) = 0.61315.

>>> truth = pa.table({
...     "user_id": ["anna", "ben", "ben"], "domain": ["film"] * 3, "item_id": ["x", "y", "z"],
...     "is_cold_item": [True, False, False], "is_cold_in_domain": [False] * 3,
...     "events_in_domain": [7, 2, 2], "history_length": [7, 12, 12],
...     "item_popularity_decile": [0, 10, 3]})
>>> lists = pa.table({
...     "user_id": ["anna", "ben"], "domain": ["film"] * 2, "item_ids": [["q", "x"], ["y", "q"]]})
>>> figures = judge(truth, lists, ks=[10])
>>> figures["all"]
{'pairs': 2, 'hr@10': 1.0, 'recall@10': 0.75, 'ndcg@10': 0.62204, 'mrr@10': 0.75}
>>> figures["cold_item"]
{'pairs': 1, 'hr@10': 1.0, 'recall@10': 1.0, 'ndcg@10': 0.63093, 'mrr@10': 0.5}
>>> figures["cold_in_domain"] is None
True
>>> {name: band["pairs"] for name, band in figures["history_length"].items()}
{'5-9': 1, '10-19': 1}
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from crossrec.errors import explain
from crossrec.schema import DOMAIN, ITEM_ID, USER_ID

KS = (5, 10, 20, 50)
"""Lengths at which lists are judged."""

Figures = dict[str, float] | None
"""{"pairs", "hr@k", "recall@k", "ndcg@k", "mrr@k", ...}, or None without pairs."""

BANDS = {"events_in_domain": (0, 1, 5), "history_length": (1, 5, 10, 20, 50)}
"""Where each band of a count begins; the last one has no end."""

DECILES = 10


def judge(truth: pa.Table, lists: pa.Table, ks: Sequence[int] = KS) -> dict[str, Any]:
    """Return the figures of all pairs, of each slice and of each domain, rounded to 5 digits.

    Args:
        truth: as in the module's docstring, no row twice.
        lists: as in the module's docstring, no pair twice, no item twice in a list's first max(ks);
            users and domains that the truth lacks are ignored.
        ks: lengths, each 1 or more: only the first k of a list count.

    Returns:
        What `judge_ranked` returns.

    Raises:
        ValueError: a k below 1, or a row, pair or item stands twice.
    """
    return judge_ranked(find_ranks(truth, lists, max(ks)), ks)


def judge_rows(truth: pa.Table, lists: pa.Table, ks: Sequence[int] = KS) -> pa.Table:
    """Return the measures of every pair of the truth; arguments as in `judge`.

    >>> truth = pa.table({"user_id": ["anna"] * 2, "domain": ["film"] * 2, "item_id": ["x", "y"]})
    >>> lists = pa.table({"user_id": ["anna"], "domain": ["film"], "item_ids": [["q", "x"]]})
    >>> judge_rows(truth, lists, ks=[2]).drop_columns("ndcg@2").to_pylist()
    [{'user_id': 'anna', 'domain': 'film', 'n': 2, 'hr@2': 1.0, 'recall@2': 0.5, 'mrr@2': 0.5}]
    """
    measured = measure_pairs(find_ranks(truth, lists, max(ks)), ks)
    strings = {name: pa.string() for name in (USER_ID, DOMAIN)}
    table = measured.to_arrow()
    fields = [pa.field(field.name, strings.get(field.name, field.type)) for field in table.schema]
    return table.cast(pa.schema(fields))


def find_ranks(truth: pa.Table, lists: pa.Table, k: int) -> pl.DataFrame:
    """Find each relevant item in its list, once for all measures and slices.

    Returns:
        The truth sorted by its pairs (user_id, domain), with `pair`, a pair's number from 0, and
        `rank`, from 1, or 0 where the item is not among the first k.
    """
    if k < 1:
        raise ValueError(explain("judge", "k of 1 or more", str(k), "ask for one item or more"))
    key = [USER_ID, DOMAIN]
    pairs = _read(truth).group_by(key).agg(pl.all()).sort(key).with_row_index("pair")
    _check_once(pairs, "truth")
    relevant = pairs.explode([name for name in pairs.columns if name not in ("pair", *key)])
    # Two string columns become one number here, because the last join is as large as all lists.
    first = pl.col("item_ids").list.drop_nulls().list.head(k)
    shown = _read(lists).select(*key, first.alias(ITEM_ID)).join(pairs.select("pair", *key), on=key)
    if doubles := shown["pair"].is_duplicated().sum():
        found = f"{doubles:,} rows with the pair of another"
        raise ValueError(explain("lists", "a (user_id, domain) once", found, "drop the doubles"))
    _check_once(shown, "lists")
    length = pl.col(ITEM_ID).list.len()
    shown = shown.filter(length > 0).select("pair", ITEM_ID, rank=pl.int_ranges(1, length + 1))
    hits = (
        relevant.select("pair", ITEM_ID)
        .with_row_index("row")
        .join(shown.explode(ITEM_ID, "rank"), on=["pair", ITEM_ID])
    )
    # The inner join and the scatter take a third of a left join's time.
    rank = np.zeros(relevant.height, dtype=np.int64)
    rank[hits["row"].to_numpy()] = hits["rank"].to_numpy()
    return relevant.with_columns(rank=rank)


def judge_ranked(ranked: pl.DataFrame, ks: Sequence[int] = KS) -> dict[str, Any]:
    """Return the figures of what `find_ranks` found, for k up to its own.

    A slice restricts the truth, and its pairs are those of the restricted truth: a user with one
    cold and one warm item in the truth is judged in `cold_item` on the cold one alone.

    Returns:
        {"all": F, "cold_item": F, "warm_item": F, "cold_in_domain": F, "domain": {name: F},
        "events_in_domain": {band: F}, "history_length": {band: F}, "item_popularity_decile":
        {"1".."10": F}} with F = {"pairs", "hr@k", "recall@k", "ndcg@k", "mrr@k", ...}. Without
        pairs, F of the first four is None, and the others are left out.
    """

    def figures(part: pl.Expr) -> Figures:
        return _average(measure_pairs(ranked.filter(part), ks))

    def nested(parts: Mapping[str, pl.Expr]) -> dict[str, Figures]:
        found = {name: figures(part) for name, part in parts.items()}
        return {name: part for name, part in found.items() if part is not None}

    deciles = {str(n): pl.col("item_popularity_decile") == n for n in range(1, DECILES + 1)}
    domains = sorted(ranked[DOMAIN].unique().to_list())
    return {
        "all": _average(measure_pairs(ranked, ks)),
        "cold_item": figures(pl.col("is_cold_item")),
        "warm_item": figures(~pl.col("is_cold_item")),
        "cold_in_domain": figures(pl.col("is_cold_in_domain")),
        "domain": nested({name: pl.col(DOMAIN) == name for name in domains}),
        **{column: nested(bands(column, starts)) for column, starts in BANDS.items()},
        "item_popularity_decile": nested(deciles),
    }


def measure_pairs(ranked: pl.DataFrame, ks: Sequence[int] = KS) -> pl.DataFrame:
    """Return one row a pair of `ranked`, or of rows of it: user_id, domain, n, and the measures.

    n: relevant items. hr@k: 1.0 if one of them is among the first k. recall@k: the share of
    min(k, n) that is. ndcg@k: binary gains, divided by the best DCG that min(k, n) relevant items
    can reach. Source: Järvelin and Kekäläinen, Cumulated gain-based evaluation of IR techniques,
    2002. mrr@k: 1 / rank of the first of them, 0 beyond k. Source: Voorhees, The TREC-8 question
    answering track report, 1999.
    """
    rank = ranked["rank"].to_numpy()
    starts = np.flatnonzero(np.diff(ranked["pair"].to_numpy().astype(np.int64), prepend=-1))
    n = np.diff(starts, append=len(rank))
    place = np.maximum(rank, 1)
    reachable_dcg = np.cumsum(1 / np.log2(np.arange(2, max(ks) + 2)))
    columns = {"n": n}
    for k in ks:
        found = (rank > 0) & (rank <= k)
        hits = np.add.reduceat(found, starts, dtype=np.int64)
        dcg = np.add.reduceat(found / np.log2(place + 1), starts)
        best = np.minimum(n, k)
        columns |= {
            f"hr@{k}": (hits > 0).astype(np.float64),
            f"recall@{k}": hits / best,
            f"ndcg@{k}": dcg / reachable_dcg[best - 1],
            f"mrr@{k}": np.maximum.reduceat(found / place, starts),
        }
    return ranked.select(USER_ID, DOMAIN)[starts].with_columns(**columns)


def number_users(pairs: pl.DataFrame) -> np.ndarray:
    """Return the user of each pair as a number from 0, (P,) int64; a user's pairs lie together."""
    numbers: np.ndarray = pairs[USER_ID].rle_id().to_numpy().astype(np.int64)
    return numbers


def _read(table: pa.Table) -> pl.DataFrame:
    """Return a table in polars with keys as plain strings (Hive partitions are dictionaries)."""
    frame = pl.DataFrame(pl.from_arrow(table, rechunk=False))  # a rechunk doubles the time
    keys = [name for name in (USER_ID, DOMAIN, ITEM_ID) if name in frame.columns]
    return frame.with_columns(pl.col(keys).cast(pl.String))


def _check_once(pairs: pl.DataFrame, where: str) -> None:
    """Raise ValueError if an item stands twice in a pair's list."""
    items = pl.col(ITEM_ID).list
    if doubles := pairs.select((items.len() - items.n_unique()).sum()).item():
        found = f"{doubles:,} items too many"
        raise ValueError(explain(where, "an item once in a pair", found, "drop the doubles"))


def bands(column: str, starts: Sequence[int]) -> dict[str, pl.Expr]:
    """Return the bands of a count by name: starts 0, 1, 5 give "0", "1-4" and "5+"."""
    parts = {}
    for start, stop in itertools.pairwise(starts):
        name = f"{start}" if stop == start + 1 else f"{start}-{stop - 1}"
        parts[name] = pl.col(column).is_between(start, stop, closed="left")
    parts[f"{starts[-1]}+"] = pl.col(column) >= starts[-1]
    return parts


def _average(rows: pl.DataFrame) -> Figures:
    """Return the mean of every measure over a set of pairs."""
    if rows.is_empty():
        return None
    measures = [name for name in rows.columns if "@" in name]
    means = {name: round(float(rows[name].to_numpy().mean()), 5) for name in measures}
    return {"pairs": rows.height} | means
