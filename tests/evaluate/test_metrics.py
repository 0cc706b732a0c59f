"""Figures against arithmetic that can be checked by hand."""

from math import log2
from typing import Any

import pyarrow as pa
import pytest

from crossrec.evaluate.metrics import KS, judge, judge_rows

Lists = list[tuple[str, str, list[str]]]

FIRST, SECOND, THIRD = 1.0, 1 / log2(3), 1 / log2(4)
"""What a relevant item adds to DCG at ranks 1, 2 and 3."""

WARM = {
    "is_cold_item": False,
    "is_cold_in_domain": False,
    "events_in_domain": 1,
    "history_length": 1,
    "item_popularity_decile": 1,
}
COLD = {"is_cold_item": True, "item_popularity_decile": 0}

TRUTH = pa.schema(
    [("user_id", pa.string()), ("domain", pa.string()), ("item_id", pa.string())]
    + [(name, pa.bool_() if name.startswith("is_") else pa.int64()) for name in WARM]
)


def relevant(user: str, domain: str, item: str, **known: Any) -> dict[str, Any]:
    """Return a row of the truth: a known item of a known user, but for what is given."""
    return {"user_id": user, "domain": domain, "item_id": item, **WARM, **known}


def truth_of(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), TRUTH)


def lists_of(*rows: tuple[str, str, list[str]]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * 3
    return pa.table(
        {
            "user_id": pa.array(columns[0], pa.string()),
            "domain": pa.array(columns[1], pa.string()),
            "item_ids": pa.array(columns[2], pa.list_(pa.string())),
        }
    )


def test_ndcg_divides_by_the_best_reachable_dcg() -> None:
    truth = truth_of(*(relevant("u", "film", item) for item in "abc"))
    figures = judge(truth, lists_of(("u", "film", ["x", "b", "a"])))
    assert figures["all"]["ndcg@10"] == round((SECOND + THIRD) / (FIRST + SECOND + THIRD), 5)


def test_measures_are_one_when_k_is_full_of_relevant_items() -> None:
    truth = truth_of(*(relevant("u", "film", item) for item in "abc"))
    assert judge(truth, lists_of(("u", "film", ["c", "a", "x"])), ks=[2])["all"] == {
        "pairs": 1,
        "hr@2": 1.0,
        "recall@2": 1.0,  # 2 of min(2, 3)
        "ndcg@2": 1.0,
        "mrr@2": 1.0,
    }


def test_judge_counts_only_the_first_k() -> None:
    truth = truth_of(relevant("u", "film", "a"))
    figures = judge(truth, lists_of(("u", "film", ["x", "y", "a"])), ks=[2, 3])["all"]
    assert figures == {
        "pairs": 1,
        "hr@2": 0.0,
        "recall@2": 0.0,
        "ndcg@2": 0.0,
        "mrr@2": 0.0,
        "hr@3": 1.0,
        "recall@3": 1.0,
        "ndcg@3": round(THIRD, 5),
        "mrr@3": round(1 / 3, 5),
    }


def test_judge_has_every_measure_at_every_k_in_order() -> None:
    figures = judge(truth_of(relevant("u", "film", "a")), lists_of())["all"]
    measures = ("hr", "recall", "ndcg", "mrr")
    assert list(figures) == ["pairs", *(f"{name}@{k}" for k in KS for name in measures)]


def test_judge_at_several_k_is_judge_at_each_alone() -> None:
    truth = truth_of(*(relevant("u", "film", item) for item in "adg"), relevant("v", "film", "f"))
    lists = lists_of(("u", "film", list("xaydzg")), ("v", "film", list("abcdef")))
    together = judge(truth, lists, ks=[1, 2, 4, 9])["all"]
    alone = [judge(truth, lists, ks=[k])["all"] for k in (1, 2, 4, 9)]
    assert together == {name: value for part in alone for name, value in part.items()}


def test_mrr_counts_the_first_relevant_item_alone() -> None:
    truth = truth_of(
        relevant("u", "film", "a"), relevant("u", "film", "b"), relevant("v", "film", "a")
    )
    lists = lists_of(("u", "film", ["x", "b", "a"]), ("v", "film", ["x", "y", "z", "a"]))
    assert judge(truth, lists)["all"]["mrr@5"] == (1 / 2 + 1 / 4) / 2


def test_judge_counts_every_pair_alike() -> None:
    truth = truth_of(*(relevant("u", "film", item) for item in "abcd"), relevant("v", "film", "a"))
    lists = lists_of(("u", "film", ["a"]), ("v", "film", ["a"]))
    assert judge(truth, lists)["all"]["recall@10"] == (1 / 4 + 1) / 2


@pytest.mark.parametrize("found", [[], [("v", "film", [])]])
def test_judge_gives_a_pair_without_a_list_zero(found: Lists) -> None:
    truth = truth_of(relevant("u", "film", "a"), relevant("v", "film", "a"))
    figures = judge(truth, lists_of(("u", "film", ["a"]), *found), ks=[10])
    assert figures["all"] == {
        "pairs": 2,
        "hr@10": 1 / 2,
        "recall@10": 1 / 2,
        "ndcg@10": 1 / 2,
        "mrr@10": 1 / 2,
    }


def test_judge_matches_items_within_user_and_domain_only() -> None:
    truth = truth_of(relevant("u", "film", "a"), relevant("v", "book", "a"))
    lists = lists_of(("u", "book", ["a"]), ("v", "film", ["a"]), ("w", "film", ["a"]))
    assert judge(truth, lists)["all"]["hr@10"] == 0.0


def test_judge_averages_each_domain_and_names_them_in_order() -> None:
    truth = truth_of(
        relevant("u", "film", "a"), relevant("v", "film", "a"), relevant("v", "book", "b")
    )
    lists = lists_of(("u", "film", ["a"]), ("v", "film", ["x", "a"]), ("v", "book", ["b"]))
    domain = judge(truth, lists, ks=[10])["domain"]
    assert list(domain) == ["book", "film"]
    assert domain["book"]["ndcg@10"] == 1.0
    assert domain["film"] == {
        "pairs": 2,
        "hr@10": 1.0,
        "recall@10": 1.0,
        "ndcg@10": round((FIRST + SECOND) / 2, 5),
        "mrr@10": (1 + 1 / 2) / 2,
    }


def test_slices_judge_the_restricted_truth() -> None:
    truth = truth_of(
        relevant("u", "film", "old", is_cold_in_domain=True),
        relevant("u", "film", "new", is_cold_in_domain=True, **COLD),
        relevant("v", "film", "old"),
    )
    figures = judge(truth, lists_of(("u", "film", ["old", "new"]), ("v", "film", ["x"])))
    # Each of u's items alone is judged at its place in the whole list.
    assert figures["cold_item"]["pairs"] == 1
    assert figures["cold_item"]["ndcg@10"] == round(SECOND, 5)
    assert figures["warm_item"]["pairs"] == 2
    assert figures["warm_item"]["ndcg@10"] == (FIRST + 0) / 2
    assert figures["cold_in_domain"]["pairs"] == 1
    assert figures["cold_in_domain"]["ndcg@10"] == 1.0


@pytest.mark.parametrize(
    ("column", "bands"),
    [
        ("events_in_domain", {"0": [0], "1-4": [1, 4], "5+": [5, 99]}),
        (
            "history_length",
            {"1-4": [1, 4], "5-9": [5, 9], "10-19": [10, 19], "20-49": [20, 49], "50+": [50, 900]},
        ),
    ],
)
def test_bands_of_a_count_have_their_users_pairs(column: str, bands: dict[str, list[int]]) -> None:
    rows = [
        relevant(f"{count:03d}", "film", "a", **{column: count})
        for counts in bands.values()
        for count in counts
    ]
    # The first user of every band finds the item.
    found = [(f"{counts[0]:03d}", "film", ["a"]) for counts in bands.values()]
    judged = judge(truth_of(*rows), lists_of(*found))[column]
    assert list(judged) == list(bands)
    for name, counts in bands.items():
        assert judged[name]["pairs"] == len(counts)
        assert judged[name]["hr@5"] == 1 / len(counts)


def test_popularity_deciles_restrict_the_truth_and_leave_new_items_out() -> None:
    truth = truth_of(
        relevant("u", "film", "hit", item_popularity_decile=10),
        relevant("u", "film", "rare", item_popularity_decile=2),
        relevant("u", "film", "new", **COLD),
        relevant("v", "film", "hit", item_popularity_decile=10),
    )
    lists = lists_of(("u", "film", ["new", "hit", "rare"]), ("v", "film", ["rare"]))
    deciles = judge(truth, lists)["item_popularity_decile"]
    assert list(deciles) == ["2", "10"]
    assert (deciles["2"]["pairs"], deciles["10"]["pairs"]) == (1, 2)
    assert deciles["2"]["ndcg@10"] == round(THIRD, 5)
    assert deciles["10"]["ndcg@10"] == round((SECOND + 0) / 2, 5)


def test_judge_has_none_for_a_slice_without_pairs() -> None:
    figures = judge(truth_of(relevant("u", "film", "a")), lists_of())
    assert figures["cold_item"] is None
    assert figures["cold_in_domain"] is None
    assert figures["warm_item"] == figures["all"]
    assert figures["events_in_domain"] == {"1-4": figures["all"]}


def test_judge_has_nothing_for_an_empty_truth() -> None:
    assert judge(truth_of(), lists_of(("u", "film", ["a"]))) == {
        "all": None,
        "cold_item": None,
        "warm_item": None,
        "cold_in_domain": None,
        "domain": {},
        "events_in_domain": {},
        "history_length": {},
        "item_popularity_decile": {},
    }


def test_judge_reads_dictionary_and_large_string_columns() -> None:
    truth, lists = truth_of(relevant("u", "a/b", "ü")), lists_of(("u", "a/b", ["ü"]))
    truth = truth.set_column(0, "user_id", truth["user_id"].cast(pa.large_string()))
    lists = lists.set_column(1, "domain", lists["domain"].dictionary_encode())
    assert judge(truth, lists)["domain"]["a/b"]["hr@10"] == 1.0


def test_judge_rounds_to_five_digits() -> None:
    truth = truth_of(*(relevant(user, "film", "a") for user in "uvw"))
    assert judge(truth, lists_of(("u", "film", ["a"])))["all"]["hr@10"] == 0.33333


def test_judge_rows_returns_each_pair_in_order() -> None:
    truth = truth_of(
        relevant("v", "film", "a"), relevant("u", "film", "b"), relevant("u", "film", "a")
    )
    rows = judge_rows(truth, lists_of(("u", "film", ["x", "a"])), ks=[1, 10])
    assert rows.schema.field("user_id").type == rows.schema.field("domain").type == pa.string()
    assert rows.to_pydict() == {
        "user_id": ["u", "v"],
        "domain": ["film", "film"],
        "n": [2, 1],
        "hr@1": [0.0, 0.0],
        "recall@1": [0.0, 0.0],
        "ndcg@1": [0.0, 0.0],
        "mrr@1": [0.0, 0.0],
        "hr@10": [1.0, 0.0],
        "recall@10": [1 / 2, 0.0],
        "ndcg@10": [SECOND / (FIRST + SECOND), 0.0],
        "mrr@10": [1 / 2, 0.0],
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
        judge(truth_of(relevant("u", "film", "a")), lists_of(*lists))


def test_judge_refuses_a_truth_row_twice() -> None:
    truth = truth_of(*[relevant("u", "film", "a")] * 2)
    with pytest.raises(ValueError, match="truth: expected an item once in a pair, found 1"):
        judge(truth, lists_of())


def test_judge_refuses_k_below_one() -> None:
    with pytest.raises(ValueError, match="expected k of 1 or more, found 0"):
        judge(truth_of(), lists_of(), ks=[0])
