from dataclasses import replace

import pytest
import torch
from torch import Tensor

from crossrec.data.itemstate import STATE_NAMES
from crossrec.model.fusion import PARTS, Fusion, join, scores
from tests.small import padded, random_fusion, shortlists


def test_step_0_is_the_mix_set_by_hand() -> None:
    lists = shortlists(17, lists=5, candidates=7)
    text, ever = (lists.parts_BSP[..., PARTS.index(name)] for name in ("text", "ever"))
    popularity = lists.items_BSG[..., STATE_NAMES.index("log_popularity_3d")]
    expected = 1.0 * text + 0.05 * ever + 0.1 * popularity
    torch.testing.assert_close(scores(Fusion(2), lists), expected)


def test_scores_are_products_of_a_users_and_an_items_columns() -> None:
    fusion, lists = random_fusion(17), shortlists(17, lists=5, candidates=7)
    side = fusion.user_side(lists.users_BF, lists.domain_BD)
    whole = scores(fusion, lists)
    for user in range(5):
        columns = fusion.item_side(lists.items_BSG[user])
        expected = (
            lists.parts_BSP[user] @ side.weights_BP[user]
            + lists.sequence_BS[user] * side.sequence_B[user]
            + columns @ side.columns_BR[user]
        )
        torch.testing.assert_close(whole[user], expected)


def test_scores_of_a_list_do_not_depend_on_other_lists() -> None:
    fusion, lists = random_fusion(17), shortlists(17, lists=5, candidates=7)
    whole = scores(fusion, lists)
    for user in range(5):
        alone = scores(fusion, lists.take(torch.tensor([user])))
        torch.testing.assert_close(alone[0], whole[user])


def test_user_side_clips_what_lies_far_out() -> None:
    fusion, lists = random_fusion(17), shortlists(17, lists=2, candidates=1)
    far, farther = (torch.full_like(lists.users_BF, size) for size in (10.0, 1_000.0))
    one, other = (fusion.user_side(users, lists.domain_BD) for users in (far, farther))
    assert torch.equal(one.weights_BP, other.weights_BP)


def test_padding_is_never_chosen() -> None:
    found = scores(random_fusion(17), padded(shortlists(17, lists=5, candidates=7), 4))
    assert (found[:, 4:] == -torch.inf).all()
    assert (found.argmax(1) < 4).all()


def test_join_lays_lists_one_below_the_other() -> None:
    lists = shortlists(17, lists=5, candidates=7)
    parts = [lists.take(torch.tensor(index)) for index in ([0, 1], [2], [3, 4])]
    joined = join(parts)
    assert len(joined) == 5
    pairs: list[tuple[Tensor, Tensor]] = list(
        zip(vars(joined).values(), vars(lists).values(), strict=True)
    )
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize(
    ("kind", "parts", "reads_state"),
    [
        ("text", ("ever", "recent", "lately"), True),
        ("ids", ("text", "text_domain"), True),
        ("time", PARTS, False),
    ],
)
def test_left_out_knowledge_does_not_reach_the_score(
    kind: str, parts: tuple[str, ...], reads_state: bool
) -> None:
    lists = shortlists(17, lists=5, candidates=7)
    torch.manual_seed(17)
    fusion = Fusion(2, leave_out=(kind,))
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape))
    before = scores(fusion, lists)
    for index, part in enumerate(PARTS):
        other = lists.parts_BSP.clone()
        other[..., index] += 1
        after = scores(fusion, replace(lists, parts_BSP=other))
        assert torch.equal(after, before) == (part not in parts), part
    other = scores(fusion, replace(lists, items_BSG=lists.items_BSG + 1))
    assert torch.equal(other, before) != reads_state
