from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from ray.data import DataContext

from crossrec.data.histories import Prepared, histories_path
from crossrec.data.stream import NOBODY, stream_histories
from crossrec.schema import HISTORIES
from crossrec.storage import Store

BUCKETS = 20
USERS = [f"{bucket:02d}-{user}" for bucket in range(BUCKETS) for user in range(bucket % 3)]


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    """Twenty buckets; number n holds n % 3 users, so some are empty."""
    store = Store(str(tmp_path))
    for bucket in range(BUCKETS):
        users = [f"{bucket:02d}-{user}" for user in range(bucket % 3)]
        table = pa.table([users, [[1, 2]] * len(users), [[3, 4]] * len(users)], schema=HISTORIES)
        store.write_parquet(histories_path("prepared/x", bucket), table)
    return Prepared("prepared/x", "x", (), BUCKETS, len(USERS), 2 * len(USERS), 5, 0)


def test_stream_gives_every_history_in_order_at_every_pass(
    ray_cluster: None, prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DataContext.get_current().execution_options, "preserve_order", True)
    stream = stream_histories(Store(str(tmp_path)), prepared)
    for _ in range(2):
        tables: Any = list(stream.iter_batches(batch_size=7, batch_format="pyarrow"))
        assert [table.num_rows for table in tables] == [7, 7, 5]
        assert pa.concat_tables(tables)["user_id"].to_pylist() == USERS
        assert tables[0]["rows"].to_pylist()[0] == [1, 2]


def test_equal_shares_leave_no_history_out(
    ray_cluster: None, prepared: Prepared, tmp_path: Path
) -> None:
    assert len(USERS) % 4
    stream = stream_histories(Store(str(tmp_path)), prepared, workers=4)
    with ThreadPoolExecutor(4) as threads:
        shares = list(threads.map(_users_of, stream.streaming_split(4, equal=True)))
    assert {len(share) for share in shares} == {-(-len(USERS) // 4)}
    dealt_out = [user for share in shares for user in share]
    assert sorted(user for user in dealt_out if user != NOBODY) == USERS


def _users_of(share: Any) -> list[str]:
    return [row["user_id"] for row in share.iter_rows()]
