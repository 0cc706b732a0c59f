"""Coverage, Gini and novelty against arithmetic that can be checked by hand."""

from math import log2

import numpy as np
import pyarrow as pa
import pytest

from crossrec.evaluate.exposure import gini, measure_exposure

ITEMS = pa.array(["a", "b", "c", "d"])
EVENTS = np.array([8, 4, 4, 0])
"""16 in all."""


def lists_of(*lists: list[str]) -> pa.Table:
    return pa.table({"item_ids": pa.array(lists, pa.list_(pa.string()))})


def test_coverage_counts_items_in_anybodys_first_k() -> None:
    lists = lists_of(["a", "b", "d"], ["b", "a", "d"], ["c"])
    assert measure_exposure(lists, ITEMS, EVENTS, k=2)["coverage@2"] == 3 / 4
    assert measure_exposure(lists, ITEMS, EVENTS, k=3)["coverage@3"] == 4 / 4


def test_gini_is_0_if_all_items_are_shown_alike() -> None:
    found = measure_exposure(lists_of(["a", "b"], ["c", "d"]), ITEMS, EVENTS)
    assert found["gini@10"] == 0


def test_gini_is_1_if_one_item_takes_all() -> None:
    assert measure_exposure(lists_of(["c"], ["c"]), ITEMS, EVENTS)["gini@10"] == 1


def test_gini_counts_items_that_nobody_is_shown() -> None:
    found = measure_exposure(lists_of(["a", "b"], ["a"]), ITEMS, EVENTS)
    # Sorted 0, 0, 1, 2; places 2j - n - 1 are -3, -1, 1, 3.
    assert found["gini@10"] == round((1 * 1 + 3 * 2) / (3 * 3), 5)


def test_gini_of_a_single_item_is_0() -> None:
    assert gini(np.array([7])) == 0


def test_novelty_is_the_mean_information_of_all_places() -> None:
    found = measure_exposure(lists_of(["a", "b"], ["a"]), ITEMS, EVENTS)
    assert found["novelty@10"] == round((-2 * log2(8 / 16) - log2(4 / 16)) / 3, 5)


def test_novelty_counts_an_item_without_events_as_one_with_a_single_event() -> None:
    assert measure_exposure(lists_of(["d"]), ITEMS, EVENTS)["novelty@10"] == -log2(1 / 16)


def test_novelty_is_0_for_a_domain_without_events() -> None:
    found = measure_exposure(lists_of(["d"]), ITEMS, np.zeros(4, np.int64))
    assert found["novelty@10"] == 0


@pytest.mark.parametrize("lists", [[], [[]]])
def test_lists_that_show_nothing_have_no_gini_and_no_novelty(lists: list[list[str]]) -> None:
    assert measure_exposure(lists_of(*lists), ITEMS, EVENTS) == {
        "coverage@10": 0.0,
        "gini@10": None,
        "novelty@10": None,
    }
