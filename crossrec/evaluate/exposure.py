"""What lists show of the catalogue, whoever they please: coverage, Gini, novelty, distance.

In: the lists of one domain, and its catalogue with each item's events before the judged days. Out:
figures of the whole, at one k.

Four users are shown two items each, of a catalogue of three: x four times, y three times, z once.

>>> lists = pa.table({"item_ids": [["x", "y"], ["y", "x"], ["x", "y", "z"], ["z", "x"]]})
>>> measure_exposure(lists, pa.array(["x", "y", "z"]), np.array([4, 2, 2]), k=2)
{'coverage@2': 1.0, 'gini@2': 0.375, 'novelty@2': 1.5}

Half of all events were x's, a quarter y's and z's: novelty (4 * 1 + 3 * 2 + 1 * 2) / 8 = 1.5 bits.
"""

import numpy as np
import polars as pl
import pyarrow as pa

from crossrec.schema import ITEM_ID

Array = np.ndarray

LISTS_A_BLOCK = 8_192
"""Lists whose items' vectors are held at once: 170 MB of ten items of width 256."""


def measure_exposure(
    lists: pa.Table, item_ids: pa.Array, events_I: Array, k: int = 10
) -> dict[str, float | None]:
    """Return coverage, Gini and novelty of a domain's lists, rounded to 5 digits.

    Args:
        lists: one row a user with `item_ids`, best first; empty lists show nothing.
        item_ids: (I,) the domain's catalogue, no item twice.
        events_I: (I,) events of each item before the judged days.
        k: only the first k of a list count.

    Returns:
        coverage@k: share of the catalogue that is in anybody's first k.
        gini@k: inequality of how often each item is shown, over the whole catalogue: 0 if all are
            shown alike, 1 if one item takes all places. None where nothing is shown. Source: Shani
            and Gunawardana, Evaluating recommendation systems, 2011, section on item space
            coverage.
        novelty@k: mean self-information, in bits, of what is shown: -log2 of the item's share of
            the domain's events, the mean over all shown places. An item without events counts as
            one with a single event. None where nothing is shown. Source: Castells, Vargas and Wang,
            Novelty and diversity metrics for recommender systems, 2011.
    """
    shown_I = _count_shown(lists, item_ids, k)
    total = shown_I.sum()
    found: dict[str, float | None] = {
        f"coverage@{k}": round(float(np.mean(shown_I > 0)), 5),
        f"gini@{k}": None,
        f"novelty@{k}": None,
    }
    if total:
        share_I = np.maximum(events_I, 1) / max(int(events_I.sum()), 1)
        found[f"gini@{k}"] = round(gini(shown_I), 5)
        found[f"novelty@{k}"] = round(float(shown_I @ -np.log2(share_I)) / int(total), 5)
    return found


def measure_distance(
    lists: pa.Table, item_ids: pa.Array, texts_IW: Array, k: int = 10
) -> dict[str, float | None]:
    """Return how much the items of a list differ, rounded to 5 digits.

    Args:
        lists: as in `measure_exposure`.
        item_ids: (I,) the domain's catalogue.
        texts_IW: (I, W) vectors of the items' texts; one that is zero is like no other.
        k: only the first k of a list count.

    Returns:
        distance@k: 1 - cosine, the mean over all pairs of a list's items, then over the lists; None
        where no list has two. Source: Smyth and McClave, Similarity vs. diversity, 2001.

    >>> lists = pa.table({"item_ids": [["x", "y"], ["x", "z"], ["y"]]})
    >>> texts = np.array([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    >>> measure_distance(lists, pa.array(["x", "y", "z"]), texts)
    {'distance@10': 0.5}
    """
    first = pl.DataFrame(pl.from_arrow(lists.select(["item_ids"]))).select(
        pl.col("item_ids").list.drop_nulls().list.head(k).alias(ITEM_ID)
    )
    places = first.with_row_index("list").explode(ITEM_ID).drop_nulls()
    items = pl.DataFrame({ITEM_ID: pl.Series(pl.from_arrow(item_ids))}).with_row_index("row")
    places = places.join(items, on=ITEM_ID).sort("list")
    means = []
    for start in range(0, first.height, LISTS_A_BLOCK):
        block = places.filter(pl.col("list").is_between(start, start + LISTS_A_BLOCK - 1))
        owners = block["list"].to_numpy().astype(np.int64) - start
        vectors = texts_IW[block["row"].to_numpy().astype(np.int64)].astype(np.float64)
        norms = np.linalg.norm(vectors, axis=1)
        vectors /= np.where(norms > 0, norms, 1.0)[:, None]
        size = int(owners.max(initial=-1)) + 1
        sums = np.zeros((size, vectors.shape[1]))
        np.add.at(sums, owners, vectors)
        counts = np.bincount(owners, minlength=size)
        # The square of a sum is the sum of all products: of each with itself, and of pairs twice.
        cosines = (sums**2).sum(1) - np.bincount(owners, norms > 0, size)
        several = counts > 1
        counts = counts[several]
        means.append(1 - cosines[several] / (counts * (counts - 1)))
    every = np.concatenate([np.zeros(0), *means])
    return {f"distance@{k}": round(float(every.mean()), 5) if len(every) else None}


def _count_shown(lists: pa.Table, item_ids: pa.Array, k: int) -> Array:
    """Return in how many lists' first k each item of the catalogue is, (I,) int64."""
    shown = pl.DataFrame(pl.from_arrow(lists.select(["item_ids"])))
    first = pl.col("item_ids").list.head(k).alias(ITEM_ID)
    counts = shown.select(first).explode(ITEM_ID).drop_nulls().group_by(ITEM_ID).len()
    items = pl.DataFrame({ITEM_ID: pl.Series(pl.from_arrow(item_ids))})
    joined = items.join(counts, on=ITEM_ID, how="left", maintain_order="left")
    return joined["len"].fill_null(0).to_numpy().astype(np.int64)


def gini(counts_I: Array) -> float:
    """Return the Gini index of counts, scaled so that one item with all of them gives 1.

    >>> gini(np.array([2, 2, 2])), gini(np.array([0, 0, 5]))
    (0.0, 1.0)
    """
    size = len(counts_I)
    if size < 2:
        return 0.0
    place_I = 2 * np.arange(1, size + 1) - size - 1
    return float(place_I @ np.sort(counts_I)) / ((size - 1) * int(counts_I.sum()))
