"""Columns of `data.users` in the buckets of users, on Ray."""

from typing import Any

import pyarrow as pa
import pytest

from crossrec import schema
from crossrec.data.hashing import buckets_of
from crossrec.data.histories import DomainRange, Prepared, histories_path
from crossrec.data.inputs import list_input
from crossrec.data.replay import flatten
from crossrec.data.traitfiles import write_traits
from crossrec.data.traits import read_traits, with_traits
from crossrec.storage import Store

pytestmark = pytest.mark.usefixtures("ray_cluster")

BUCKETS = 3
USERS = [f"user {number}" for number in range(20)]


def homes() -> list[int]:
    return [int(home) for home in buckets_of(pa.array(USERS, pa.large_string()), BUCKETS)]


def test_each_bucket_has_the_traits_of_its_users(store: Store) -> None:
    """Of whom nothing is known, of whom two rows are, and of who is in no bucket."""
    for bucket in range(BUCKETS):
        own = [user for user, home in zip(USERS, homes(), strict=True) if home == bucket]
        table = pa.table([own, [[1]] * len(own), [[0]] * len(own)], schema=schema.HISTORIES)
        store.write_parquet(histories_path("prepared/p", bucket), table)
    prepared = Prepared("prepared/p", "p", (DomainRange("shop", 0, 2, 9),), BUCKETS, 20, 20, 2, 0)
    first: dict[str, Any] = {
        "user_id": [*USERS[:9], None],
        "age": pa.array(range(10)),
        "country": ["de"] * 10,
    }
    # A file may lack a column, and have dictionaries.
    second: dict[str, Any] = {
        "user_id": pa.array([USERS[3], *USERS[9:15], "gone"]).dictionary_encode()
    }
    third: dict[str, Any] = {
        "user_id": [USERS[15]],
        "country": [None],
        "consent": [True],
        "age": [None],
    }
    for number, columns in enumerate((first, second, third)):
        store.write_parquet(f"in/users/{number}.parquet", pa.table(columns))
    users = list_input("users", store.uri("in/users"), store.options)
    is_text = {"age": False, "country": True, "consent": False}
    folder = write_traits(store, prepared, users, is_text, "runs/r/traits")
    found: dict[str, tuple[Any, ...]] = {}
    for bucket in range(BUCKETS):
        histories = store.read_parquet(histories_path("prepared/p", bucket))
        known = flatten(with_traits(store, folder, bucket, histories))
        traits = (known.traits[name].to_pylist() for name in is_text)
        found |= dict(zip(known.user_ids.to_pylist(), zip(*traits, strict=True), strict=True))
    expected: dict[str, tuple[Any, ...]] = {user: (None, None, None) for user in USERS}
    expected |= {user: (float(age), "de", None) for age, user in enumerate(USERS[:9])}
    expected |= {USERS[15]: (None, None, 1.0)}
    assert found == expected
    some = read_traits(store, folder, pa.array([USERS[15], USERS[2], "gone"]), BUCKETS)
    assert some["age"].to_pylist() == [None, 2.0, None]
    assert store.list("runs/r/traits") == [f"bucket-0000{n}.parquet" for n in range(3)] + [
        "traits.json"
    ]
    assert store.read_json("runs/r/traits/traits.json")["users"] == 16
