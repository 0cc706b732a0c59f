"""The highest values of each row of a sparse matrix.

rows, columns, values, places = keep_highest(pairs.tocoo(), k=100)
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

Array = np.ndarray


class Highest(NamedTuple):
    """Entries of a matrix, by row, then highest value first: (N,) each; place from 0 in a row."""

    rows: Array
    columns: Array
    values: Array
    places: Array


def keep_highest(matrix: sp.coo_matrix, k: int) -> Highest:
    """Return the k highest values above 0 of each row; of equal ones those that stand first.

    Row and value are sorted by as one float64: with millions of rows, values that differ by less
    than a billionth of the highest count as equal.

    >>> found = keep_highest(sp.coo_matrix([[0.2, 0.0, 0.5], [0.0, 0.1, 0.1]]), k=1)
    >>> found.rows.tolist(), found.columns.tolist()
    ([0, 1], [2, 1])
    """
    above = matrix.data > 0
    rows = matrix.row[above].astype(np.int64)
    columns, values = matrix.col[above], matrix.data[above]
    # Two keys take longer to sort by.
    order = np.argsort(rows - values / (values.max(initial=0) * 2 + 1e-30), kind="stable")
    rows, columns, values = rows[order], columns[order], values[order]
    counts = np.bincount(rows, minlength=matrix.shape[0])
    places = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = places < k
    return Highest(rows[kept], columns[kept], values[kept], places[kept])
