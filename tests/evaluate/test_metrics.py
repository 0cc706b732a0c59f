"""Figures against arithmetic that can be checked by hand."""

from math import log2

import pyarrow as pa
import pytest

from crossrec.evaluate.metrics import JUDGED, judge, judge_rows

Truth = list[tuple[str, str, str, bool, bool]]
Lists = list[tuple[str, str, list[str]]]

FIRST, SECOND, THIRD = 1.0, 1 / log2(3), 1 / log2(4)
"""What a relevant item adds to DCG at ranks 1, 2 and 3."""


def truth_of(rows: Truth) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * 5
    return pa.table(
        {
            "user_id": pa.array(columns[0], pa.string()),
            "domain": pa.array(columns[1], pa.string()),
            "item_id": pa.array(columns[2], pa.string()),
            "is_cold_item": pa.array(columns[3], pa.bool_()),
            "is_cold_in_domain": pa.array(columns[4], pa.bool_()),
        }
    )


def lists_of(rows: Lists) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * 3
    return pa.table(
        {
            "user_id": pa.array(columns[0], pa.string()),
            "domain": pa.array(columns[1], pa.string()),
            "item_ids": pa.array(columns[2], pa.list_(pa.string())),
        }
    )


def warm(user: str, domain: str, item: str) -> tuple[str, str, str, bool, bool]:
    return (user, domain, item, False, False)


def test_ndcg_divides_by_the_best_reachable_dcg() -> None:
    truth = truth_of([warm("u", "film", "a"), warm("u", "film", "b"), warm("u", "film", "c")])
    figures = judge(truth, lists_of([("u", "film", ["x", "b", "a"])]))
    assert figures["all"]["ndcg@10"] == round((SECOND + THIRD) / (FIRST + SECOND + THIRD), 5)


def test_ndcg_is_one_when_k_is_full_of_relevant_items() -> None:
    truth = truth_of([warm("u", "film", item) for item in "abc"])
    assert judge(truth, lists_of([("u", "film", ["c", "a", "x"])]), k=2)["all"] == {
        "pairs": 1,
        "hr@2": 1.0,
        "recall@2": 1.0,  # 2 of min(2, 3)
        "ndcg@2": 1.0,
    }


def test_judge_counts_only_the_first_k() -> None:
    truth = truth_of([warm("u", "film", "a")])
    lists = lists_of([("u", "film", ["x", "y", "a"])])
    assert judge(truth, lists, k=2)["all"]["hr@2"] == 0.0
    assert judge(truth, lists, k=3)["all"]["ndcg@3"] == round(THIRD, 5)


def test_judge_counts_every_pair_alike() -> None:
    truth = truth_of([warm("u", "film", item) for item in "abcd"] + [warm("v", "film", "a")])
    lists = lists_of([("u", "film", ["a"]), ("v", "film", ["a"])])
    assert judge(truth, lists)["all"]["recall@10"] == (1 / 4 + 1) / 2


@pytest.mark.parametrize("found", [[], [("v", "film", [])]])
def test_judge_gives_a_pair_without_a_list_zero(found: Lists) -> None:
    truth = truth_of([warm("u", "film", "a"), warm("v", "film", "a")])
    figures = judge(truth, lists_of([("u", "film", ["a"]), *found]))
    assert figures["all"] == {
        "pairs": 2,
        "hr@10": 1 / 2,
        "recall@10": 1 / 2,
        "ndcg@10": 1 / 2,
    }


def test_judge_matches_items_within_user_and_domain_only() -> None:
    truth = truth_of([warm("u", "film", "a"), warm("v", "book", "a")])
    lists = lists_of([("u", "book", ["a"]), ("v", "film", ["a"]), ("w", "film", ["a"])])
    assert judge(truth, lists)["all"]["hr@10"] == 0.0


def test_judge_averages_each_domain_and_names_them_in_order() -> None:
    truth = truth_of([warm("u", "film", "a"), warm("v", "film", "a"), warm("v", "book", "b")])
    lists = lists_of([("u", "film", ["a"]), ("v", "film", ["x", "a"]), ("v", "book", ["b"])])
    domain = judge(truth, lists)["domain"]
    assert list(domain) == ["book", "film"]
    assert domain["book"]["ndcg@10"] == 1.0
    assert domain["film"] == {
        "pairs": 2,
        "hr@10": 1.0,
        "recall@10": 1.0,
        "ndcg@10": round((FIRST + SECOND) / 2, 5),
    }


def test_slices_judge_the_restricted_truth() -> None:
    truth = truth_of(
        [
            ("u", "film", "old", False, True),
            ("u", "film", "new", True, True),
            ("v", "film", "old", False, False),
        ]
    )
    figures = judge(truth, lists_of([("u", "film", ["old", "new"]), ("v", "film", ["x"])]))
    # Each of u's items alone is judged at its place in the whole list.
    assert figures["cold_item"]["pairs"] == 1
    assert figures["cold_item"]["ndcg@10"] == round(SECOND, 5)
    assert figures["warm_item"]["pairs"] == 2
    assert figures["warm_item"]["ndcg@10"] == (FIRST + 0) / 2
    assert figures["cold_in_domain"]["pairs"] == 1
    assert figures["cold_in_domain"]["ndcg@10"] == 1.0


def test_judge_has_none_for_a_slice_without_pairs() -> None:
    figures = judge(truth_of([warm("u", "film", "a")]), lists_of([]))
    assert figures["cold_item"] is None
    assert figures["cold_in_domain"] is None
    assert figures["warm_item"] == figures["all"]


def test_judge_has_nothing_but_none_for_an_empty_truth() -> None:
    assert judge(truth_of([]), lists_of([("u", "film", ["a"])])) == {
        "all": None,
        "cold_item": None,
        "warm_item": None,
        "cold_in_domain": None,
        "domain": {},
    }


def test_judge_reads_dictionary_and_large_string_columns() -> None:
    truth, lists = truth_of([warm("u", "a/b", "ü")]), lists_of([("u", "a/b", ["ü"])])
    truth = truth.set_column(0, "user_id", truth["user_id"].cast(pa.large_string()))
    lists = lists.set_column(1, "domain", lists["domain"].dictionary_encode())
    assert judge(truth, lists)["domain"]["a/b"]["hr@10"] == 1.0


def test_judge_rounds_to_five_digits() -> None:
    truth = truth_of([warm(user, "film", "a") for user in "uvw"])
    assert judge(truth, lists_of([("u", "film", ["a"])]))["all"]["hr@10"] == 0.33333


def test_judge_rows_returns_each_pair_in_order() -> None:
    truth = truth_of([warm("v", "film", "a"), warm("u", "film", "b"), warm("u", "film", "a")])
    rows = judge_rows(truth, lists_of([("u", "film", ["x", "a"])]))
    assert rows.schema == JUDGED
    assert rows.to_pydict() == {
        "user_id": ["u", "v"],
        "domain": ["film", "film"],
        "n": [2, 1],
        "hits": [1, 0],
        "hr": [1.0, 0.0],
        "recall": [1 / 2, 0.0],
        "ndcg": [SECOND / (FIRST + SECOND), 0.0],
    }


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ([("u", "film", ["a", "a"])], "an item once in a pair, found 1 items too many"),
        ([("u", "film", ["a"]), ("u", "film", ["b"])], "a .user_id, domain. once, found 2 rows"),
    ],
)
def test_judge_refuses_lists_that_count_twice(lists: Lists, message: str) -> None:
    with pytest.raises(ValueError, match=f"lists: expected {message}"):
        judge(truth_of([warm("u", "film", "a")]), lists_of(lists))


def test_judge_refuses_a_truth_row_twice() -> None:
    truth = truth_of([warm("u", "film", "a")] * 2)
    with pytest.raises(ValueError, match="truth: expected an item once in a pair, found 1"):
        judge(truth, lists_of([]))


def test_judge_refuses_k_below_one() -> None:
    with pytest.raises(ValueError, match="expected k of 1 or more, found 0"):
        judge(truth_of([]), lists_of([]), k=0)
