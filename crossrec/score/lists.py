"""Lists of one domain, and the table that they are written as.

    to_table(user_ids, join_lists([(rows, scores)], k=50), item_ids)

Tensor suffixes: B users, I items, K list length.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from crossrec.schema import SCORES


@dataclass(frozen=True)
class Lists:
    """Lists of one domain: rows (B, K) int64 within it, -1 past the end; scores (B, K) float32."""

    rows: np.ndarray
    scores: np.ndarray


def join_lists(parts: Sequence[tuple[Tensor, Tensor]], k: int) -> Lists:
    """Return the lists of batches of users, rows and scores (B, K) each, one below the other."""
    if not parts:
        return Lists(np.zeros((0, k), np.int64), np.zeros((0, k), np.float32))
    rows, scores = (torch.cat([part[n] for part in parts]).numpy() for n in (0, 1))
    return Lists(rows, scores)


def to_table(user_ids: pa.Array, lists: Lists, item_ids: pa.Array) -> pa.Table:
    """Return lists as a table of schema.SCORES.

    Args:
        user_ids: (B,) strings.
        lists: of the domain whose items `item_ids` are, in catalogue order.
        item_ids: (I,) strings.
    """
    is_item = lists.rows >= 0
    offsets = np.concatenate([[0], np.cumsum(is_item.sum(1))]).astype(np.int32)
    ids = item_ids.take(pa.array(lists.rows[is_item]))
    scores = pa.array(lists.scores[is_item], pa.float32())
    return pa.table(
        [
            user_ids,
            pa.ListArray.from_arrays(pa.array(offsets), ids),
            pa.ListArray.from_arrays(pa.array(offsets), scores),
        ],
        schema=SCORES,
    )
