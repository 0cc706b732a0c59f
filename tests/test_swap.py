import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from crossrec import claims
from crossrec.claims import swap_by_claims
from crossrec.storage import Store
from tests.proxy import Headers, proxy_to

ROOT = Path(__file__).parents[1]


def refuse_conditions(method: str, path: str, headers: Headers) -> str:
    """Answer as Swift does."""
    is_condition = {"if-match", "if-none-match"} & {name.lower() for name in headers}
    return "501 NotImplemented" if is_condition else "pass"


def ignore_conditions(method: str, path: str, headers: Headers) -> str:
    """Do as stores do that have never heard of conditions."""
    for name in list(headers):
        if name.lower() in ("if-match", "if-none-match"):
            del headers[name]
    return "pass"


def needs_moto() -> None:
    """Skip on another server, which may know no conditions and looks at what is signed."""
    if os.environ.get("CROSSREC_TEST_S3_ENDPOINT"):
        pytest.skip("needs moto")


@pytest.fixture(params=["local", "s3", "s3 answering 501", "s3 ignoring conditions", "memory"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Every kind of place that a store can be."""
    if request.param == "local":
        yield Store(str(tmp_path / "store"))
        return
    if request.param == "memory":
        yield Store(f"memory://{tmp_path.name}")
        return
    options = request.getfixturevalue("s3_store_options")
    root = request.getfixturevalue("s3_root")
    rules = {"s3 answering 501": refuse_conditions, "s3 ignoring conditions": ignore_conditions}
    rule = rules.get(request.param, lambda *_: "pass")
    if rule is ignore_conditions:
        needs_moto()
    with proxy_to(options["endpoint_url"], rule) as address:
        yield Store(root, {**options, "endpoint_url": address})


def test_swap_replaces_only_what_it_should(any_store: Store) -> None:
    store = any_store
    assert not store.swap_bytes("x", b"1", b"2")
    assert store.swap_bytes("x", None, b"1")
    assert not store.swap_bytes("x", None, b"2")
    assert not store.swap_bytes("x", b"0", b"2")
    assert store.read_bytes("x") == b"1"
    assert store.swap_bytes("x", b"1", b"2")
    assert store.read_bytes("x") == b"2"
    assert store.list("") == ["x"]


def test_swap_that_is_done_already_is_done(any_store: Store) -> None:
    any_store.write_bytes("x", b"2")
    assert any_store.swap_bytes("x", b"1", b"2")


def test_of_many_swaps_at_once_each_finds_the_one_before(any_store: Store) -> None:
    """A list to which every thread adds loses nothing, so none replaced what it had not seen.

    moto looks at a condition and writes in two steps, so on S3 itself threads prove nothing.
    """
    store = any_store
    if store.root.startswith("s3://") and store.knows_conditions:
        pytest.skip("moto is not atomic itself")
    store.write_bytes("names", b"")

    def add(name: int) -> None:
        while True:
            before = store.read_bytes("names")
            if store.swap_bytes("names", before, before + str(name).encode()):
                return

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(4)))
    assert sorted(store.read_bytes("names").decode()) == list("0123")


@pytest.mark.parametrize(
    ("rule", "knows"), [(refuse_conditions, False), (ignore_conditions, False), (None, True)]
)
def test_store_is_asked_once_what_it_knows(
    s3_root: str, s3_store_options: dict[str, Any], rule: Callable[..., str] | None, knows: bool
) -> None:
    needs_moto()
    asked: list[str] = []

    def listen(method: str, path: str, headers: Headers) -> str:
        conditions = {"if-match", "if-none-match"} & {name.lower() for name in headers}
        asked.extend(conditions)
        return rule(method, path, headers) if rule else "pass"

    with proxy_to(s3_store_options["endpoint_url"], listen) as address:
        store = Store(s3_root, {**s3_store_options, "endpoint_url": address})
        store.check_writable()
        probes = len(asked)
        assert probes in (1, 2)
        assert store.knows_conditions is knows
        assert store.list("") == []
        store.swap_bytes("x", None, b"1")
        assert len(asked) == probes + knows


def test_swap_whose_reply_is_lost_is_known_to_have_won(
    s3_root: str, s3_store_options: dict[str, Any]
) -> None:
    lost: list[str] = []

    def lose_the_first(method: str, path: str, headers: Headers) -> str:
        if method == "PUT" and path.endswith("/x") and not lost:
            lost.append(path)
            return "lose"
        return "pass"

    with proxy_to(s3_store_options["endpoint_url"], lose_the_first) as address:
        store = Store(s3_root, {**s3_store_options, "endpoint_url": address})
        assert store.swap_bytes("x", None, b"1")
    assert lost


def test_object_that_changes_between_look_and_write_is_not_replaced(
    s3_root: str, s3_store_options: dict[str, Any]
) -> None:
    """The store's own answer, 412: another writes when this one's request is on the way."""
    needs_moto()
    other = Store(s3_root, s3_store_options)
    other.write_bytes("x", b"1")

    def write_before(method: str, path: str, headers: Headers) -> str:
        if method == "PUT" and path.endswith("/x"):
            other.write_bytes("x", b"other")
        return "pass"

    with proxy_to(s3_store_options["endpoint_url"], write_before) as address:
        store = Store(s3_root, {**s3_store_options, "endpoint_url": address})
        assert store.knows_conditions
        assert not store.swap_bytes("x", b"1", b"2")
    assert other.read_bytes("x") == b"other"


def test_claim_of_a_dead_process_holds_nobody_up_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "DEAD_S", 1.0)
    store = Store(str(tmp_path))
    store.write_bytes("x.claims/dead", b"claim")
    assert swap_by_claims(store, "x", None, b"1")
    assert store.list("") == ["x", "x.claims"]
    assert store.list("x.claims") == []


def test_claim_of_a_living_process_is_waited_for(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write_bytes("x.claims/living", b"claim")

    def finish() -> None:
        store.write_bytes("x", b"its own")
        store.delete("x.claims/living")

    timer = threading.Timer(0.5, finish)
    timer.start()
    assert not swap_by_claims(store, "x", None, b"1")
    timer.join()
    assert store.read_bytes("x") == b"its own"


def test_lock_on_disk_goes_with_its_process(tmp_path: Path) -> None:
    """A child dies with the lock in its hands."""
    store = Store(str(tmp_path))
    store.write_bytes("x", b"1")
    take = "from crossrec.disk import _locked; import os, sys"
    die = "with _locked(sys.argv[1]): os._exit(9)"
    # Not a fork, which would break the connections of the tests' Ray.
    command = [sys.executable, "-c", f"{take}\n{die}", store.full_path("x")]
    assert subprocess.run(command, cwd=ROOT, timeout=120).returncode == 9
    assert store.swap_bytes("x", b"1", b"2")
