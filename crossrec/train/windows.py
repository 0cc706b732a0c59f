"""What an epoch learns of each history: which events of a long one, and what is told from where.

    tables = draw_epoch(tables, passes, max_history, known_before, rng)
    users, sources, columns = training_targets(padded, histories, by_event)

Without drawing the newest `max_history` events alone would be learned from, and nothing of a day
with more events than that, as every new user of a film site has: on MovieLens-100k, each user's
newest event left out, NDCG@10 of the sequence and popularity was .058 at best, and is .143 with it.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from crossrec.data.replay import Histories, PaddedHistories, flatten
from crossrec.schema import EVENT_VALUES
from crossrec.train.continued import FIRST_DAY, SINCE

Array = np.ndarray

BY_EVENT = "by_event"
"""Column of a table of histories: whether each event is predicted from the one before it, whatever
its day, and not from the newest earlier day."""

BY_EVENT_SHARE = 0.5
"""Of the histories. The night predicts days ahead, so that all of them by event is worse on the
demo (NDCG@10 .187 beside .204), and none is worse wherever much happens on one day."""

EARLIER_SHARE = 0.5
"""Of the histories that are longer than a window: those that end anywhere, not with the newest."""

LISTS = ("rows", "timestamps", *EVENT_VALUES.values())
"""Columns of a table of histories that have a value an event."""


def draw_epoch(
    tables: Iterable[pa.Table],
    passes: int,
    max_history: int,
    known_before: int,
    rng: np.random.Generator,
) -> Iterator[pa.Table]:
    """Yield each table `passes` times, as `draw_windows` draws it anew."""
    for table in tables:
        for _ in range(passes):
            yield draw_windows(table, max_history, known_before, rng)


def draw_windows(
    table: pa.Table, max_history: int, known_before: int, rng: np.random.Generator
) -> pa.Table:
    """Return histories of which some end earlier, events of one moment in any order, and BY_EVENT.

    Args:
        table: of schema.HISTORIES, perhaps with SINCE; of one that does not learn from all of its
            events none is cut off.
        max_history: events of a window.
        known_before: events of this day and later are nobody's to learn from.
        rng: draws.
    """
    if not len(table):
        return table.append_column(BY_EVENT, pa.array([], pa.bool_()))
    table = table.combine_chunks()
    histories = flatten(table)
    lengths_U = histories.lengths
    known_U = np.bincount(histories.owners[histories.days < known_before], minlength=len(lengths_U))
    is_earlier_U = (known_U > max_history) & (rng.random(len(lengths_U)) < EARLIER_SHARE)
    if SINCE in table.column_names:
        is_earlier_U &= table[SINCE].to_numpy() == FIRST_DAY
    drawn_U = rng.integers(np.minimum(max_history, known_U), known_U + 1)
    kept_U = np.where(is_earlier_U, drawn_U, lengths_U)
    # Events of one moment lie by catalogue row, which says nothing of what came first.
    moments_E = table["timestamps"].chunk(0).flatten().to_numpy()
    order_E = np.lexsort((rng.random(len(moments_E)), moments_E, histories.owners))
    places_E = np.arange(len(order_E)) - np.repeat(histories.offsets[:-1], lengths_U)
    taken_N = pa.array(order_E[places_E < np.repeat(kept_U, lengths_U)])
    offsets_U = pa.array(np.concatenate([[0], np.cumsum(kept_U)]).astype(np.int32))
    for index, field in enumerate(table.schema):
        if field.name in LISTS:
            values = table[field.name].chunk(0).flatten().take(taken_N)
            found = pa.ListArray.from_arrays(offsets_U, values, field.type)
            table = table.set_column(index, field, found)
    return table.append_column(BY_EVENT, pa.array(rng.random(len(lengths_U)) < BY_EVENT_SHARE))


def training_targets(
    padded: PaddedHistories, histories: Histories, by_event: Array | None = None
) -> tuple[Array, Array, Array]:
    """Return what is predicted from where: each event, from the newest earlier day.

    The night never sees part of a day, so an event of day d is predicted from what was known before
    d. Events whose source was cut off by `max_history` are left out.

    Args:
        padded: of the histories.
        histories: as they were laid out.
        by_event: (B,) bool, users whose events are each predicted from the one before it, whatever
            its day; default: none.

    Returns:
        (N,) int64 each: batch row, source column, target column; sorted by batch row, then target
        column.
    """
    length = padded.rows.shape[1]
    columns = np.arange(length)
    new_day = np.ones(padded.rows.shape, bool)
    new_day[:, 2:] = padded.days[:, 2:] != padded.days[:, 1:-1]
    if by_event is not None:
        new_day |= by_event[:, None]
    source = np.maximum.accumulate(np.where(new_day, columns, 0), axis=1) - 1
    is_cut = padded.lengths < histories.lengths
    wanted = (padded.rows >= 0) & ((source > 0) | ~is_cut[:, None])
    users, targets = np.nonzero(wanted)
    return users, source[users, targets], targets
