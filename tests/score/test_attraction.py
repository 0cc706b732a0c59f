"""A made-up shop: users of many tastes, honest items of one each, and a text made of all tastes."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from crossrec.config import ModelConfig
from crossrec.data.candidates import Candidates
from crossrec.data.cooccurrence import count_neighbours
from crossrec.data.histories import DomainRange
from crossrec.data.itemstate import EventStates, states_on_day
from crossrec.data.replay import Histories
from crossrec.data.texts import ATTRACTS, COPIED, EMPTY, TRIAL, is_on_trial
from crossrec.model.fusion import PARTS
from crossrec.model.inference import ItemState
from crossrec.model.overlap import NeighbourTable
from crossrec.model.recommender import Recommender
from crossrec.score.attraction import attracted, find_texts
from crossrec.score.catalogue import Items
from crossrec.score.scorer import Scorer
from tests.small import activity_of, fresh_fusion, histories

TASTES, DAY, K = 16, 60, 20
OLD, NEW = 320, 80
"""Honest items: as many of each taste."""

STUFFED, COPY, BLANK = OLD + NEW, OLD + NEW + 1, OLD + NEW + 2
SIZE = OLD + NEW + 3
SHOP = DomainRange("shop", 0, SIZE, 0)
USERS = 1_000


def texts() -> tuple[list[str], torch.Tensor]:
    """What items say, and its vectors: the copy's is that of item 5, the stuffed one's of all."""
    draw = np.random.default_rng(17)
    tastes = np.arange(OLD + NEW) % TASTES
    honest = np.eye(TASTES)[tastes] + 0.15 * draw.standard_normal((OLD + NEW, TASTES))
    vectors = np.concatenate([honest, np.ones((1, TASTES)), honest[5:6], np.zeros((1, TASTES))])
    vectors[:-1] /= np.linalg.norm(vectors[:-1], axis=1, keepdims=True)
    said = [f"thing {row} for those of taste {taste}" for row, taste in enumerate(tastes)]
    everything = " ".join(f"taste{taste}" for taste in range(TASTES))
    return [*said, everything, said[5], ""], torch.from_numpy(vectors).float()


def people() -> Histories:
    """Each has had a dozen of the old items, of as many tastes."""
    draw = np.random.default_rng(5)
    own = (draw.permutation(TASTES)[:12] for _ in range(USERS))
    rows = ((draw.integers(0, OLD // TASTES, 12) * TASTES + tastes).tolist() for tastes in own)
    made = histories(*([(row, day + 1) for day, row in enumerate(user)] for user in rows))
    return replace(made, user_ids=pa.array([f"user {number}" for number in range(USERS)]))


@pytest.fixture(scope="module")
def users() -> Histories:
    return people()


def make_scorer(users: Histories, candidates: dict[str, Candidates] | None = None) -> Scorer:
    """Text is all that counts."""
    torch.manual_seed(17)
    settings = ModelConfig(width=TASTES, layers=1, heads=2, max_history=8)
    recommender = Recommender(settings, TASTES, SIZE, 1, False).eval()
    vectors, crowd = texts()[1], activity_of(users, SIZE)
    states = torch.from_numpy(states_on_day(crowd, DAY))
    fusion = fresh_fusion(1).eval()
    with torch.no_grad():
        fusion.weights.copy_(torch.tensor([float(part == "text") for part in PARTS]))
        fusion.popularity.zero_()
    neighbours = {
        kind: {"shop": NeighbourTable.of(found[0])}
        for kind, found in count_neighbours(users, DAY, SIZE, [(0, SIZE)]).items()
    }
    new = torch.arange(OLD, SIZE)
    items = Items(
        ItemState(vectors, vectors),
        {"model": {"shop": fusion.item_side(states).detach()}},
        neighbours,
        {"model": fusion},
        EventStates.of(crowd),
        {"shop": new},
    )
    return Scorer(recommender, items, [SHOP], candidates)


def lists_of(scorer: Scorer, users: Histories) -> np.ndarray:
    """Return the rows of all lists; four of their places are for new items."""
    return scorer.score(users, DAY, [("model", "shop")], K, 4)["model", "shop"].rows


def reach(rows: np.ndarray) -> np.ndarray:
    """Return the share of lists that each item is in."""
    return np.bincount(rows[rows >= 0], minlength=SIZE) / len(rows)


def table_of_items() -> pa.Table:
    return pa.table({"item_id": [f"i{row}" for row in range(SIZE)], "text": texts()[0]})


def test_stuffed_text_reaches_few_lists_and_honest_items_are_left_alone(users: Histories) -> None:
    scorer = make_scorer(users)
    free = lists_of(scorer, users)
    assert reach(free)[STUFFED] > 0.9

    found = find_texts(scorer, users, DAY, "shop", table_of_items())
    reasons = {(row["row"], row["reason"]) for row in found}
    assert reasons == {(STUFFED, ATTRACTS), (COPY, COPIED), (BLANK, EMPTY)}
    rows = [row["row"] for row in found]

    limited = np.isin(np.arange(SIZE), rows)
    rules = Candidates(np.ones(SIZE, bool), limited=limited)
    kept = lists_of(make_scorer(users, {"shop": rules}), users)
    chosen = is_on_trial(users.user_ids)
    assert 0 < chosen.mean() < 2 / TRIAL
    assert reach(kept)[rows].max() <= chosen.mean()
    assert np.array_equal(kept[chosen], free[chosen])
    # The others have the lists that they would have without these items.
    without = make_scorer(users, {"shop": Candidates(~limited)})
    assert np.array_equal(kept[~chosen], lists_of(without, users)[~chosen])


def test_a_text_attracts_those_who_have_not_had_it(users: Histories) -> None:
    shares = attracted(make_scorer(users), users, DAY, "shop")
    assert shares[STUFFED] > 0.7
    assert 0 < np.delete(shares, STUFFED).max() < 0.3


def test_of_honest_texts_none_is_found() -> None:
    """The same shop, in which somebody has had the three."""
    had = people()
    rows = np.concatenate([[STUFFED, COPY, BLANK], had.rows]).astype(np.int32)
    days = np.concatenate([[1, 1, 1], had.days]).astype(np.int32)
    users = replace(had, rows=rows, days=days, offsets=np.append(0, had.offsets[1:] + 3))
    scorer = make_scorer(users)
    scorer.new["shop"] = torch.arange(OLD, OLD + NEW)
    assert find_texts(scorer, users, DAY, "shop", table_of_items()) == []
