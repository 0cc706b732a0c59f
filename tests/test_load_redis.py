"""The example job against a real redis-server, where there is one."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from crossrec.errors import CrossrecError
from crossrec.publish import publish
from crossrec.storage import Store
from jobs import load_redis
from tests.runs import BUCKETS, DOMAINS, change_lists, config_of, publish_run, write_run

redis = pytest.importorskip("redis")
ROOT = Path(__file__).parents[1]

ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]),
}
"""Of the job: it is this tree's crossrec that it imports."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("redis-server"), reason="needs redis-server"),
]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Redis of this module's own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen(
        ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""],
        cwd=tmp_path_factory.mktemp("redis"),
        stdout=subprocess.DEVNULL,
    )
    url = f"redis://127.0.0.1:{port}/0"
    client = redis.Redis.from_url(url)
    for _ in range(100):
        try:
            client.ping()
            break
        except redis.ConnectionError:
            time.sleep(0.1)
    yield url
    server.terminate()
    server.wait()


@pytest.fixture
def client(address: str) -> Any:
    client = redis.Redis.from_url(address)
    client.flushall()
    return client


def command(store: Store, address: str, *more: str) -> list[str]:
    return [sys.executable, "jobs/load_redis.py", store.root, address, "--grace", "0", *more]


def run_load(store: Store, address: str, *more: str) -> dict[str, Any]:
    ended = subprocess.run(
        command(store, address, *more),
        env=ENVIRONMENT,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    facts: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return facts


def served(client: Any, domain: str, user: str) -> list[str]:
    """Ask as a server does."""
    version = client.get("crossrec:current").decode()
    found = client.mget(f"crossrec:{version}:{domain}:{user}", f"crossrec:{version}:{domain}")
    answer: list[str] = json.loads(next(value for value in found if value is not None))
    return answer


def publish_other_lists(store: Store, run_id: str) -> str:
    """Publish a run in which the first user's list is another; return that user."""

    def swap(table: pa.Table) -> pa.Table:
        lists = [["i3", "i1"], *table["item_ids"].to_pylist()[1:]]
        return table.set_column(1, table.schema.field(1), [lists])

    folder = write_run(store, run_id)
    path = f"{folder}/scores/domain=shop/bucket-00000.abc.parquet"
    user: str = store.read_parquet(path)["user_id"][0].as_py()
    change_lists(store, folder, swap)
    publish(config_of(store, run_id), store)
    return user


def test_load_switches_and_removes_the_old_version(
    tmp_path: Path, address: str, client: Any
) -> None:
    store = Store(str(tmp_path))
    publish_run(store, "r1")
    first = run_load(store, address)
    assert first["loaded_files"] == first["files"] == BUCKETS * len(DOMAINS) + 1
    assert served(client, "a%2Fb", "nobody") == ["i1"]
    user = publish_other_lists(store, "r2")
    assert served(client, "shop", user) == ["i1", "i2"]
    second = run_load(store, address)
    assert served(client, "shop", user) == ["i3", "i1"]
    assert served(client, "a%2Fb", user) == ["i1", "i2"]
    assert second["removed"] == [first["version"]]
    assert not list(client.scan_iter(f"*{first['version']}*"))
    again = run_load(store, address)
    assert (again["loaded_files"], again["switched"], again["removed"]) == (0, False, [])


def test_killed_load_is_continued_and_serves_the_old_version_meanwhile(
    tmp_path: Path, address: str, client: Any
) -> None:
    store = Store(str(tmp_path))
    publish_run(store, "r1")
    old = run_load(store, address)["version"]
    user = publish_other_lists(store, "r2")
    # A real kill, once a file is recorded; a server that takes no more writes holds it there.
    load = subprocess.Popen(
        command(store, address), env=ENVIRONMENT, cwd=ROOT, stderr=subprocess.DEVNULL
    )
    while len(done := set(client.scan_iter("crossrec:done:*"))) < 2 and load.poll() is None:
        time.sleep(0.0005)
    client.client_pause(60_000, all=False)
    load.send_signal(signal.SIGKILL)
    load.wait()
    client.client_unpause()
    assert len(done) == 2
    assert client.get("crossrec:current").decode() == old
    assert served(client, "shop", user) == ["i1", "i2"]
    rest = run_load(store, address)
    assert 0 < rest["loaded_files"] < rest["files"]
    assert served(client, "shop", user) == ["i3", "i1"]


def test_servers_never_see_half_of_a_version(tmp_path: Path, address: str, client: Any) -> None:
    """A server that asks all the time always gets a list, the old one or the new one."""
    store = Store(str(tmp_path))
    publish_run(store, "r1")
    run_load(store, address)
    user = publish_other_lists(store, "r2")
    ended = threading.Event()
    answers: list[list[str]] = []

    def ask() -> None:
        other = redis.Redis.from_url(address)
        while not ended.is_set():
            answers.append(served(other, "shop", user))

    server = threading.Thread(target=ask)
    server.start()
    run_load(store, address, "--grace", "1")
    ended.set()
    server.join()
    assert {tuple(answer) for answer in answers} == {("i1", "i2"), ("i3", "i1")}
    assert answers == sorted(answers)


def test_version_that_another_load_removes_is_not_switched_to(
    tmp_path: Path, address: str, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path))
    publish_run(store, "r1")
    switch = load_redis._switch

    def remove_first(*arguments: Any) -> bool:
        client.set("crossrec:current", "other")
        assert load_redis._remove_others(client, "crossrec", "other")
        return switch(*arguments)

    monkeypatch.setattr(load_redis, "_switch", remove_first)
    with pytest.raises(CrossrecError, match="expected 5 files, found 0; the same command"):
        load_redis.load(store, client, "crossrec", None, 0)
    assert client.get("crossrec:current") == b"other"


def test_mistakes_are_told(tmp_path: Path, address: str) -> None:
    store, empty = Store(str(tmp_path / "store")), Store(str(tmp_path / "empty"))
    publish_run(store, "r1")
    for arguments, status, said in (
        (command(empty, address), 2, "expected a publication, found none"),
        (command(store, address, "--domain", "sho"), 2, "expected some of the domains"),
        (command(store, "redis://127.0.0.1:9/0"), 1, "the same command continues"),
    ):
        ended = subprocess.run(
            arguments, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert ended.returncode == status
        assert said in ended.stderr.splitlines()[-1]
