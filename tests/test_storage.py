import errno
import hashlib
import os
import pickle
import socket
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from crossrec.errors import StorageError
from crossrec.schema import domain_folder
from crossrec.storage import Store, encode_parquet
from crossrec.storage_errors import MissingObject

ROOT = Path(__file__).parents[1]

STRANGE_NAMES = [
    "with space",
    "émoji 🚀",
    "%2F",
    "a%2Fb",
    "star*",
    "question?",
    "range[1]",
    "brace{a,b}",
    "hash#1",
    "plus+",
    "and&",
    "quote'\"",
    "back\\slash",
    "colon:",
    "<angle>",
    "~tilde",
]


def test_bytes_come_back_as_written(store: Store) -> None:
    store.write_bytes("a/b/c.bin", b"\x00one")
    assert store.read_bytes("a/b/c.bin") == b"\x00one"


def test_write_replaces_what_was_there(store: Store) -> None:
    store.write_bytes("x", b"a longer text")
    store.write_bytes("x", b"short")
    assert store.read_bytes("x") == b"short"


def test_empty_object_exists_and_is_empty(store: Store) -> None:
    store.write_bytes("empty", b"")
    assert store.exists("empty")
    assert store.read_bytes("empty") == b""


def test_missing_object_is_a_storage_error_and_a_file_not_found_error(store: Store) -> None:
    with pytest.raises(
        MissingObject, match=r"nothing\.json: expected an object, found none"
    ) as caught:
        store.read_bytes("nothing.json")
    assert isinstance(caught.value, StorageError)
    assert isinstance(caught.value, FileNotFoundError)


def test_exists_knows_objects_and_folders_with_something_in_them(store: Store) -> None:
    store.write_bytes("folder/inner", b"1")
    found = [store.exists(path) for path in ("folder", "folder/inner", "fold", "folder/in")]
    assert found == [True, True, False, False]


def test_list_gives_names_of_one_level_sorted(store: Store) -> None:
    for path in ("f/b", "f/a", "f/deep/er/x", "f2/y", "f/.hidden"):
        store.write_bytes(path, b"1")
    assert store.list("f") == ["a", "b", "deep"]
    assert store.list("") == ["f", "f2"]


def test_list_of_a_missing_folder_or_of_an_object_is_empty(store: Store) -> None:
    store.write_bytes("object", b"1")
    assert store.list("nowhere") == []
    assert store.list("object") == []


def test_list_sees_what_another_process_wrote_since(store: Store) -> None:
    store.write_bytes("f/a", b"1")
    assert store.list("f") == ["a"]
    pickle.loads(pickle.dumps(store)).write_bytes("f/b", b"2")
    assert store.list("f") == ["a", "b"]
    assert store.exists("f/b")


def test_delete_removes_a_folder_and_nothing_else(store: Store) -> None:
    for path in ("run-1/a", "run-1/b/c", "run-10/a", "run-1.json"):
        store.write_bytes(path, b"1")
    store.delete("run-1")
    assert store.list("") == ["run-1.json", "run-10"]


def test_size_of_a_folder_is_that_of_all_below_it(store: Store) -> None:
    for path, size in (("run-1/a", 3), ("run-1/b/c", 40), ("run-10/a", 500), ("run-1.json", 6_000)):
        store.write_bytes(path, b"1" * size)
    assert store.size("run-1") == 3 + 40
    assert store.size("never") == 0


def test_delete_removes_an_object_and_ignores_what_is_not_there(store: Store) -> None:
    store.write_bytes("a", b"1")
    store.delete("a")
    store.delete("a")
    store.delete("never/was")
    assert not store.exists("a")


def test_delete_takes_a_name_as_it_is_never_as_a_pattern(store: Store) -> None:
    for path in ("r*/a", "run/a", "[r]un/a"):
        store.write_bytes(path, b"1")
    store.delete("r*")
    store.delete("[r]un")
    assert store.list("") == ["run"]


def test_delete_of_the_whole_store_is_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="root of a store"):
        store.delete("")


@pytest.mark.parametrize("name", STRANGE_NAMES)
def test_strange_name_means_itself(store: Store, name: str) -> None:
    path = f"f/{name}/{name}"
    store.write_bytes(path, name.encode())
    assert store.read_bytes(path) == name.encode()
    assert store.list("f") == [name]
    assert store.list(f"f/{name}") == [name]
    store.delete(f"f/{name}")
    assert not store.exists(path)


@pytest.mark.parametrize("domain", ["a/b", "..", ".", "día 1", "🚀", "%2F", "a=b", ""])
def test_domain_folder_stays_one_level_below_its_parent(store: Store, domain: str) -> None:
    folder = domain_folder(domain)
    store.write_bytes(f"scores/{folder}/x.parquet", b"1")
    assert store.list("scores") == [folder]
    assert store.list("") == ["scores"]


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "/", "../x", "a/../../x", "a/..", "./a", "a//b", "a?versionId=1"]
)
def test_path_that_could_leave_the_store_is_refused(store: Store, path: str) -> None:
    with pytest.raises(ValueError, match="not a path inside the store"):
        store.write_bytes(path, b"1")


def test_create_stores_once(store: Store) -> None:
    assert store.create_bytes("plan.json", b"first")
    assert not store.create_bytes("plan.json", b"second")
    assert store.read_bytes("plan.json") == b"first"


def test_create_on_disk_has_one_winner_among_many(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda n: store.create_bytes("lock", str(n).encode()), range(64)))
    assert won.count(True) == 1
    assert store.read_bytes("lock") == str(won.index(True)).encode()


def test_create_works_on_a_disk_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    store = Store(str(tmp_path))
    assert store.create_bytes("plan.json", b"first")
    assert not store.create_bytes("plan.json", b"second")
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_json_comes_back_and_has_sorted_keys(store: Store) -> None:
    store.write_json("x.json", {"b": [1, "é"], "a": None})
    assert store.read_json("x.json") == {"a": None, "b": [1, "é"]}
    assert store.read_bytes("x.json").decode().index('"a"') < 10


def test_broken_json_is_a_storage_error(store: Store) -> None:
    store.write_bytes("x.json", b'{"run_id": ')
    with pytest.raises(StorageError, match=r"x\.json: expected JSON"):
        store.read_json("x.json")


def test_file_is_stored_whole_in_place_of_what_was_there(store: Store, tmp_path: Path) -> None:
    data = bytes(range(256)) * 1_000
    source = tmp_path / "source"
    for content in (b"before", data):
        source.write_bytes(content)
        store.put_file(source, "deep/er/file.npy")
    assert store.read_bytes("deep/er/file.npy") == data
    assert store.list("deep/er") == ["file.npy"]
    source.unlink()
    assert store.read_bytes("deep/er/file.npy") == data


def test_file_is_copied_where_the_disk_has_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "another disk")

    monkeypatch.setattr(os, "link", refuse)
    store = Store(str(tmp_path / "store"))
    (tmp_path / "source").write_bytes(b"content")
    store.put_file(tmp_path / "source", "f/copy")
    (tmp_path / "source").write_bytes(b"changed")
    assert store.read_bytes("f/copy") == b"content"
    assert [path.name for path in (tmp_path / "store/f").iterdir()] == ["copy"]


def test_parquet_comes_back_with_its_schema(store: Store) -> None:
    schema = pa.schema([pa.field("user_id", pa.string(), nullable=False), ("n", pa.int32())])
    table = pa.table({"user_id": ["a", "b", "c"], "n": [1, 2, 3]}, schema=schema)
    store.write_parquet("t.parquet", table)
    assert store.read_parquet("t.parquet").equals(table)
    assert store.read_parquet("t.parquet").schema.equals(schema)
    assert store.read_parquet("t.parquet", ["n"]).column_names == ["n"]


@pytest.mark.parametrize("data", [b"", b"PAR1", b"not parquet at all"])
def test_broken_parquet_is_a_storage_error(store: Store, data: bytes) -> None:
    store.write_bytes("t.parquet", data)
    with pytest.raises(StorageError, match=r"t\.parquet: expected a Parquet file"):
        store.read_parquet("t.parquet")


def test_same_table_gives_the_same_bytes() -> None:
    table = pa.table({"x": list(range(1000))})
    assert encode_parquet(table) == encode_parquet(pa.table({"x": list(range(1000))}))


def test_failed_write_on_disk_keeps_the_old_object_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path))
    store.write_bytes("x", b"old")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match="No space left on device"):
        store.write_bytes("x", b"new")
    assert store.read_bytes("x") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_written_file_is_readable_as_the_umask_says(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        Store(str(tmp_path)).write_bytes("x", b"1")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o644


def test_arrow_filesystem_reads_and_writes_the_same_objects(store: Store) -> None:
    table = pa.table({"x": [1, 2, 3]})
    store.write_parquet("f/t.parquet", table)
    filesystem = store.arrow_filesystem
    assert pq.read_table(store.full_path("f/t.parquet"), filesystem=filesystem).equals(table)
    filesystem.create_dir(store.full_path("g"), recursive=True)
    with filesystem.open_output_stream(store.full_path("g/raw")) as out:
        out.write(b"raw")
    assert store.read_bytes("g/raw") == b"raw"


def test_arrow_filesystem_copies_lists_and_deletes_folders(store: Store, tmp_path: Path) -> None:
    # What Ray Train does with checkpoints. 6 MiB: s3fs sends more than 5 MiB in parts.
    source = tmp_path / "checkpoint"
    (source / "inner").mkdir(parents=True)
    (source / "weights").write_bytes(b"w" * (6 << 20))
    (source / "inner" / "empty").write_bytes(b"")
    filesystem, full = store.arrow_filesystem, store.full_path("checkpoints/one")
    filesystem.create_dir(full)
    pyarrow.fs.copy_files(str(source), full, destination_filesystem=filesystem)
    assert store.list("checkpoints/one") == ["inner", "weights"]
    selector = pyarrow.fs.FileSelector(full, recursive=True)
    sizes = {info.base_name: info.size for info in filesystem.get_file_info(selector)}
    assert (sizes["weights"], sizes["empty"]) == (6 << 20, 0)
    missing = filesystem.get_file_info(store.full_path("checkpoints/two"))
    assert missing.type == pyarrow.fs.FileType.NotFound
    filesystem.delete_dir(full)
    assert not store.exists("checkpoints/one")


def test_store_is_pickled_without_its_connection(store: Store) -> None:
    store.write_bytes("x", b"1")
    again = pickle.loads(pickle.dumps(store))
    assert again == store
    assert again.read_bytes("x") == b"1"


def test_store_opened_before_a_fork_works_after_it(store: Store) -> None:
    command = [sys.executable, "-m", "tests.fork_run", store.root]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_store_works_in_a_worker_of_ray(store: Store, ray_cluster: None) -> None:
    import ray

    store.write_bytes("x", b"1")

    def work(store: Store) -> bytes:
        store.write_bytes("y", b"2")
        return store.read_bytes("x")

    assert ray.get(ray.remote(work).remote(store), timeout=60) == b"1"
    assert store.read_bytes("y") == b"2"


def test_threads_share_a_store(store: Store) -> None:
    def write_and_read(number: int) -> bytes:
        store.write_bytes(f"n/{number}", str(number).encode())
        return store.read_bytes(f"n/{number}")

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(write_and_read, range(40))) == [str(n).encode() for n in range(40)]
    assert len(store.list("n")) == 40


def test_local_root_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Store("out/").root == str(tmp_path / "out")
    assert Store(f"file://{tmp_path}/out").root == str(tmp_path / "out")
    assert Store("out").uri("a/b") == f"{tmp_path}/out/a/b"
    assert Store("out").is_local


def test_memory_filesystem_stands_for_any_other_of_fsspec() -> None:
    store = Store("memory://recs")
    store.check_writable()
    store.write_bytes("a/b*", b"1")
    assert store.list("a") == ["b*"]
    assert not store.create_bytes("a/b*", b"2")
    assert not store.is_local
    store.delete("a")
    assert store.list("") == []


def test_check_writable_leaves_nothing(store: Store) -> None:
    store.check_writable()
    full = store.full_path()
    selector = pyarrow.fs.FileSelector(full, allow_not_found=True)
    assert store.arrow_filesystem.get_file_info(selector) == []


def test_root_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StorageError, match="expected a path that is free"):
            Store(str(root)).check_writable()


def test_root_that_may_not_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As root, tests may write everywhere: the answer of the operating system is played.
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(
        StorageError, match="found Permission denied; check that it exists, its per"
    ):
        Store(str(tmp_path / "closed")).check_writable()


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("", "expected a folder or a URI"),
        ("s3://", "expected a folder or a URI"),
        ("sftp://me:hunter2@host/x", "expected a place without a password"),
    ],
)
def test_root_that_names_no_place_is_refused(root: str, message: str) -> None:
    with pytest.raises(StorageError, match=message) as caught:
        Store(root)
    assert "hunter2" not in str(caught.value)


def test_unknown_scheme_is_refused() -> None:
    with pytest.raises(StorageError, match="Protocol not known: nowhere"):
        Store("nowhere://b/x").check_writable()


def test_bucket_that_does_not_exist_is_refused(s3_store_options: dict[str, Any]) -> None:
    store = Store("s3://crossrec-no-such-bucket-9f2c/x")
    with pytest.raises(StorageError, match="expected a bucket that exists, found NoSuchBucket"):
        store.check_writable()
    for ask in (store.exists, store.list, store.read_bytes, store.delete):
        with pytest.raises(StorageError, match="expected a bucket that exists") as caught:
            ask("a")
        assert not isinstance(caught.value, MissingObject)


def test_bucket_is_never_made_in_passing(s3_store_options: dict[str, Any]) -> None:
    store = Store("s3://crossrec-no-such-bucket-9f2c/x")
    store.arrow_filesystem.create_dir(store.full_path("a"), recursive=True)
    with pytest.raises(StorageError, match="expected a bucket that exists"):
        store.write_bytes("a/b", b"1")


@pytest.fixture
def strict_server(s3_store_options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let moto check credentials; another server does so anyway."""
    if not os.environ.get("CROSSREC_TEST_S3_ENDPOINT"):
        from moto import settings

        monkeypatch.setattr(settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)


@pytest.mark.usefixtures("strict_server")
def test_wrong_credentials_are_told_and_kept_secret(
    s3_root: str, s3_store_options: dict[str, Any]
) -> None:
    wrong = {**s3_store_options, "key": "nobody", "secret": "hunter2hunter2"}
    store = Store(s3_root, wrong)
    with pytest.raises(StorageError, match="expected credentials that the store accepts") as caught:
        store.check_writable()
    for ask in (store.exists, store.list, store.read_bytes):
        with pytest.raises(StorageError, match="AWS_ACCESS_KEY_ID"):
            ask("a")
    error: BaseException | None = caught.value
    while error:
        assert "hunter2" not in f"{error!s}{error!r}"
        error = error.__cause__ or error.__context__
    assert "hunter2" not in f"{store}{store!r}"


def test_no_credentials_are_told(
    s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(
        StorageError, match="found Unable to locate credentials; set AWS_ACCESS_KEY"
    ):
        Store(s3_root).check_writable()


def test_options_win_over_the_variables(
    s3_root: str, s3_store_options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    Store(s3_root, s3_store_options).check_writable()


def test_misspelt_option_is_told() -> None:
    store = Store("s3://b/x", {"endpoint": "http://127.0.0.1:9", "secret": "hunter2hunter2"})
    with pytest.raises(StorageError, match="unexpected keyword argument 'endpoint'"):
        store.check_writable()


def test_endpoint_that_refuses_is_told_in_seconds(s3_store_options: dict[str, Any]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        store = Store("s3://b/x", {**s3_store_options, "endpoint_url": endpoint})
        began = time.monotonic()
        with pytest.raises(StorageError, match=f"expected a store that answers.*{endpoint}"):
            store.check_writable()
    assert time.monotonic() - began < 10


def test_endpoint_that_never_answers_is_told_in_seconds(
    s3_store_options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from crossrec import s3

    monkeypatch.setattr(s3, "PROBE_LIMIT_S", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        store = Store("s3://b/x", {**s3_store_options, "endpoint_url": endpoint})
        with pytest.raises(StorageError, match="no reply to put_object within 1 s"):
            store.check_writable()


def test_large_object_goes_up_in_one_put(
    s3_root: str, s3_store_options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from crossrec.s3 import S3

    calls: list[str] = []
    call = S3._call_s3

    async def listen(self: S3, method: str, *args: Any, **kwargs: Any) -> Any:
        calls.append(method)
        return await call(self, method, *args, **kwargs)

    monkeypatch.setattr(S3, "_call_s3", listen)
    # 101 MiB: s3fs by itself sends from 100 MiB on in parts.
    data = os.urandom(1 << 20) * 101
    store = Store(s3_root)
    store.write_bytes("large", data)
    assert calls == ["put_object"]
    assert hashlib.sha256(store.read_bytes("large")).digest() == hashlib.sha256(data).digest()
    assert calls == ["put_object", "get_object"]
