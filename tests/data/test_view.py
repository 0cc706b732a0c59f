from pathlib import Path

import numpy as np
import pyarrow as pa

from crossrec.data.daily import load_activity
from crossrec.data.grouping import to_histories
from crossrec.data.histories import DomainRange, Prepared, histories_path, read_histories
from crossrec.data.view import View, view_histories
from crossrec.schema import CATALOGUE, HISTORIES, US_PER_DAY, domain_folder
from crossrec.storage import Store

ROWS = [0, 4, 2, 5, 3]
DAYS = [7, 7, 8, 9, 9]
TABLE = to_histories(
    pa.array(["ada", "ben", "cy"]),
    np.array([3, 0, 2]),
    np.array(ROWS, np.int32),
    np.array(DAYS) * US_PER_DAY,
)
SHOP, VIDEO = DomainRange("shop", 0, 3, 2), DomainRange("video", 3, 6, 3)


def prepared_input(tmp_path: Path) -> tuple[Store, Prepared]:
    store = Store(str(tmp_path))
    found = Prepared("prepared/x", "x", (SHOP, VIDEO), 1, 3, 5, 6, 0)
    store.write_parquet(histories_path(found.folder, 0), TABLE)
    for domain in found.domains:
        rows = [
            {"domain": domain.name, "item_id": str(row), "text": ""}
            for row in range(domain.start, domain.stop)
        ]
        path = f"{found.folder}/catalogue/{domain_folder(domain.name)}/items.parquet"
        store.write_parquet(path, pa.Table.from_pylist(rows, CATALOGUE))
    return store, found


def test_view_of_all_rows_changes_nothing() -> None:
    assert view_histories(View(0, 6), TABLE) == TABLE


def test_view_of_a_domain_keeps_every_user_and_counts_rows_from_0(tmp_path: Path) -> None:
    store, prepared = prepared_input(tmp_path)
    alone = prepared.only(VIDEO)
    found = read_histories(store, alone, 0)
    assert found.schema == HISTORIES
    assert found.to_pydict() == {
        "user_id": ["ada", "ben", "cy"],
        "rows": [[4 - 3], [], [5 - 3, 3 - 3]],
        "timestamps": [[7 * US_PER_DAY], [], [9 * US_PER_DAY] * 2],
    }
    assert (alone.domains, alone.items, alone.events) == ((DomainRange("video", 0, 3, 3),), 3, 3)


def test_view_without_newest_leaves_out_one_event_a_user(tmp_path: Path) -> None:
    store, prepared = prepared_input(tmp_path)
    found = read_histories(store, prepared.without_newest(), 0)
    assert found["rows"].to_pylist() == [[0, 4], [], [5]]


def test_activity_of_a_view_is_that_of_its_events(tmp_path: Path) -> None:
    store, prepared = prepared_input(tmp_path)
    activity = load_activity(store, prepared.only(VIDEO))
    cells = list(zip(activity.rows, activity.days, activity.events, strict=True))
    assert cells == [(0, 9, 1), (1, 7, 1), (2, 9, 1)]
    assert activity.items == 3
    rest = load_activity(store, prepared.without_newest())
    assert list(zip(rest.rows, rest.days, strict=True)) == [(0, 7), (4, 7), (5, 9)]
