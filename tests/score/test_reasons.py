"""Reasons of the lists of tests/score/test_scorer.py, held against scoring shorter histories."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn import functional

from crossrec.data.replay import Histories, select_events, slice_users
from crossrec.evaluate.faithful import history_versions, measure_reasons, sample
from crossrec.model.overlap import _listed, neighbour_weights
from crossrec.schema import scores_schema
from crossrec.score import reasons as reasons_module
from crossrec.score.because import add_reasons
from crossrec.score.lists import Lists, to_table
from crossrec.score.reasons import find_reasons, moved, versions_of
from crossrec.score.scorer import Scorer
from tests.score.test_scorer import (
    DAY,
    SHOP,
    USERS,
    VIDEO,
    K,
    daily,
    make_scorer,
    score_all,
    unseen,
)

BOTH = ("shop", "video")


def lists_of(scorer: Scorer, users: Histories = USERS) -> dict[str, Lists]:
    found = score_all(scorer, users)
    return {name: found["model", name] for name in BOTH}


def plain_scorer() -> Scorer:
    """Without the sequence: all that is told is exact."""
    scorer = make_scorer(SHOP, VIDEO)
    with torch.no_grad():
        scorer.fusions["model"].sequence.zero_()
    return scorer


def costs(scorer: Scorer, user: Histories, name: str, rows: np.ndarray) -> dict[int, np.ndarray]:
    """What leaving out each item costs each listed one at the user's weights, (K,), by its row."""
    listed = torch.from_numpy(rows)[None]
    whole = scorer.score_items(user, DAY, name, listed)
    left = {row: select_events(user, user.rows != row) for row in dict.fromkeys(user.rows.tolist())}
    return {
        row: (whole - scorer.score_items(shorter, DAY, name, listed, user))[0].numpy()
        for row, shorter in left.items()
    }


@pytest.mark.parametrize("name", BOTH)
def test_reasons_are_the_items_whose_loss_costs_most(name: str) -> None:
    scorer = plain_scorer()
    lists = lists_of(scorer)
    found = find_reasons(scorer, USERS, DAY, lists, 3)[name]
    for user in (1, 2, 3):
        own = slice_users(USERS, user, user + 1)
        assert len(set(own.rows.tolist())) == len(own.rows)
        rows = lists[name].rows[user]
        cost = costs(scorer, own, name, rows)
        for place in range(K):
            best = sorted(cost, key=lambda row: -cost[row][place])
            expected = [row for row in best if cost[row][place] >= reasons_module.LEAST][:3]
            told = [row for row in found[user, place].tolist() if row >= 0]
            assert told == expected


def test_scores_of_items_are_those_of_the_lists() -> None:
    scorer = make_scorer(SHOP, VIDEO)
    for name, lists in lists_of(scorer).items():
        scores = scorer.score_items(USERS, DAY, name, torch.from_numpy(lists.rows))
        np.testing.assert_allclose(scores.numpy(), lists.scores, atol=1e-5)
        has = np.flatnonzero(USERS.lengths)
        users = versions_of(scorer, USERS, has, DAY)
        rows = torch.from_numpy(lists.rows[has])
        whole = reasons_module.version_scores(scorer, users, name, rows)[:, 0].numpy()
        listed = lists.rows[has] >= 0
        np.testing.assert_allclose(whole[listed], lists.scores[has][listed], atol=1e-5)


def test_reasons_come_from_the_history_and_not_where_there_is_none() -> None:
    scorer = make_scorer(SHOP, VIDEO)
    lists = lists_of(scorer)
    for name, found in find_reasons(scorer, USERS, DAY, lists, 4).items():
        assert (found[5] == -1).all()  # without events
        assert (found[lists[name].rows < 0] == -1).all()
        for user in range(len(USERS.lengths)):
            own = set(USERS.rows[USERS.offsets[user] : USERS.offsets[user + 1]].tolist())
            for told in found[user]:
                named = told[told >= 0].tolist()
                assert set(named) <= own
                assert len(named) == len(set(named))
                assert (told[len(named) :] == -1).all()
    # Across domains.
    of_video = find_reasons(scorer, USERS, DAY, lists, 4)["video"][4]
    assert ((of_video >= 0) & (of_video < SHOP.stop)).any()
    assert (of_video >= VIDEO.start).any()


def test_reasons_do_not_depend_on_who_is_scored_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = make_scorer(SHOP, VIDEO)
    lists = lists_of(scorer)
    whole = find_reasons(scorer, USERS, DAY, lists, 2)
    monkeypatch.setattr(reasons_module, "USERS_AT_ONCE", 2)
    for name, found in find_reasons(scorer, USERS, DAY, lists, 2).items():
        assert np.array_equal(found, whole[name])


def test_events_of_one_item_count_together() -> None:
    scorer = plain_scorer()
    user = daily([[20, 3, 20, 7]])
    lists = lists_of(scorer, user)
    versions = versions_of(scorer, user, np.array([0]), DAY)
    told = moved(scorer, versions, "video", torch.from_numpy(lists["video"].rows))[0]
    # By age: 7, 20, 3, 20 again.
    assert not told[3].any()
    assert told[1].any()


def test_a_model_of_ratings_is_explained_by_its_sequence() -> None:
    scorer = make_scorer(SHOP, VIDEO, with_ratings=True)
    lists = lists_of(scorer)
    found = find_reasons(scorer, USERS, DAY, lists, 1)["video"]
    own = slice_users(USERS, 1, 2)
    cost = costs(scorer, own, "video", lists["video"].rows[1])
    # Of two events both are exact.
    for place in range(K):
        best = max(cost, key=lambda row: cost[row][place])
        expected = best if cost[best][place] >= reasons_module.LEAST else -1
        assert found[1, place, 0] == expected


def test_neighbours_are_found_alike_on_a_cpu_and_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = make_scorer(SHOP, VIDEO)
    table = scorer.neighbours["ever"]["video"]
    rows = torch.tensor([[3, 20, -1], [14, 5, 30]])
    items = torch.tensor([[0, 5, -1], [27, 3, 8]])
    found = neighbour_weights(table, rows, items, 28)
    dense = functional.pad(torch.from_numpy(table.matrix.toarray()), (0, 28))
    for user in range(2):
        for age in range(3):
            for place in range(3):
                row, item = int(rows[user, age]), int(items[user, place])
                expected = float(dense[row, item]) if row >= 0 and item >= 0 else 0.0
                assert float(found[user, age, place]) == expected
    assert found.any()
    monkeypatch.setattr("crossrec.model.overlap._listed_on_cpu", _listed)
    assert torch.equal(neighbour_weights(table, rows, items, 28), found)


def test_add_reasons_names_items_of_all_domains() -> None:
    ids = {"shop": pa.array(["a", "b"]), "video": pa.array(["a"])}
    lists = Lists(np.array([[1, 0], [0, -1]]), np.array([[2.0, 1.0], [1.0, 0.0]], np.float32))
    table = to_table(pa.array(["ada", "bob"]), lists, ids["shop"])
    table = add_reasons(table, np.array([[2, -1], [2, 0], [-1, -1]]), ids)
    assert table.schema == scores_schema(2)
    film, book = {"domain": "video", "item_id": "a"}, {"domain": "shop", "item_id": "a"}
    assert table["because"].to_pylist() == [[[film], [film, book]], [[]]]


def test_faithfulness_of_exact_reasons_is_perfect() -> None:
    scorer = plain_scorer()
    users = [slice_users(USERS, user, user + 1) for user in (2, 3)]
    found = measure_reasons(scorer, users, DAY, 2)
    assert found is not None
    assert found["rank_correlation"] > 0.999
    assert found["first_reason"] > 0.97
    left = [len(unseen(USERS, user, domain)) for user in (2, 3) for domain in (SHOP, VIDEO)]
    assert found["items"] == sum(min(K, number) for number in left)
    learned = measure_reasons(make_scorer(SHOP, VIDEO), users, DAY, 2)
    assert learned is not None
    assert learned["rank_correlation"] < found["rank_correlation"]


def test_sample_leaves_out_short_and_long_histories() -> None:
    users = daily([[1] * 4, [1, 2, 3, 4, 5], list(range(40)) * 3, [5, 4, 3, 2, 1, 0]])
    assert [user.user_ids[0].as_py() for user in sample(users, 5)] == ["user-1", "user-3"]
    assert len(sample(users, 1)) == 1


def test_history_versions_keep_what_is_said() -> None:
    user = daily([[7, 8, 9]])
    found = history_versions(user, np.array([[True, False, True], [False, False, False]]))
    assert (found.offsets.tolist(), found.rows.tolist()) == ([0, 2, 2], [7, 9])
    assert found.days.tolist() == [1, 3]
