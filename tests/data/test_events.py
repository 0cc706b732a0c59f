import numpy as np
import pyarrow as pa
import pytest

from crossrec.data.events import (
    LISTED,
    NO_EVENT,
    Checked,
    ItemIndex,
    TimeLimits,
    check_events,
    check_users,
    find_rows,
    index_items,
)
from crossrec.data.hashing import hash_strings
from crossrec.data.rejects import Origins, bad_share, check_share, count_reasons
from crossrec.data.strangers import Stranger
from crossrec.errors import InputError

FUTURE_US = 2_000_000_000_000_000
ORIGINS = Origins("events", ("a.parquet", "b.parquet"), np.array([0, 3, 100]))
GOOD = ("ada", "1", "shop", 1_000_000)


def strings(*values: str | None) -> pa.LargeStringArray:
    return pa.array(values, pa.large_string())


def index() -> ItemIndex:
    # Rows: shop 0 "1", shop 1 "2", video 2 "1".
    return index_items(("shop", "video"), np.array([0, 2, 3]), strings("1", "2", "1"))


def check(*events: tuple[str | None, str | None, str | None, int | None]) -> Checked:
    users, items, domains, times = zip(*events, strict=True)
    table = pa.table(
        {
            "origin": pa.array(range(len(events)), pa.int64()),
            "user_id": strings(*users),
            "item_id": strings(*items),
            "domain": strings(*domains),
            "timestamp": pa.array(times, pa.int64()),
        }
    )
    return check_events(table, index(), TimeLimits(FUTURE_US, None), ORIGINS)


def test_check_events_gives_a_good_event_its_catalogue_row() -> None:
    checked = check(GOOD, ("bob", "1", "video", 5))
    assert checked.accepted.to_pylist() == [
        {"user_id": "ada", "row": 0, "timestamp": 1_000_000, "origin": 0},
        {"user_id": "bob", "row": 2, "timestamp": 5, "origin": 1},
    ]
    assert checked.newest_us == 1_000_000
    assert not len(checked.rejects)


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        ((None, "1", "shop", 5), "null user_id"),
        (("", "1", "shop", 5), "empty user_id"),
        (("ada", None, "shop", 5), "null item_id"),
        (("ada", "", "shop", 5), "empty item_id"),
        (("ada", "1", None, 5), "null domain"),
        (("ada", "1", "", 5), "empty domain"),
        (("ada", "1", "shop", None), "null timestamp"),
        (("ada", "1", "shop", FUTURE_US + 1), "timestamp in the future"),
        (("ada", "1", "shop", -(2**62)), "timestamp before year 1"),
        (("ada", "3", "shop", 5), "unknown item"),
        (("ada", "2", "video", 5), "unknown item"),
        (("ada", "1", "books", 5), "unknown domain"),
        ((None, "", "books", None), "null user_id"),
    ],
)
def test_check_events_rejects_a_faulty_event_with_its_first_fault(
    event: tuple[str | None, str | None, str | None, int | None], reason: str
) -> None:
    checked = check(GOOD, event)
    assert checked.rejects.column("reason").to_pylist() == [reason]
    assert checked.accepted.filter(pa.compute.field("row") >= 0).num_rows == 1


def test_check_events_keeps_what_a_rejected_row_said_and_where() -> None:
    rejects = check(GOOD, GOOD, GOOD, GOOD, ("ada", "9", "a/b", 86_400_000_000)).rejects
    assert rejects.to_pylist() == [
        {
            "table": "events",
            "file": "b.parquet",
            "file_row": 4 - 3,
            "reason": "unknown domain",
            "user_id": "ada",
            "item_id": "9",
            "domain": "a/b",
            "timestamp": "1970-01-02 00:00:00.000000Z",
        }
    ]


def test_check_events_tells_the_domains_that_the_catalogue_lacks() -> None:
    late = ("ada", "1", "books", FUTURE_US + 1)
    checked = check(GOOD, ("ada", "1", "books", 7), ("bob", "9", "books", 5), late)
    assert checked.strangers == {"books": Stranger(2, 7)}


def test_check_events_remembers_the_users_of_rejected_events_once() -> None:
    bad = ("cy", "9", "shop", 5)
    users = check(bad, bad, ("", "1", "shop", 5), (None, "1", "shop", 5)).accepted
    assert users.select(["user_id", "row"]).to_pylist() == [{"user_id": "cy", "row": NO_EVENT}]


def test_check_events_ignores_and_counts_what_comes_after_as_of() -> None:
    table = pa.table(
        {
            "origin": pa.array([0, 1, 2]),
            "user_id": strings("ada", "ada", "ada"),
            "item_id": strings("1", "2", "9"),
            "domain": strings("shop", "shop", "shop"),
            "timestamp": pa.array([10, 11, 11], pa.int64()),
        }
    )
    checked = check_events(table, index(), TimeLimits(FUTURE_US, as_of_us=10), ORIGINS)
    assert (checked.ignored, checked.newest_us) == (1, 10)
    assert count_reasons(checked.rejects) == {"unknown item": 1}


def test_check_users_lists_each_good_id_once() -> None:
    table = pa.table({"origin": pa.array(range(4)), "user_id": strings("ada", None, "", "ada")})
    checked = check_users(table, Origins("users", ("u.parquet",), np.array([0, 4])))
    listed = checked.accepted.select(["user_id", "row"]).to_pylist()
    assert listed == [{"user_id": "ada", "row": LISTED}]
    assert count_reasons(checked.rejects) == {"null user_id": 1, "empty user_id": 1}


def test_find_rows_tells_items_with_equal_hashes_apart() -> None:
    built = index()
    # All three keys at one hash: only the ids and the domains can tell.
    hashes = np.full(3, hash_strings(strings("1"))[0])
    same = ItemIndex(built.domains, built.starts, built.item_ids, hashes, built.rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("crossrec.data.events._key_hashes", lambda *_: np.repeat(hashes[:1], 4))
        found = find_rows(same, strings("video", "shop", "shop", "shop"), strings(*"1213"))
    assert found.tolist() == [2, 1, 0, -1]


def test_find_rows_of_an_empty_catalogue_finds_nothing() -> None:
    empty = index_items((), np.zeros(1, np.int64), strings())
    assert find_rows(empty, strings("shop", None), strings("1", "1")).tolist() == [-1, -1]


def test_hash_strings_never_changes() -> None:
    # Buckets of users, and with them what a rerun overwrites, hang on these values.
    values = hash_strings(strings("", "a", "user-1", "exactly8", "longer than eight", "🦊/.."))
    assert [f"{value:016x}" for value in values.tolist()] == [
        "0000000000000000",
        "6232969000262121",
        "692039cc58953d69",
        "4b3e8bbe7e3ca180",
        "6f13777a0da643c0",
        "3ca74960c6f68763",
    ]


def test_hash_strings_does_not_depend_on_the_neighbours() -> None:
    many = strings("x" * 100, "ada", None, "🦊")
    assert hash_strings(many.slice(1))[0] == hash_strings(strings("ada"))[0]
    assert hash_strings(many.slice(3))[0] == hash_strings(strings("🦊"))[0]


def test_hash_strings_spreads_similar_ids_evenly() -> None:
    ids = pa.array([f"user-{number}" for number in range(32_000)], pa.large_string())
    sizes = np.bincount((hash_strings(ids) % np.uint64(32)).astype(int), minlength=32)
    # 1,000 a bucket, give or take 5 standard deviations of sqrt(1000 * 31 / 32) = 31.
    assert sizes.min() > 1000 - 5 * 31
    assert sizes.max() < 1000 + 5 * 31


def test_check_share_counts_no_duplicates() -> None:
    reasons = {"null user_id": 10, "duplicate": 900}
    assert bad_share(reasons, 1000) == 10 / 1000
    check_share("events", reasons, 1000, 0.01, "runs/1/rejects")


def test_check_share_names_the_top_reasons_and_the_folder() -> None:
    reasons = {"null user_id": 10, "unknown item": 20, "empty domain": 1, "null domain": 5}
    expected = (
        r"data.events: expected at most 3.5% rejected rows, found 36 of 1,000 \(3.6%\): "
        r"unknown item 20, null user_id 10, null domain 5; see runs/1/rejects"
    )
    with pytest.raises(InputError, match=expected):
        check_share("events", reasons, 1000, 0.035, "runs/1/rejects")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("rating", 3.5, 3.5),
        ("rating", None, None),
        ("rating", float("nan"), None),
        ("rating", float("inf"), "rating not finite"),
        ("weight", 2.0, 2.0),
        ("weight", 0.0, 0.0),
        ("weight", None, 1.0),
        ("weight", -1.0, "weight below 0 or not finite"),
        ("weight", float("-inf"), "weight below 0 or not finite"),
    ],
)
def test_check_events_takes_along_what_an_event_carries(
    name: str, value: float | None, expected: float | str | None
) -> None:
    """None of an accepted event is NaN."""
    table = pa.table(
        {
            "origin": pa.array([0]),
            "user_id": strings("ada"),
            "item_id": strings("1"),
            "domain": strings("shop"),
            "timestamp": pa.array([5]),
            name: pa.array([value], pa.float32()),
        }
    )
    checked = check_events(table, index(), TimeLimits(FUTURE_US, None), ORIGINS)
    if isinstance(expected, str):
        assert checked.rejects.column("reason").to_pylist() == [expected]
        # The user is known all the same, and carries nothing.
        assert checked.accepted.column("row").to_pylist() == [NO_EVENT]
        return
    assert not len(checked.rejects)
    found = checked.accepted.column(name)[0].as_py()
    assert np.isnan(found) if expected is None else found == expected
