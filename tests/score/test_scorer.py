from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from crossrec.config import ModelConfig
from crossrec.data.candidates import Candidates
from crossrec.data.cooccurrence import count_neighbours
from crossrec.data.histories import DomainRange
from crossrec.data.itemstate import STATE_NAMES, EventStates, states_on_day
from crossrec.data.replay import Histories, select_users, slice_users
from crossrec.data.requires import Requires
from crossrec.model.fusion import OVERLAP_FLOOR, Fusion, Shortlists, scores
from crossrec.model.inference import item_state, user_queries, user_state
from crossrec.model.overlap import NeighbourTable, PastEvents
from crossrec.model.rating import predict_ratings
from crossrec.model.recommender import Recommender
from crossrec.schema import SCORES
from crossrec.score import narrow, shortlist, topk
from crossrec.score import scorer as scorer_module
from crossrec.score.catalogue import Items
from crossrec.score.lists import Lists, to_table
from crossrec.score.narrow import Precision
from crossrec.score.scorer import Scorer
from crossrec.score.steering import Steered, Steering
from crossrec.storage import encode_parquet
from tests.small import activity_of, histories

SHOP, VIDEO = DomainRange("shop", 0, 12, 0), DomainRange("video", 12, 40, 0)
DAY, K = 30, 10
FUSED = ("model", "without_sequence")
POPULARITY = "popularity_30d"
SYSTEMS = (*FUSED, "untrained_backbone", POPULARITY)


def daily(users: Sequence[Sequence[int]]) -> Histories:
    """Users by the rows of their events, one a day from day 1."""
    return histories(*([(row, day + 1) for day, row in enumerate(user)] for user in users))


DRAW = np.random.default_rng(17)
# Ordinary users, one of no events, one who has seen all of shop but rows 3 and 5, one who repeats.
ORDINARY = [DRAW.integers(0, 40, size).tolist() for size in (1, 2, 5, 9, 15)]
ALMOST_ALL = [row for row in range(12) if row not in (3, 5)]
USERS = daily([*ORDINARY, [], ALMOST_ALL, [20, 20, 20]])


CROWD = activity_of(USERS, 40)
STATES = states_on_day(CROWD, DAY)
NEW = STATES[:, STATE_NAMES.index("is_new")] > 0


def random_fusion(domains: int) -> Fusion:
    fusion = Fusion(domains).eval()
    with torch.no_grad():
        fusion.sequence.fill_(0.5)
        for parameter in fusion.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        # So that new items come last where no places are kept for them.
        fusion.popularity[STATE_NAMES.index("is_new")] = -1.0
    return fusion


def make_items(recommender: Recommender, domains: Sequence[DomainRange]) -> Items:
    """The items that USERS know, in some domains; random fusions."""
    fusions = {system: random_fusion(len(domains)) for system in FUSED}
    columns = {
        system: fusion.item_side(torch.from_numpy(STATES)).detach()
        for system, fusion in fusions.items()
    }
    columns |= {"untrained_backbone": torch.zeros(40, 1), POPULARITY: torch.randn(40, 1)}
    neighbours = count_neighbours(USERS, DAY, 40, [(d.start, d.stop) for d in domains])
    tables = {
        kind: {d.name: NeighbourTable.of(part) for d, part in zip(domains, found, strict=True)}
        for kind, found in neighbours.items()
    }
    new = {d.name: torch.from_numpy(NEW[d.start : d.stop].nonzero()[0]) for d in domains}
    return Items(
        item_state(recommender, torch.randn(40, 12), torch.arange(40), torch.rand(40) * 5),
        {s: {d.name: part[d.start : d.stop] for d in domains} for s, part in columns.items()},
        tables,
        fusions,
        EventStates.of(CROWD),
        new,
    )


def make_scorer(
    *domains: DomainRange,
    with_ratings: bool = False,
    candidates: dict[str, Candidates] | None = None,
    precision: Precision = "fp32",
) -> Scorer:
    """Random weights; always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(17)
        settings = ModelConfig(width=16, layers=1, heads=2, max_history=8)
        recommender = Recommender(settings, 12, 40, len(domains), with_ratings).eval()
        recommender.start_from(torch.randn(40, 12))
        with torch.no_grad():
            for parameter in recommender.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        items = make_items(recommender, domains)
        return Scorer(recommender, items, domains, candidates, precision)


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
            own = lists.scores[user, : len(rows)]
            assert np.isfinite(own).all()
            assert (np.diff(own) <= 0).all()


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_lists_found_by_narrow_items_have_exact_scores(
    precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = score_all(make_scorer(SHOP, VIDEO))
    # Of this small model no product is wide.
    monkeypatch.setattr(narrow, "NARROW_WIDTH", 8)
    scorer = make_scorer(SHOP, VIDEO, precision=precision)
    for where, lists in score_all(scorer).items():
        np.testing.assert_allclose(lists.scores, exact[where].scores, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(shortlist, "score_pairs", lambda products, overlaps, rows: rows.float())
    assert (score_all(scorer)["model", "shop"].scores[0] >= 0).all()


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_steered_lists_are_found_by_narrow_items_without_a_sequence_too(
    precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(narrow, "NARROW_WIDTH", 8)
    found = []
    for bits in ("fp32", precision):
        scorer = make_scorer(SHOP, VIDEO, precision=bits)
        with torch.no_grad():
            scorer.fusions["model"].sequence.zero_()
        scorer.steered = Steered({"model": Steering(popularity_control=0.5)})
        scorer.prices = {"shop": torch.linspace(0, 2, 12), "video": torch.linspace(3, 0, 28)}
        found.append(scorer.score(USERS, DAY, [("model", "video")], K)["model", "video"])
    np.testing.assert_allclose(found[1].scores, found[0].scores, rtol=1e-5, atol=1e-5)


def test_a_sequence_that_earned_no_weight_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = make_scorer(SHOP, VIDEO)
    with torch.no_grad():
        scorer.fusions["model"].sequence.zero_()
    monkeypatch.setattr(Scorer, "has_sequence", lambda self, system: system == "model")
    computed = score_all(scorer)
    monkeypatch.undo()
    monkeypatch.setattr(scorer.recommender, "encode", None)
    for where, lists in score_all(scorer).items():
        np.testing.assert_array_equal(lists.rows, computed[where].rows)
        np.testing.assert_array_equal(lists.scores, computed[where].scores)


def overlap_matrix(table: NeighbourTable, recent: PastEvents, items: int) -> torch.Tensor:
    """Every overlap (users, items) by a dense product."""
    matrix = torch.zeros(40, items)
    for row in range(40):
        kept = slice(int(table.offsets_I[row]), int(table.offsets_I[row + 1]))
        matrix[row, table.columns_N[kept].long()] = table.weights_N[kept]
    had = torch.zeros(len(USERS.lengths), 40)
    had.index_put_((recent.owners_E, recent.rows_E), recent.weights_E, accumulate=True)
    return torch.log1p(had @ matrix / OVERLAP_FLOOR)


def as_learned(scorer: Scorer, system: str, domain: DomainRange) -> np.ndarray:
    """What the fusion gives for all users and items, as where it learns: all of them on lists."""
    rows, index = slice(domain.start, domain.stop), scorer.index[domain.name]
    users = user_state(scorer.recommender, scorer.state, USERS, scorer.events, scorer.bounds, DAY)
    texts, vectors = scorer.state.texts_IW[rows], scorer.state.vectors_IW[rows]
    size = len(texts)
    parts = [
        users.profile_BW @ texts.T,
        users.domain_profile_BDW[:, index] @ texts.T,
        overlap_matrix(scorer.neighbours["ever"][domain.name], users.lasting, size),
        overlap_matrix(scorer.neighbours["ever"][domain.name], users.recent, size),
        overlap_matrix(scorer.neighbours["lately"][domain.name], users.lasting, size),
    ]
    sequence = users.queries_BDW[:, index] @ vectors.T
    is_real = torch.ones_like(sequence, dtype=torch.bool)
    lists = Shortlists(
        torch.stack(parts, -1),
        sequence if system == "model" else torch.zeros_like(sequence),
        torch.from_numpy(STATES[rows]).expand(len(sequence), -1, -1),
        torch.zeros_like(is_real),
        is_real,
        *users.asked(index),
        torch.arange(len(sequence)),
    )
    return scores(scorer.fusions[system], lists).detach().numpy()


def best_of(scores_I: np.ndarray, left: Collection[int], k: int = K) -> list[int]:
    return sorted(left, key=lambda row: (-scores_I[row], row))[:k]


@pytest.mark.parametrize("system", FUSED)
@pytest.mark.parametrize("domain", [SHOP, VIDEO], ids=["shop", "video"])
def test_score_adds_up_as_the_fusion_learned(system: str, domain: DomainRange) -> None:
    scorer = make_scorer(SHOP, VIDEO)
    lists = score_all(scorer)[system, domain.name]
    expected = as_learned(scorer, system, domain)
    for user in range(len(USERS.lengths)):
        best = best_of(expected[user], unseen(USERS, user, domain))
        assert lists.rows[user, : len(best)].tolist() == best
        np.testing.assert_allclose(lists.scores[user, : len(best)], expected[user, best], atol=1e-4)


def test_score_of_the_untrained_backbone_is_the_likeness_of_texts() -> None:
    scorer = make_scorer(SHOP, VIDEO)
    lists = score_all(scorer)["untrained_backbone", "video"]
    profile = user_queries(scorer.recommender, scorer.state, USERS, scorer.bounds, DAY).profile_BW
    expected = (profile @ scorer.state.texts_IW[12:40].T).numpy()
    for user in range(len(USERS.lengths)):
        best = best_of(expected[user], unseen(USERS, user, VIDEO))
        assert lists.rows[user].tolist() == best
        np.testing.assert_allclose(lists.scores[user], expected[user, best], atol=1e-5)


def test_score_by_popularity_is_the_same_order_for_everyone() -> None:
    scorer = make_scorer(SHOP, VIDEO)
    lists = score_all(scorer)[POPULARITY, "video"]
    order = scorer.columns[POPULARITY]["video"][:, 0].argsort(descending=True).tolist()
    for user in range(len(USERS.lengths)):
        left = unseen(USERS, user, VIDEO)
        assert lists.rows[user].tolist() == [row for row in order if row in left][:K]


def with_new(scorer: Scorer, places: int, users: Histories = USERS) -> dict[tuple[str, str], Lists]:
    return scorer.score(users, DAY, WANTED, K, places)


NEW_IN_VIDEO = set(NEW[12:].nonzero()[0].tolist())


def test_score_keeps_places_for_the_best_new_items() -> None:
    scorer, places = make_scorer(SHOP, VIDEO), 6
    assert len(NEW_IN_VIDEO) > places
    lists = with_new(scorer, places)["model", "video"]
    expected = as_learned(scorer, "model", VIDEO)
    for user in range(len(USERS.lengths)):
        left = unseen(USERS, user, VIDEO)
        assert NEW_IN_VIDEO <= left
        favoured = best_of(expected[user], NEW_IN_VIDEO)[:places]
        others = [row for row in best_of(expected[user], left) if row not in favoured]
        rows = {*favoured, *others[: K - places]}
        assert lists.rows[user].tolist() == best_of(expected[user], rows)


@pytest.mark.parametrize("most", [None, 2])
def test_places_for_new_items_are_not_given_to_those_that_a_user_has_had(most: int | None) -> None:
    """As on an incremental night, whose new items are those of the full night before."""
    groups = {} if most is None else {"brand": BRANDS}
    rules = Candidates(np.ones(28, bool), groups, {"brand": most or 0})
    scorer, places = make_scorer(SHOP, VIDEO, candidates={"video": rules}), 4
    expected = as_learned(scorer, "model", VIDEO)
    had = best_of(expected[0], NEW_IN_VIDEO)[:3]
    users = daily([[*ORDINARY[0], *(VIDEO.start + row for row in had)], *ORDINARY[1:]])
    found = with_new(scorer, places, users)["model", "video"].rows
    for user in range(len(users.lengths)):
        rows = {row for row in found[user].tolist() if row >= 0}
        assert rows <= unseen(users, user, VIDEO)
        assert len(rows & NEW_IN_VIDEO) >= places


def test_score_keeps_places_in_lists_of_a_fusion_alone() -> None:
    scorer = make_scorer(SHOP, VIDEO)
    whole, favoured = score_all(scorer), with_new(scorer, 6)
    for system in ("untrained_backbone", POPULARITY):
        assert np.array_equal(whole[system, "video"].rows, favoured[system, "video"].rows)
    assert not np.array_equal(whole["model", "video"].rows, favoured["model", "video"].rows)


RULED = np.arange(28) % 3 > 0
"""Items of video that rules let through."""
BRANDS = np.arange(28, dtype=np.int32) % 7


def taken_by_rules(scores: np.ndarray, left: set[int], places: int, most: int | None) -> list[int]:
    """The items of video that a list of K takes: new ones that places are kept for, then all."""
    taken: list[int] = []
    for among, length in ((NEW_IN_VIDEO & left, places), (left, K)):
        for row in best_of(scores, among - set(taken), len(among)):
            fits = most is None or [BRANDS[one] for one in taken].count(BRANDS[row]) < most
            if fits and len(taken) < length:
                taken.append(row)
    return taken


@pytest.mark.parametrize("places", [0, 4])
@pytest.mark.parametrize("most", [None, 2])
def test_score_keeps_to_the_rules(places: int, most: int | None) -> None:
    groups = {} if most is None else {"brand": BRANDS}
    rules = Candidates(RULED, groups, {"brand": most or 0})
    scorer = make_scorer(SHOP, VIDEO, candidates={"video": rules})
    lists = with_new(scorer, places)
    expected = as_learned(scorer, "model", VIDEO)
    for user in range(len(USERS.lengths)):
        left = unseen(USERS, user, VIDEO) & set(RULED.nonzero()[0].tolist())
        taken = taken_by_rules(expected[user], left, places, most)
        found = lists["model", "video"].rows[user]
        assert found[found >= 0].tolist() == best_of(expected[user], taken)
    free = with_new(make_scorer(SHOP, VIDEO), places)
    assert np.array_equal(lists["model", "shop"].rows, free["model", "shop"].rows)


MIN_AGES = np.arange(28, dtype=np.int32) % 3
"""Kinds of the items of video: 0 requires nothing, 1 an age of 18, 2 one of 40."""

AGES = pa.array([30.0, 17.0, None, 50.0, 18.0, 44.0, 30.0, 0.0])
"""Of USERS."""


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("places", [0, 4])
@pytest.mark.parametrize("most", [None, 2])
def test_score_lists_only_what_the_user_fulfils(
    monkeypatch: pytest.MonkeyPatch, places: int, most: int | None, precision: Precision
) -> None:
    """Users of one batch fulfil different items, in blocks of 5 of them."""
    requires = Requires(MIN_AGES, (("<=", "age"),), ((None,), (18.0,), (40.0,)))
    groups = {} if most is None else {"brand": BRANDS}
    rules = Candidates(RULED | (MIN_AGES > 0), groups, {"brand": most or 0}, requires)
    scorer = make_scorer(SHOP, VIDEO, candidates={"video": rules}, precision=precision)
    monkeypatch.setattr(topk, "FEWEST_ITEMS", 5)
    monkeypatch.setitem(topk.SCORES_A_BLOCK, "cpu", 1)
    lists = with_new(scorer, places, replace(USERS, traits={"age": AGES}))
    expected = as_learned(scorer, "model", VIDEO)
    may = {None: 0, 0.0: 0, 17.0: 0, 18.0: 1, 30.0: 1, 44.0: 2, 50.0: 2}
    for user, age in enumerate(AGES.to_pylist()):
        fulfilled = rules.allowed & (MIN_AGES <= may[age])
        left = unseen(USERS, user, VIDEO) & set(fulfilled.nonzero()[0].tolist())
        taken = taken_by_rules(expected[user], left, places, most)
        found = lists["model", "video"].rows[user]
        assert found[found >= 0].tolist() == best_of(expected[user], taken)
    # Of a user of whom nothing is known, as for defaults.parquet.
    unknown = with_new(scorer, places)["model", "video"].rows
    assert not MIN_AGES[unknown[unknown >= 0]].any()


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
    found = make_scorer(DomainRange("only", 0, 40, 0)).score(USERS, DAY, [("model", "only")], K)
    assert list(found) == [("model", "only")]
    assert found["model", "only"].rows.shape == (len(USERS.lengths), K)


def test_score_of_nobody_is_empty() -> None:
    lists = make_scorer(SHOP, VIDEO).score(histories(), DAY, [("model", "shop")], K)
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
    part = slice_users(daily([[1, 2], [3], [], [4, 5]]), 1, 4)
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


def test_a_model_of_ratings_scores_by_the_rating_alone() -> None:
    scorer = make_scorer(SHOP, VIDEO, with_ratings=True)
    head = scorer.recommender.rating
    assert head is not None
    head.mean_D.copy_(torch.tensor([3.0, 7.0]))
    levels_I = torch.linspace(-0.5, 0.5, 40)[torch.randperm(40)]
    scorer.state = replace(scorer.state, levels_I=levels_I)
    lists = scorer.score(USERS, DAY, [("model", "video")], K)["model", "video"]
    asked = user_queries(scorer.recommender, scorer.state, USERS, scorer.bounds, DAY)
    expected = asked.queries_BDW[:, 1] @ scorer.state.vectors_IW[12:].T + asked.offsets_BD[:, 1:]
    expected = expected + levels_I[12:]
    found = expected.gather(1, torch.from_numpy(lists.rows)).detach().numpy()
    np.testing.assert_allclose(lists.scores, found, rtol=1e-5)
    # What validation and hold-out judge is what is published.
    questions = asked.queries_BDW, asked.offsets_BD, scorer.state
    users = np.repeat(np.arange(len(lists.rows)), lists.rows.shape[1])
    judged = predict_ratings(questions, users, 12 + lists.rows.ravel(), scorer.bounds)
    np.testing.assert_allclose(lists.scores.ravel(), judged, rtol=1e-5)
    assert abs(lists.scores.mean() - 7) < 2
