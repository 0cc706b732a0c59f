import io
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crossrec.data.inputs import (
    Footer,
    Input,
    Segment,
    check_column,
    list_input,
    plan_chunks,
    read_chunk,
    read_footers,
)
from crossrec.errors import InputError, StorageError
from crossrec.storage import Store


def write(path: Path, table: pa.Table, row_group_size: int | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=row_group_size)


def ids(*values: str) -> pa.Table:
    return pa.table({"user_id": list(values)})


def read_all(source: Input, columns: list[str], rows: int = 1000) -> list[pa.Table]:
    chunks = plan_chunks(read_footers(source, columns), rows)
    return [table for chunk in chunks for table in read_chunk(source, chunk, columns, rows)]


def test_list_input_reads_a_folder_whole_and_sorted(tmp_path: Path) -> None:
    for name in ("b.parquet", "a/c.PARQUET", "_SUCCESS", ".x.parquet", "_tmp/d.parquet", "e.txt"):
        write(tmp_path / name, ids("ada"))
    source = list_input("events", str(tmp_path), {})
    names = [str(Path(file.uri).relative_to(tmp_path)) for file in source.files]
    assert names == ["a/c.PARQUET", "b.parquet"]


def test_list_input_takes_one_file_of_any_name(tmp_path: Path) -> None:
    write(tmp_path / "_events.dat", ids("ada"))
    source = list_input("events", str(tmp_path / "_events.dat"), {})
    assert [file.uri for file in source.files] == [str(tmp_path / "_events.dat")]
    assert source.files[0].bytes == (tmp_path / "_events.dat").stat().st_size


def test_list_input_on_s3_reads_as_on_disk(s3_root: str) -> None:
    sink = io.BytesIO()
    pq.write_table(ids("ada", "🦊"), sink)
    store = Store(s3_root)
    for name in ("events/a b.parquet", "events/_x.parquet", "events2/c.parquet"):
        store.write_bytes(name, sink.getvalue())
    folder = list_input("events", f"{s3_root}/events", {})
    assert [file.uri for file in folder.files] == [f"{s3_root}/events/a b.parquet"]
    file = list_input("events", f"{s3_root}/events/a b.parquet", {})
    assert file.files == folder.files
    assert folder.files[0].version
    (table,) = read_all(folder, ["user_id"])
    assert table.column("user_id").to_pylist() == ["ada", "🦊"]


def test_list_input_tells_of_a_missing_bucket(s3_bucket: str) -> None:
    with pytest.raises((InputError, StorageError), match=r"s3://no-such-bucket-here/events"):
        list_input("events", "s3://no-such-bucket-here/events", {})


def test_list_input_tells_of_wrong_credentials(
    s3_root: str, s3_store_options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not os.environ.get("CROSSREC_TEST_S3_ENDPOINT"):
        # Let moto check credentials; another server does so anyway.
        monkeypatch.setattr("moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0)
    wrong = {**s3_store_options, "key": "nobody", "secret": "hunter2hunter2"}
    with pytest.raises(StorageError, match="expected credentials that the store accepts") as error:
        list_input("events", f"{s3_root}/events", wrong)
    assert "hunter2" not in str(error.value)


def test_list_input_tells_where_there_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data.events=.*gone: expected a Parquet file.*no file"):
        list_input("events", str(tmp_path / "gone"), {})


def test_list_input_tells_of_a_folder_without_parquet(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text("user_id\n")
    with pytest.raises(InputError, match="a folder with Parquet files, found 1 other files"):
        list_input("events", str(tmp_path), {})


@pytest.mark.parametrize(("content", "found"), [(b"", "0 bytes"), (b"PAR1 but no more", "Parquet")])
def test_read_footers_names_an_empty_or_corrupt_file(
    tmp_path: Path, content: bytes, found: str
) -> None:
    write(tmp_path / "a.parquet", ids("ada"))
    (tmp_path / "b.parquet").write_bytes(content)
    with pytest.raises(InputError, match=rf"b\.parquet: expected a .*{found}.*export the file"):
        read_footers(list_input("events", str(tmp_path), {}), ["user_id"])


def test_read_chunk_names_a_file_with_damaged_pages(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write(path, ids(*(str(number) for number in range(1000))))
    data = bytearray(path.read_bytes())
    data[4:40] = b"\xff" * 36
    path.write_bytes(data)
    source = list_input("events", str(tmp_path), {})
    with pytest.raises(InputError, match=r"a\.parquet: expected a sound Parquet file"):
        read_all(source, ["user_id"])


def test_read_chunk_names_a_file_that_is_gone(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", ids("ada"))
    source = list_input("events", str(tmp_path), {})
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(InputError, match=r"a\.parquet: expected the file that was listed"):
        list(read_chunk(source, [Segment(0, 0, 1, 0)], ["user_id"]))


def test_read_chunk_tells_of_text_that_is_no_utf8(tmp_path: Path) -> None:
    bad = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.array([0, 2], pa.int32()).buffers()[1], pa.py_buffer(b"\xff\xfe")]
    )
    write(tmp_path / "a.parquet", pa.table({"user_id": bad}))
    with pytest.raises(InputError, match=r"a\.parquet: expected text in column user_id"):
        read_all(list_input("events", str(tmp_path), {}), ["user_id"])


def test_check_column_names_file_and_type_of_a_mistyped_column(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", pa.table({"timestamp": pa.array([1])}))
    source = list_input("events", str(tmp_path), {})
    footers = read_footers(source, ["timestamp"])
    expected = (
        r"a\.parquet: expected a column timestamp of type timestamp, found timestamp of type int64"
    )
    with pytest.raises(InputError, match=expected):
        check_column(source, footers, "timestamp", "timestamp")


def test_check_column_names_the_columns_where_one_is_missing(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", pa.table({"userId": ["ada"], "when": [1]}))
    source = list_input("events", str(tmp_path), {})
    expected = r"a\.parquet: expected a column user_id of type string, found columns userId, when"
    with pytest.raises(InputError, match=expected):
        check_column(source, read_footers(source, ["user_id"]), "user_id", "string")


def test_plan_chunks_merges_small_files_and_cuts_large_ones_between_row_groups() -> None:
    footers = [Footer(rows, {}) for rows in [(2,), (), (3,), (4, 4, 4), (1,)]]
    assert plan_chunks(footers, 5) == [
        (Segment(0, 0, 1, 0), Segment(2, 0, 1, 2)),
        (Segment(3, 0, 2, 5),),
        (Segment(3, 2, 3, 13), Segment(4, 0, 1, 17)),
    ]


def test_plan_chunks_of_no_rows_is_empty() -> None:
    assert plan_chunks([Footer((), {}), Footer((0,), {})], 5) == []


def test_read_chunk_numbers_the_rows_through_all_files(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", ids("a", "b", "c"), row_group_size=2)
    write(tmp_path / "b.parquet", ids())
    write(tmp_path / "c.parquet", ids("d", "e"))
    tables = read_all(list_input("users", str(tmp_path), {}), ["user_id"], rows=2)
    rows = [row for table in tables for row in table.to_pylist()]
    assert rows == [{"origin": n, "user_id": user} for n, user in enumerate("abcde")]


def test_read_chunk_reads_a_large_row_group_in_parts(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", ids(*"abcdefgh"))
    tables = read_all(list_input("users", str(tmp_path), {}), ["user_id"], rows=3)
    assert [table.num_rows for table in tables] == [3, 3, 2]


@pytest.mark.parametrize(
    "kind",
    [
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int8(), pa.string()),
        pa.dictionary(pa.int32(), pa.large_string()),
    ],
    ids=str,
)
def test_read_chunk_takes_any_column_of_strings(tmp_path: Path, kind: pa.DataType) -> None:
    column = pa.array(["ada", None, "bob"], pa.string()).cast(kind)
    write(tmp_path / "a.parquet", pa.table({"user_id": column, "extra": [1, 2, 3]}))
    source = list_input("events", str(tmp_path), {})
    check_column(source, read_footers(source, ["user_id"]), "user_id", "string")
    (table,) = read_all(source, ["user_id"])
    assert table.column("user_id").to_pylist() == ["ada", None, "bob"]
    assert table.column_names == ["origin", "user_id"]


def test_read_chunk_reads_numbers_of_items_as_text(tmp_path: Path) -> None:
    numbers = pa.table({"brand": [16_777_217, None], "size": [0.5, 2.0], "weight": [3, 4]})
    write(tmp_path / "a.parquet", numbers)
    write(tmp_path / "b.parquet", pa.table({"brand": ["acme"], "size": ["large"]}))
    source = list_input("items", str(tmp_path), {})
    (table,) = read_all(source, ["brand", "size", "weight"])
    # The first is above 2**24, where float32 loses digits.
    assert table.column("brand").to_pylist() == ["16777217", None, "acme"]
    assert table.column("size").to_pylist() == ["0.5", "2", "large"]
    assert table.column("weight").to_pylist() == ["3", "4", None]


@pytest.mark.parametrize("table", ["events", "relations"])
def test_read_chunk_reads_weights_as_float32(tmp_path: Path, table: str) -> None:
    write(tmp_path / "a.parquet", pa.table({"weight": [3, 4]}))
    (found,) = read_all(list_input(table, str(tmp_path), {}), ["weight"])
    assert found.column("weight") == pa.chunked_array([[3.0, 4.0]], pa.float32())


@pytest.mark.parametrize(
    ("kind", "value", "microseconds"),
    [
        (pa.timestamp("s"), 3, 3_000_000),
        (pa.timestamp("ms"), 3, 3_000),
        (pa.timestamp("us"), -3, -3),
        (pa.timestamp("ns"), -1_500, -2),
        (pa.timestamp("us", "Asia/Tokyo"), 3, 3),
        (pa.timestamp("s"), 2**62, 9_223_372_036_854_000_000),
    ],
    ids=str,
)
def test_read_chunk_reads_timestamps_as_microseconds_utc(
    kind: pa.DataType, value: int, microseconds: int, tmp_path: Path
) -> None:
    # Parquet has no seconds, so the table goes the short way.
    from crossrec.data.inputs import _microseconds

    column = pa.chunked_array([pa.array([value, None], pa.int64()).cast(kind)])
    assert _microseconds(column).to_pylist() == [microseconds, None]
