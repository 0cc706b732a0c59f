"""Relations in the lists: what scoring does with them, on random weights."""

import numpy as np
import torch

from crossrec.data.cooccurrence import Neighbours
from crossrec.model.fusion import RELATED, Fusion
from crossrec.model.overlap import NeighbourTable
from crossrec.score.catalogue import Items
from crossrec.score.reasons import find_reasons
from crossrec.score.scorer import Scorer
from tests.score.test_scorer import DAY, NEW, SHOP, USERS, VIDEO, K, make_scorer, score_all

WEIGHTS = torch.tensor([0.1, 50.0])


def table(pairs: list[tuple[int, int]], items: int) -> NeighbourTable:
    """(catalogue row, row within the domain) pairs, by row."""
    pairs = sorted(pairs)
    counts = np.bincount([row for row, _ in pairs], minlength=items)
    columns = np.array([column for _, column in pairs], np.int32)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    weights = np.full(len(pairs), 1e-3, np.float32)
    return NeighbourTable.of(Neighbours(offsets, columns, weights))


def related_scorer(weights: torch.Tensor | None, event: int, new: int) -> Scorer:
    """A scorer in which a new item of video is related to a row that a user has had."""
    scorer = make_scorer(SHOP, VIDEO)
    fusions: dict[str, Fusion] = dict(scorer.fusions)
    if weights is not None:
        for fusion in fusions.values():
            fusion.related = weights
    tables = {"shop": table([], 40), "video": table([(event, new)], 40)}
    is_new = {d.name: torch.from_numpy(NEW[d.start : d.stop].nonzero()[0]) for d in (SHOP, VIDEO)}
    items = Items(
        scorer.state,
        scorer.columns,
        {**scorer.neighbours, RELATED: tables},
        fusions,
        scorer.events,
        is_new,
    )
    return Scorer(scorer.recommender, items, (SHOP, VIDEO))


NEW_VIDEO = np.flatnonzero(NEW[VIDEO.start :]).tolist()
USER = 3
EVENT = int(USERS.rows[USERS.offsets[USER]])


def test_a_new_item_comes_up_for_who_had_what_it_is_related_to() -> None:
    new = NEW_VIDEO[-1]
    plain, related = (
        score_all(related_scorer(weights, EVENT, new))["model", "video"].rows.tolist()
        for weights in (torch.zeros(2), WEIGHTS)
    )
    had = {
        user
        for user in range(len(USERS.lengths))
        if EVENT in USERS.rows[USERS.offsets[user] : USERS.offsets[user + 1]]
    }
    assert USER in had
    assert len(had) < len(plain)
    for user, (before, after) in enumerate(zip(plain, related, strict=True)):
        assert (after[0] == new) if user in had else (after == before)
    assert any(rows[0] != new for rows in plain)


def test_places_of_new_items_go_by_what_they_are_related_to() -> None:
    assert len(NEW_VIDEO) > 2
    wanted = [("model", "video")]
    for new in NEW_VIDEO[:3]:
        # At some weight it is the best of the new items, and not yet the best of all.
        firsts = []
        for weight in np.linspace(0.25, 12, 48):
            scorer = related_scorer(torch.tensor([0.0, float(weight)]), EVENT, new)
            kept, plain = (
                scorer.score(USERS, DAY, wanted, 1, new_places=places)["model", "video"]
                for places in (1, 0)
            )
            firsts.append((int(kept.rows[USER, 0]) == new, int(plain.rows[USER, 0]) == new))
        assert (True, False) in firsts


def test_weights_of_zero_and_relations_unknown_to_the_model_change_no_byte() -> None:
    plain = score_all(make_scorer(SHOP, VIDEO))
    for weights in (None, torch.zeros(2)):
        found = score_all(related_scorer(weights, EVENT, NEW_VIDEO[0]))
        for key, lists in plain.items():
            for part, other in zip(vars(lists).values(), vars(found[key]).values(), strict=True):
                np.testing.assert_array_equal(part, other)


def test_what_a_new_item_is_related_to_is_its_reason() -> None:
    scorer = related_scorer(WEIGHTS, EVENT, NEW_VIDEO[-1])
    lists = scorer.score(USERS, DAY, [("model", "video")], K)["model", "video"]
    reasons = find_reasons(scorer, USERS, DAY, {"video": lists}, n=1)["video"]
    assert lists.rows[USER, 0] == NEW_VIDEO[-1]
    assert reasons[USER, 0, 0] == EVENT
