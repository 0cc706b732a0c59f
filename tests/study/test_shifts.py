"""Shifted inputs: what goes wrong does, and all else stays as it was."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from crossrec.config import ShiftName
from crossrec.data.grouping import to_histories
from crossrec.data.histories import DomainRange, Prepared, catalogue_path, histories_path
from crossrec.data.relations import related_neighbours, relations_path
from crossrec.schema import CATALOGUE, US_PER_DAY
from crossrec.storage import Store
from crossrec.study import shifts
from crossrec.study.shifts import Shift, shift_histories, shift_texts, translate, write_shifted

USERS, EVENTS, FIRST_JUDGED, STOP = 300, 20, 90, 104
SHOP, FILM = DomainRange("shop", 0, 60, 3_000), DomainRange("film", 60, 100, 3_000)
STARTS = np.array([0, 60, 100])

Flat = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def shift(name: ShiftName, seed: int = 17) -> Shift:
    return Shift(name, SHOP, seed, FIRST_JUDGED, STOP)


def histories() -> pa.Table:
    """Random events on days 0 to 103; a rating says where each stood at first."""
    draw = np.random.default_rng(3)
    times = np.sort(draw.integers(0, STOP * US_PER_DAY, (USERS, EVENTS)), axis=1).ravel()
    rows = draw.integers(0, 100, USERS * EVENTS).astype(np.int32)
    ids = pa.array([f"u{user:04d}" for user in range(USERS)])
    ratings = {"rating": np.arange(len(rows), dtype=np.float32)}
    return to_histories(ids, np.full(USERS, EVENTS), rows, times, ratings)


def flat(table: pa.Table) -> Flat:
    columns: Iterable[str] = ("rows", "timestamps", "ratings")
    rows, times, ratings = (table[name].combine_chunks().flatten().to_numpy() for name in columns)
    return rows, times // US_PER_DAY, times, ratings.astype(np.int64)


def shifted(name: ShiftName, chosen: Iterable[float] = (), seed: int = 17, bucket: int = 4) -> Flat:
    found = shift_histories(shift(name, seed), np.array(list(chosen)), STARTS, bucket, histories())
    assert found["user_id"].to_pylist() == histories()["user_id"].to_pylist()
    return flat(found)


ROWS, DAYS, TIMES, _ = flat(histories())


def test_a_tenth_of_the_known_events_is_wrong_and_no_judged_one() -> None:
    rows, _, times, ratings = shifted("wrong")
    assert np.array_equal(times, TIMES)
    changed = rows != ROWS[ratings]
    assert not changed[DAYS >= FIRST_JUDGED].any()
    # Binomial: a deviation is .004, and of .1 a fiftieth draws the item that stood there.
    assert changed[DAYS < FIRST_JUDGED].mean() == pytest.approx(0.098, abs=0.016)
    assert np.array_equal(rows < 60, ROWS[ratings] < 60)  # of the same domain
    assert np.array_equal(shifted("wrong")[0], rows)
    assert not np.array_equal(shifted("wrong", seed=18)[0], rows)
    assert not np.array_equal(shifted("wrong", bucket=5)[0], rows)


def test_a_scarce_domain_loses_its_known_events_alone() -> None:
    _, _, _, ratings = shifted("scarce", chosen=[0.02])
    gone = np.ones(len(ROWS), bool)
    gone[ratings] = False
    may_go = (ROWS < 60) & (DAYS < FIRST_JUDGED)
    assert not gone[~may_go].any()
    assert 0 < (~gone[may_go]).mean() < 0.05


def test_a_shock_begins_two_days_before_the_judged_ones_and_goes_on() -> None:
    rows, days, _, ratings = shifted("shock", chosen=[7, 11])
    rows, chosen = rows.astype(int), np.isin(rows, [7, 11])
    before = ROWS[ratings]
    inside = (before < 60) & (days >= FIRST_JUDGED - 2)
    assert np.array_equal(rows[~inside], before[~inside])
    # A third, and of the others two items of sixty.
    assert chosen[inside].mean() == pytest.approx(1 / 3 + 2 / 3 * 2 / 60, abs=0.08)


def test_texts_alone_change_in_a_shifted_catalogue() -> None:
    columns = [["shop"] * 2, ["a", "b"], ["Green tea, green cup", ""], ["x", None], [3, None]]
    items = pa.table(columns, schema=CATALOGUE)
    cut = shift_texts(shift("truncated"), items)
    assert cut["text"].to_pylist() == ["Green tea,", ""]
    assert cut.drop_columns("text") == items.drop_columns("text")
    assert cut.schema == CATALOGUE
    made_up = shift_texts(shift("translated"), items)["text"].to_pylist()
    words = made_up[0].replace(",", "").split()
    assert words[0] == words[2] != words[1]
    assert not {"green", "tea", "cup"} & set(words)
    assert made_up[1] == ""
    assert translate("Green", 18) != translate("green", 17) == words[0]
    assert shift_texts(shift("wrong"), items) == items


def test_a_shifted_input_keeps_its_relations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_tasks(function: Callable[..., Any], calls: Sequence[Any], _: str) -> list[Any]:
        return [function(*call) for call in calls]

    monkeypatch.setattr(shifts, "run_tasks", run_tasks)
    store = Store(str(tmp_path))
    prepared = Prepared(
        "prepared/x", "x", (SHOP, FILM), 1, USERS, 6_000, 100, 0, None, ("rating",), False, True
    )
    store.write_parquet(histories_path(prepared.folder, 0), histories())
    for domain in (SHOP, FILM):
        items = [{"domain": domain.name, "item_id": "a", "text": "tea"}]
        table = pa.Table.from_pylist(items, schema=CATALOGUE)
        store.write_parquet(catalogue_path(prepared.folder, domain.name), table)
    pairs = pa.table({"row": pa.array([3], pa.int32()), "related": [5], "weight": [1.0]})
    store.write_parquet(relations_path(prepared.folder), pairs)
    found = write_shifted(store, prepared, shift("wrong"), "shifted")
    assert found.with_relations
    (of_shop, of_film), (before, _) = (
        related_neighbours(store, known) for known in (found, prepared)
    )
    assert of_shop.columns.tolist() == before.columns.tolist() == [5]
    assert not len(of_film.columns)
    # What was written without them is not taken for it.
    without = replace(prepared, with_relations=False)
    assert shift("wrong").digest(without) != found.digest
