from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from ray.data import DataContext

from crossrec.data.histories import Prepared, histories_path
from crossrec.data.stream import stream_histories
from crossrec.schema import HISTORIES
from crossrec.storage import Store

BUCKETS = 20


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    """Twenty buckets; number n holds n % 3 users, so some are empty."""
    store = Store(str(tmp_path))
    for bucket in range(BUCKETS):
        users = [f"{bucket:02d}-{user}" for user in range(bucket % 3)]
        table = pa.table([users, [[1, 2]] * len(users), [[3, 4]] * len(users)], schema=HISTORIES)
        store.write_parquet(histories_path("prepared/x", bucket), table)
    return Prepared("prepared/x", "x", (), BUCKETS, 20, 40, 5, 0)


def test_stream_gives_every_history_in_order_at_every_pass(
    ray_cluster: None, prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DataContext.get_current().execution_options, "preserve_order", True)
    stream = stream_histories(Store(str(tmp_path)), prepared)
    expected = [f"{bucket:02d}-{user}" for bucket in range(BUCKETS) for user in range(bucket % 3)]
    for _ in range(2):
        tables: Any = list(stream.iter_batches(batch_size=7, batch_format="pyarrow"))
        assert [table.num_rows for table in tables] == [7, 7, 5]
        assert pa.concat_tables(tables)["user_id"].to_pylist() == expected
        assert tables[0]["rows"].to_pylist()[0] == [1, 2]
