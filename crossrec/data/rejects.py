"""Rejected rows: kept with where they stood, what they said and why; counted by reason.

rejects = reject_table(origins, table, codes, REASONS)     # schema.REJECTS
check_share({"null user_id": 12}, 100, limit)              # InputError above the limit
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crossrec.data.hashing import Array
from crossrec.data.inputs import ORIGIN, Footer, Input
from crossrec.data.strangers import RETIRED_DOMAIN
from crossrec.errors import InputError, explain
from crossrec.schema import DOMAIN, ITEM_ID, REJECTS, TIMESTAMP, USER_ID

DUPLICATE = "duplicate"
DUPLICATE_ITEM = "duplicate item"
HARMLESS = frozenset({DUPLICATE, DUPLICATE_ITEM, RETIRED_DOMAIN})
"""Reasons that `data.max_reject_share` does not count: to drop a copy loses nothing, and a domain
that is no more is missed by nobody."""


@dataclass(frozen=True)
class Origins:
    """Which file and row a row number of a table stands for; starts: (files + 1,) int64."""

    table: str
    uris: tuple[str, ...]
    starts: Array

    @classmethod
    def of(cls, source: Input, footers: Sequence[Footer]) -> "Origins":
        """Return those of an input table."""
        rows = np.cumsum([0, *(footer.rows for footer in footers)])
        return cls(source.table, tuple(file.uri for file in source.files), rows)


def reject_table(
    origins: Origins, rows: pa.Table, codes: Array, reasons: Sequence[str]
) -> pa.Table:
    """Return the rows whose code is not 0 as a table of schema.REJECTS.

    Args:
        origins: of the table that the rows come from.
        rows: with `origin` and whatever key columns there are.
        codes: (N,) ints into `reasons`.
        reasons: the first stands for a good row.
    """
    kept = np.flatnonzero(codes)
    rows = rows.take(pa.array(kept))
    origin = rows.column(ORIGIN).to_numpy()
    files = np.searchsorted(origins.starts, origin, side="right") - 1
    columns: dict[str, Any] = {
        "table": pa.array([origins.table]).take(pa.array(np.zeros(len(kept), np.int64))),
        "file": pa.array(origins.uris, pa.string()).take(pa.array(files)),
        "file_row": pa.array(origin - origins.starts[files]),
        "reason": pa.array(reasons, pa.string()).take(pa.array(codes[kept])),
    }
    for name in (USER_ID, ITEM_ID, DOMAIN, TIMESTAMP):
        if name not in rows.column_names:
            columns[name] = pa.nulls(len(kept), pa.string())
            continue
        column = rows.column(name)
        if name == TIMESTAMP:
            column = column.cast(pa.timestamp("us", "UTC"))
        columns[name] = column.cast(pa.string())
    return pa.table([columns[name] for name in REJECTS.names], schema=REJECTS)


def count_reasons(rejects: pa.Table) -> Counter[str]:
    """Return how many rows each reason has."""
    counts = pc.value_counts(rejects.column("reason"))
    return Counter({str(entry["values"]): int(entry["counts"]) for entry in counts.to_pylist()})


def bad_share(reasons: Mapping[str, int], rows: int) -> float:
    """Return the share of rows that were rejected, copies left out.

    >>> bad_share({"null user_id": 1, "duplicate": 50}, 100)
    0.01
    """
    bad = sum(count for reason, count in reasons.items() if reason not in HARMLESS)
    return bad / max(rows, 1)


def check_share(table: str, reasons: Mapping[str, int], rows: int, limit: float, kept: str) -> None:
    """Stop where too large a share of a table was rejected.

    Args:
        table: events or items.
        reasons: rejected rows by reason; those in HARMLESS do not count.
        rows: rows of the input table.
        limit: `data.max_reject_share`.
        kept: where the rejected rows can be looked at.

    Raises:
        InputError: names the three most common reasons.
    """
    share = bad_share(reasons, rows)
    if share <= limit:
        return
    counted = Counter({reason: n for reason, n in reasons.items() if reason not in HARMLESS})
    top = ", ".join(f"{reason} {n:,}" for reason, n in counted.most_common(3))
    found = f"{counted.total():,} of {rows:,} ({share:.1%}): {top}"
    mend = f"see {kept}, mend the rows or raise data.max_reject_share"
    raise InputError(explain(f"data.{table}", f"at most {limit:.1%} rejected rows", found, mend))
