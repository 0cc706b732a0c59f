"""Reasons as the column `because`: catalogue rows in, domains and item ids out.

lists = add_reasons(lists, rows_MN, {"shop": ids_of_shop, "video": ids_of_video})
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from crossrec.schema import REASON, scores_schema


def add_reasons(
    lists: pa.Table, rows_MN: np.ndarray, item_ids: Mapping[str, pa.StringArray]
) -> pa.Table:
    """Return lists with their reasons, schema.scores_schema.

    Args:
        lists: schema.SCORES, of M items in all.
        rows_MN: catalogue rows of the reasons of each item, one list after the other, -1 past the
            end.
        item_ids: of all domains of the catalogue, in its order.
    """
    offsets = lists.column("item_ids").combine_chunks().offsets
    because = pa.ListArray.from_arrays(offsets, reasons_of(rows_MN, item_ids))
    return pa.table([*lists.columns, because], schema=scores_schema(explain=1))


def reasons_of(rows_MN: np.ndarray, item_ids: Mapping[str, pa.StringArray]) -> pa.ListArray:
    """Return M lists of schema.REASON; arguments as in `add_reasons`.

    >>> item_ids = {"shop": pa.array(["a", "b"]), "video": pa.array(["a"])}
    >>> reasons_of(np.array([[2, 1], [-1, -1]]), item_ids).to_pylist()
    [[{'domain': 'video', 'item_id': 'a'}, {'domain': 'shop', 'item_id': 'b'}], []]
    """
    is_reason = rows_MN >= 0
    offsets = np.concatenate([[0], np.cumsum(is_reason.sum(1))]).astype(np.int32)
    # Each item's name is looked up once: those of a history are reasons many times.
    rows, places = np.unique(rows_MN[is_reason], return_inverse=True)
    starts = np.cumsum([0, *map(len, item_ids.values())])
    cuts = np.searchsorted(rows, starts)
    ids = [
        ids.take(pa.array(rows[first:last] - start))
        for ids, start, first, last in zip(
            item_ids.values(), starts[:-1], cuts[:-1], cuts[1:], strict=True
        )
    ]
    domains = np.searchsorted(starts, rows, side="right") - 1
    names = pa.array(list(item_ids), pa.string()).take(pa.array(domains))
    found = [part.take(pa.array(places)) for part in (names, pa.concat_arrays(ids))]
    return pa.ListArray.from_arrays(
        pa.array(offsets), pa.StructArray.from_arrays(found, fields=list(REASON))
    )
