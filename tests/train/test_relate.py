from dataclasses import replace

import pytest
import torch

from crossrec.model.fusion import IS_NEW, PARTS, Fusion, Shortlists, scores
from crossrec.train.relate import weigh_relations
from tests.small import shortlists

LISTS, CANDIDATES = 400, 12


def related_lists(*, says: bool, new: bool | None) -> Shortlists:
    """Lists of 12, half of their items new; what is next is related to the user, or anything is.

    new: whether what is next is; None for either.
    """
    lists = shortlists(3, LISTS, CANDIDATES)
    draw = torch.Generator().manual_seed(5)
    is_new = torch.zeros(LISTS, CANDIDATES, dtype=torch.bool)
    is_new[:, ::2] = True
    chosen = torch.randint(CANDIDATES, (LISTS,), generator=draw)
    if new is not None:
        chosen = chosen // 2 * 2 + (0 if new else 1)
    is_next = torch.zeros_like(is_new)
    is_next[torch.arange(LISTS), chosen] = True
    related = (torch.rand(LISTS, CANDIDATES, generator=draw) < 0.2).float()
    if says:
        related[torch.arange(LISTS), chosen] = 1.0
    states = lists.items_BSG.clone()
    states[..., IS_NEW] = is_new.float()
    parts = torch.cat([lists.parts_BSP, related.unsqueeze(2)], 2)
    return replace(lists, parts_BSP=parts, items_BSG=states, is_next_BS=is_next)


def weights_of(lists: Shortlists, scale: float = 1.0) -> list[float]:
    """What relations earn beside other parts that are scaled."""
    fusion = Fusion(2, with_relations=True)
    with torch.no_grad():
        fusion.weights.mul_(scale)
        fusion.popularity.mul_(scale)
    before = {name: part.clone() for name, part in fusion.state_dict().items()}
    weigh_relations(fusion, lists, seed=17)
    for name, part in fusion.state_dict().items():
        assert name == "related" or torch.equal(part, before[name]), name
    assert fusion.related is not None
    return fusion.related.tolist()


@pytest.mark.parametrize("new", [False, True])
def test_relations_earn_a_weight_where_they_tell_what_comes_next(new: bool) -> None:
    weights = weights_of(related_lists(says=True, new=new))
    assert weights[new] > 0.1
    assert weights[new] > weights[not new]


def test_relations_count_beside_other_parts_of_any_size() -> None:
    lists = related_lists(says=True, new=True)
    expected = [50 * weight for weight in weights_of(lists)]
    assert weights_of(lists, scale=50) == pytest.approx(expected, rel=0.01)


def test_relations_that_say_nothing_earn_next_to_nothing() -> None:
    assert weights_of(related_lists(says=False, new=None)) == pytest.approx([0, 0], abs=0.02)


def test_too_few_lists_earn_nothing() -> None:
    assert weights_of(related_lists(says=True, new=True).take(torch.arange(20))) == [0, 0]


def test_score_adds_the_relations_by_whether_the_item_is_new() -> None:
    lists = related_lists(says=True, new=True)
    fusion, without = Fusion(2, with_relations=True), Fusion(2)
    without.load_state_dict({n: p for n, p in fusion.state_dict().items() if n != "related"})
    plain = replace(lists, parts_BSP=lists.parts_BSP[..., : len(PARTS)])
    torch.testing.assert_close(scores(fusion, lists), scores(without, plain))
    fusion.related = torch.tensor([0.25, 2.0])
    is_new = lists.items_BSG[..., IS_NEW] > 0
    expected = scores(without, plain) + torch.where(is_new, 2.0, 0.25) * lists.parts_BSP[..., -1]
    torch.testing.assert_close(scores(fusion, lists), expected)
