from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
import torch

from crossrec.config import ModelConfig
from crossrec.data.histories import DomainRange
from crossrec.data.replay import Histories, select_users
from crossrec.model.inference import item_state, user_queries
from crossrec.model.recommender import Recommender
from crossrec.schema import SCORES
from crossrec.score import scorer as scorer_module
from crossrec.score.catalogue import Items
from crossrec.score.scorer import Lists, Scorer, slice_users, to_table
from crossrec.storage import encode_parquet

SHOP, VIDEO = DomainRange("shop", 0, 12, 0), DomainRange("video", 12, 40, 0)
DAY, K = 30, 10
SYSTEMS = {"model": (0.7, 0.5), "popularity": (0.0, 0.0)}


def histories(users: Sequence[Sequence[int]]) -> Histories:
    """Users by the rows of their events, one a day from day 1."""
    return Histories(
        pa.array([f"user-{number}" for number in range(len(users))]),
        np.cumsum([0, *map(len, users)]),
        np.array([row for user in users for row in user], np.int32),
        np.array([day + 1 for user in users for day, _ in enumerate(user)], np.int32),
    )


DRAW = np.random.default_rng(17)
# Ordinary users, one of no events, one who has seen all of shop but rows 3 and 5, one who repeats.
ORDINARY = [DRAW.integers(0, 40, size).tolist() for size in (1, 2, 5, 9, 15)]
ALMOST_ALL = [row for row in range(12) if row not in (3, 5)]
USERS = histories([*ORDINARY, [], ALMOST_ALL, [20, 20, 20]])


def make_scorer(*domains: DomainRange) -> Scorer:
    """Random weights; always the same."""
    size = domains[-1].stop
    with torch.random.fork_rng():
        torch.manual_seed(17)
        settings = ModelConfig(width=16, layers=1, heads=2, max_history=8)
        recommender = Recommender(settings, 12, size, len(domains)).eval()
        texts = torch.randn(size, 12)
        recommender.start_from(texts)
        with torch.no_grad():
            for parameter in recommender.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        state = item_state(recommender, texts, torch.arange(size), torch.rand(size) * 5)
        bias = torch.randn(size) * 0.2
    weights = {system: {d.name: parts for d in domains} for system, parts in SYSTEMS.items()}
    biases = {system: {d.name: bias[d.start : d.stop] for d in domains} for system in SYSTEMS}
    return Scorer(recommender, Items(state, weights, biases), domains)


WANTED = [(system, domain) for system in SYSTEMS for domain in ("shop", "video")]


def score_all(scorer: Scorer, users: Histories = USERS) -> dict[tuple[str, str], Lists]:
    return scorer.score(users, DAY, WANTED, K)


def unseen(users: Histories, user: int, domain: DomainRange) -> set[int]:
    seen = users.rows[users.offsets[user] : users.offsets[user + 1]].tolist()
    return {row - domain.start for row in range(domain.start, domain.stop) if row not in seen}


def test_score_gives_at_most_k_unique_unseen_items_best_first() -> None:
    for (_, name), lists in score_all(make_scorer(SHOP, VIDEO)).items():
        domain = SHOP if name == "shop" else VIDEO
        for user in range(len(USERS.lengths)):
            rows = [row for row in lists.rows[user].tolist() if row >= 0]
            left = unseen(USERS, user, domain)
            assert len(rows) == len(set(rows)) == min(K, len(left))
            assert set(rows) <= left
            scores = lists.scores[user, : len(rows)]
            assert np.isfinite(scores).all()
            assert (np.diff(scores) <= 0).all()


def test_score_is_the_weighted_sum_of_its_parts() -> None:
    scorer = make_scorer(SHOP, VIDEO)
    lists = score_all(scorer)["model", "video"]
    profile, queries = user_queries(scorer.recommender, scorer.state, USERS, scorer.bounds, DAY)
    texts, vectors = (part[12:40] for part in (scorer.state.texts_IW, scorer.state.vectors_IW))
    expected = 0.7 * profile @ texts.T + 0.5 * queries[:, 1] @ vectors.T
    expected = expected + scorer.items.biases["model"]["video"]
    for user in range(len(USERS.lengths)):
        own = expected[user].tolist()
        best = sorted(unseen(USERS, user, VIDEO), key=lambda row: -own[row])[:K]
        assert lists.rows[user].tolist() == best
        np.testing.assert_allclose(lists.scores[user], [own[row] for row in best], atol=1e-5)


def test_score_by_bias_alone_is_the_same_order_for_everyone() -> None:
    scorer = make_scorer(SHOP, VIDEO)
    lists = score_all(scorer)["popularity", "video"]
    order = scorer.items.biases["popularity"]["video"].argsort(descending=True).tolist()
    for user in range(len(USERS.lengths)):
        left = unseen(USERS, user, VIDEO)
        assert lists.rows[user].tolist() == [row for row in order if row in left][:K]


def test_score_gives_a_list_to_a_user_without_history() -> None:
    lists = score_all(make_scorer(SHOP, VIDEO))
    assert all((lists[key].rows[5] >= 0).all() for key in WANTED)


def test_score_ends_the_list_of_who_has_seen_almost_all() -> None:
    lists = score_all(make_scorer(SHOP, VIDEO))["model", "shop"]
    assert set(lists.rows[6, :2].tolist()) == {3, 5}
    assert lists.rows[6, 2:].tolist() == [-1] * 8


@pytest.mark.parametrize("users_a_batch", [1, 3])
def test_score_does_not_depend_on_its_batches(
    monkeypatch: pytest.MonkeyPatch, users_a_batch: int
) -> None:
    scorer = make_scorer(SHOP, VIDEO)
    whole = score_all(scorer)
    monkeypatch.setattr(scorer_module, "USERS_A_BATCH", users_a_batch)
    parts = score_all(scorer)
    for key in WANTED:
        assert np.array_equal(parts[key].rows, whole[key].rows)
        np.testing.assert_allclose(parts[key].scores, whole[key].scores, atol=1e-5)


def test_score_of_a_batch_equals_each_user_alone() -> None:
    scorer = make_scorer(SHOP, VIDEO)
    whole = score_all(scorer)
    for user in range(len(USERS.lengths)):
        alone = score_all(scorer, select_users(USERS, np.arange(len(USERS.lengths)) == user))
        for key in WANTED:
            assert np.array_equal(alone[key].rows[0], whole[key].rows[user])
            np.testing.assert_allclose(alone[key].scores[0], whole[key].scores[user], atol=1e-5)


def test_score_knows_a_single_domain() -> None:
    found = make_scorer(DomainRange("only", 0, 25, 0)).score(
        histories([[3, 4], []]), DAY, [("model", "only")], K
    )
    assert list(found) == [("model", "only")]
    assert found["model", "only"].rows.shape == (2, K)


def test_score_of_nobody_is_empty() -> None:
    lists = make_scorer(SHOP, VIDEO).score(histories([]), DAY, [("model", "shop")], K)
    assert lists["model", "shop"].rows.shape == (0, K)


def test_score_again_gives_the_same_bytes() -> None:
    ids = pa.array([f"item-{row}" for row in range(28)])
    files = [
        encode_parquet(
            to_table(USERS.user_ids, score_all(make_scorer(SHOP, VIDEO))["model", "video"], ids)
        )
        for _ in range(2)
    ]
    assert files[0] == files[1]


def test_slice_users_returns_whole_histories() -> None:
    part = slice_users(histories([[1, 2], [3], [], [4, 5]]), 1, 4)
    assert part.user_ids.to_pylist() == ["user-1", "user-2", "user-3"]
    assert (part.offsets.tolist(), part.rows.tolist()) == ([0, 1, 1, 3], [3, 4, 5])
    assert part.days.tolist() == [1, 1, 2]


def test_to_table_ends_lists_at_the_first_row_that_is_none() -> None:
    nothing = -np.inf
    lists = Lists(
        np.array([[1, 0], [2, -1], [-1, -1]]),
        np.array([[0.5, 0.25], [1.0, nothing], [nothing, nothing]], np.float32),
    )
    table = to_table(pa.array(["ada", "bob", "cy"]), lists, pa.array(["x", "y", "z"]))
    assert table.schema == SCORES
    assert table.to_pylist() == [
        {"user_id": "ada", "item_ids": ["y", "x"], "scores": [0.5, 0.25]},
        {"user_id": "bob", "item_ids": ["z"], "scores": [1.0]},
        {"user_id": "cy", "item_ids": [], "scores": []},
    ]
