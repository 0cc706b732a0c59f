"""Lists that are steered, against going through all items by hand."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch

from crossrec.data.candidates import Candidates
from crossrec.data.histories import DomainRange
from crossrec.score import scorer as scorer_module
from crossrec.score.diverse import diversify
from crossrec.score.lists import Lists
from crossrec.score.scorer import Scorer
from crossrec.score.steering import Steered, Steering
from tests.score.test_scorer import (
    BRANDS,
    DAY,
    NEW_IN_VIDEO,
    RULED,
    SHOP,
    USERS,
    VIDEO,
    K,
    as_learned,
    best_of,
    make_scorer,
    unseen,
)

PRICES = {"shop": torch.linspace(0, 2, 12), "video": torch.linspace(3, 0, 28)}
HALF = Steering(popularity_control=0.5)
VARIED = Steering(diversity=0.4)


def steered_scorer(
    by_system: Mapping[str, Steering], candidates: dict[str, Candidates] | None = None
) -> Scorer:
    scorer = make_scorer(SHOP, VIDEO, candidates=candidates)
    scorer.steered, scorer.prices = Steered(by_system, PRICES), dict(PRICES)
    return scorer


def score(scorer: Scorer, *systems: str, places: int = 0) -> dict[tuple[str, str], Lists]:
    wanted = [(system, domain) for system in systems for domain in ("shop", "video")]
    return scorer.score(USERS, DAY, wanted, K, places)


@pytest.mark.parametrize("domain", [SHOP, VIDEO], ids=["shop", "video"])
def test_control_takes_the_price_off_every_score(domain: DomainRange) -> None:
    scorer = steered_scorer({"model": HALF})
    lists = score(scorer, "model")["model", domain.name]
    paid = as_learned(scorer, "model", domain) - 0.5 * PRICES[domain.name].numpy()
    for user in range(len(USERS.lengths)):
        best = best_of(paid[user], unseen(USERS, user, domain))
        assert lists.rows[user, : len(best)].tolist() == best
        np.testing.assert_allclose(lists.scores[user, : len(best)], paid[user, best], atol=1e-4)


def test_other_systems_and_dials_at_zero_are_as_they_were() -> None:
    plain = score(make_scorer(SHOP, VIDEO), "model", "without_sequence")
    scorer = steered_scorer({"half": HALF, "none": Steering(), "varied": VARIED})
    found = score(scorer, "model", "without_sequence", "none", "half", "varied")
    for (system, domain), lists in plain.items():
        assert np.array_equal(found[system, domain].rows, lists.rows)
        assert np.array_equal(found[system, domain].scores, lists.scores)
        assert np.array_equal(found["none", domain].scores, plain["model", domain].scores)
    for system in ("half", "varied"):
        assert not np.array_equal(found[system, "video"].rows, plain["model", "video"].rows)


def test_steered_scores_are_what_lists_are_ordered_by_and_no_probabilities() -> None:
    scorer = steered_scorer({"half": HALF})
    before = score(scorer, "model", "half")
    scorer.fusions["model"].link_D2[:] = torch.tensor([1.0, -2.0])
    linked = score(scorer, "model", "half")
    for domain in ("shop", "video"):
        assert np.array_equal(linked["half", domain].scores, before["half", domain].scores)
        raw, chance = (found["model", domain].scores[0, :2] for found in (before, linked))
        np.testing.assert_allclose(chance, 1 / (1 + np.exp(2 - raw)), rtol=1e-5)


def texts_apart(scorer: Scorer, rows: np.ndarray) -> float:
    texts = scorer.state.texts_IW[VIDEO.start + torch.from_numpy(rows)].numpy()
    return float(np.mean([1 - a @ b for a in texts for b in texts if a is not b]))


def test_diversity_chooses_from_the_best_what_differs() -> None:
    scorer = steered_scorer({"varied": VARIED})
    lists = score(scorer, "model", "varied")
    texts = scorer.state.texts_IW[VIDEO.start : VIDEO.stop]
    shortlist = scorer.score(USERS, DAY, [("model", "video")], 28)["model", "video"]
    rows, scores = torch.from_numpy(shortlist.rows), torch.from_numpy(shortlist.scores)
    expected = diversify((rows, scores), texts, K, 0.4)
    found = lists["varied", "video"]
    assert np.array_equal(found.rows, expected[0].numpy())
    np.testing.assert_allclose(found.scores, expected[1].numpy(), atol=1e-5)
    apart = [
        np.mean([texts_apart(scorer, row[row >= 0]) for row in lists[system, "video"].rows])
        for system in ("model", "varied")
    ]
    assert apart[1] > apart[0]


@pytest.mark.parametrize("users_a_batch", [1, 3])
def test_steered_lists_do_not_depend_on_batches(
    monkeypatch: pytest.MonkeyPatch, users_a_batch: int
) -> None:
    scorer = steered_scorer({"model": Steering(0.5, 0.4)})
    whole = score(scorer, "model", places=4)
    monkeypatch.setattr(scorer_module, "USERS_A_BATCH", users_a_batch)
    for where, lists in score(scorer, "model", places=4).items():
        assert np.array_equal(lists.rows, whole[where].rows)
        np.testing.assert_allclose(lists.scores, whole[where].scores, atol=1e-5)


@pytest.mark.parametrize("most", [None, 2])
@pytest.mark.parametrize("steering", [HALF, VARIED, Steering(1, 1)], ids=str)
def test_steered_lists_keep_what_publication_holds_them_against(
    steering: Steering, most: int | None
) -> None:
    groups = {} if most is None else {"brand": BRANDS}
    rules = Candidates(RULED, groups, {"brand": most or 0})
    scorer = steered_scorer({"model": steering}, {"video": rules})
    lists = score(scorer, "model", places=4)["model", "video"]
    for user in range(len(USERS.lengths)):
        rows = lists.rows[user][lists.rows[user] >= 0].tolist()
        own = lists.scores[user, : len(rows)]
        assert len(rows) == len(set(rows)) > 0
        assert set(rows) <= unseen(USERS, user, VIDEO) & set(RULED.nonzero()[0].tolist())
        assert np.isfinite(own).all()
        assert (np.diff(own) <= 0).all()
        assert len(NEW_IN_VIDEO & set(rows)) >= min(4, len(NEW_IN_VIDEO & set(RULED.nonzero()[0])))
        if most:
            assert max(np.bincount(BRANDS[rows])) <= most


EDITED = Steering(is_edited=True)


@pytest.mark.parametrize("places", [0, 2])
def test_editors_pins_come_first_unless_had_or_forbidden(places: int) -> None:
    added = {"shop": torch.zeros(12), "video": torch.zeros(28)}
    added["shop"][[5, 0]] = torch.tensor([20_000.0, 10_000.0])
    added["shop"][3] = 0.75
    forbidden = np.ones(12, bool)
    forbidden[7] = False
    added["shop"][7] = 30_000.0
    scorer = steered_scorer({"model": EDITED}, {"shop": Candidates(forbidden)})
    scorer.steered, scorer.added = Steered({"model": EDITED}, added=added), added
    lists = score(scorer, "model", places=places)["model", "shop"]
    plain = as_learned(scorer, "model", SHOP)
    for user in range(len(USERS.lengths)):
        kept = unseen(USERS, user, SHOP)
        pins = [row for row in (5, 0) if row in kept]
        assert lists.rows[user, : len(pins)].tolist() == pins
        assert 7 not in lists.rows[user]
        for row, found in zip(lists.rows[user], lists.scores[user], strict=True):
            if row == 3:
                assert found == pytest.approx(plain[user, 3] + 0.75, abs=1e-4)
