from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from crossrec.data.replay import Histories
from crossrec.schema import SCORES
from crossrec.score.takeover import same_histories, take_over


def histories(users: dict[str, list[tuple[int, int]]], ratings: float | None = None) -> Histories:
    """Return histories of (row, day) events, all with the same rating if there is one."""
    events = [event for own in users.values() for event in own]
    offsets = np.cumsum([0, *map(len, users.values())])
    values = {} if ratings is None else {"rating": np.full(len(events), ratings, np.float32)}
    rows, days = (np.array([event[n] for event in events], np.int32) for n in (0, 1))
    return Histories(pa.array(list(users), pa.string()), offsets, rows, days, values)


BEFORE = {"ada": [(1, 3), (2, 4)], "ben": [], "cleo": [(5, 1)], "dov": [(7, 2), (8, 2)]}


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (BEFORE, [0, 1, 2, 3]),
        ({"dov": BEFORE["dov"], "ada": BEFORE["ada"]}, [3, 0]),
        ({**BEFORE, "cleo": [(5, 1), (6, 9)]}, [0, 1, -1, 3]),
        ({**BEFORE, "dov": [(8, 2), (7, 2)]}, [0, 1, 2, -1]),
        ({**BEFORE, "ada": [(1, 3), (2, 5)]}, [-1, 1, 2, 3]),
        ({**BEFORE, "ben": [(1, 1)], "eve": []}, [0, -1, 2, 3, -1]),
        ({"cleo": []}, [-1]),
        ({}, []),
    ],
)
def test_a_history_is_the_same_where_every_event_is(
    now: dict[str, list[tuple[int, int]]], expected: list[int]
) -> None:
    assert same_histories(histories(BEFORE), histories(now)).tolist() == expected


def test_another_rating_is_another_history_and_none_twice_is_not() -> None:
    none = histories(BEFORE, float("nan"))
    assert same_histories(none, none).tolist() == [0, 1, 2, 3]
    rated = histories(BEFORE, 4.0)
    # Ben has nothing to rate.
    assert same_histories(none, rated).tolist() == [-1, 1, -1, -1]


def lists(**of: str) -> pa.Table:
    columns = [list(of), [list(ids) for ids in of.values()], [[1.0] * len(i) for i in of.values()]]
    return pa.table(columns, schema=SCORES)


def test_new_lists_come_in_where_no_earlier_one_is_taken_over() -> None:
    before, new = lists(ada="xyz", ben="xy", cleo=""), lists(dov="z", ada="yx")
    found = take_over(before, new, np.array([1, -1, 2, -1]))
    assert found.to_pydict() == lists(ben="xy", dov="z", cleo="", ada="yx").to_pydict() | {}
    assert found.schema == SCORES
    assert take_over(before, new.slice(0, 0), np.array([2])).to_pydict() == {
        "user_id": ["cleo"],
        "item_ids": [[]],
        "scores": [[]],
    }


def test_a_user_of_another_trait_is_not_the_same() -> None:
    """One has come of age, of one nothing is known any more, and of one nothing ever was."""
    ages = [pa.array([17.0, None, 40.0, 5.0]), pa.array([18.0, None, None, 5.0])]
    before, now = (replace(histories(BEFORE), traits={"age": own}) for own in ages)
    assert same_histories(before, now).tolist() == [-1, 1, -1, 3]
