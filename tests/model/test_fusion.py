import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from crossrec.data.itemstate import STATE_NAMES
from crossrec.model.fusion import (
    NET_RIDGE,
    PARTS,
    RIDGE,
    SCALE,
    SEQUENCE_SPEED,
    Fusion,
    Shortlists,
    fit,
    fit_sequence,
    join,
    loss,
    penalty,
    scores,
)
from tests.small import shortlists

SEQUENCE = {"sequence", "sequence_beside", "sequence_gate.weight", "sequence_gate.bias"}


def random_fusion(seed: int, domains: int = 2) -> Fusion:
    """Every weight is away from where it starts."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = Fusion(domains)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def fresh_fusion(domains: int = 2) -> Fusion:
    with torch.random.fork_rng():
        torch.manual_seed(17)
        return Fusion(domains)


def changed(before: Fusion, after: Fusion) -> set[str]:
    """Names of the tensors that differ."""
    others = after.state_dict()
    return {
        name for name, part in before.state_dict().items() if not torch.equal(part, others[name])
    }


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


def padded(lists: Shortlists, real: int) -> Shortlists:
    """The lists with padding that looks better than any real candidate."""
    parts, is_real = lists.parts_BSP.clone(), lists.is_real_BS.clone()
    parts[:, real:] = 1_000
    is_real[:, real:] = False
    return replace(lists, parts_BSP=parts, is_real_BS=is_real)


def test_padding_is_never_chosen() -> None:
    found = scores(random_fusion(17), padded(shortlists(17, lists=5, candidates=7), 4))
    assert (found[:, 4:] == -torch.inf).all()
    assert (found.argmax(1) < 4).all()


def test_padding_changes_neither_loss_nor_gradient() -> None:
    lists = shortlists(17, lists=5, candidates=7)
    cut = Shortlists(
        lists.parts_BSP[:, :4],
        lists.sequence_BS[:, :4],
        lists.items_BSG[:, :4],
        lists.is_next_BS[:, :4],
        lists.is_real_BS[:, :4],
        lists.users_BF,
        lists.domain_BD,
    )
    found = []
    for same in (padded(lists, 4), cut):
        fusion = random_fusion(17)
        value = loss(fusion, same)
        value.backward()
        found.append((value.detach(), fusion.item.weight.grad))
    torch.testing.assert_close(found[0], found[1])


def equal_scores(is_next: list[list[bool]], domains: int = 2) -> Shortlists:
    """Lists of which all candidates look alike."""
    lists = shortlists(17, len(is_next), len(is_next[0]), domains)
    return replace(
        lists,
        parts_BSP=torch.zeros_like(lists.parts_BSP),
        sequence_BS=torch.zeros_like(lists.sequence_BS),
        items_BSG=torch.zeros_like(lists.items_BSG),
        is_next_BS=torch.tensor(is_next),
    )


def test_loss_of_equal_scores_is_the_ndcg_of_the_middle_rank() -> None:
    # Three equal scores: each stands at 1 + 2 * sigmoid(0) = 2. All three chosen: the best possible
    # is 1 + 1 / log2(3) + 1 / log2(4).
    lists = equal_scores([[True, False, False], [True, True, True]])
    single = 1 / math.log2(3)
    every = 3 / math.log2(3) / (1 + 1 / math.log2(3) + 1 / math.log2(4))
    assert loss(Fusion(2), lists).item() == pytest.approx(-(single + every) / 2)


def test_loss_counts_ranks_by_how_far_scores_are_apart() -> None:
    lists = equal_scores([[True, False]])
    parts = lists.parts_BSP.clone()
    parts[0, 0, PARTS.index("text")] = 0.1
    rank = 1 + 1 / (1 + math.exp(0.1 * SCALE))
    found = loss(Fusion(2), replace(lists, parts_BSP=parts))
    assert found.item() == pytest.approx(-1 / math.log2(1 + rank), rel=1e-5)


def test_penalty_is_0_at_step_0_and_grows_with_what_reads_the_state_of_items() -> None:
    fusion = fresh_fusion()
    start = penalty(fusion).item()
    assert start == pytest.approx(0.0)
    with torch.no_grad():
        fusion.popularity[2].add_(0.3)
        fusion.item_bias.weight[0, 0] = 0.2
        fusion.weights.add_(1.0)
    assert penalty(fusion).item() == pytest.approx(RIDGE * 0.3**2 + NET_RIDGE * 0.2**2)


def planted(part_by_domain: tuple[str, str], lists: int = 400) -> Shortlists:
    """What is next has the highest value of a part that depends on the domain."""
    found = shortlists(17, lists, candidates=8)
    columns = torch.tensor([PARTS.index(part) for part in part_by_domain])
    asked = columns[found.domain_BD.argmax(1)]
    values = found.parts_BSP[torch.arange(lists), :, asked]
    is_next = torch.nn.functional.one_hot(values.argmax(1), 8).bool()
    return replace(found, is_next_BS=is_next)


def share_first(fusion: Fusion, lists: Shortlists) -> float:
    """How often what was next has the highest score."""
    with torch.no_grad():
        best = scores(fusion, lists).argmax(1)
    return float(lists.is_next_BS[torch.arange(len(lists)), best].float().mean())


def test_fit_learns_which_part_tells_what_is_next() -> None:
    fusion, lists = fresh_fusion(), planted(("lately", "lately"))
    assert share_first(fusion, lists) < 0.3
    fit(fusion, lists, 0.1, seed=17)
    assert share_first(fusion, lists) > 0.8


def test_fit_learns_that_domains_differ() -> None:
    fusion, lists = fresh_fusion(), planted(("lately", "text_domain"))
    assert share_first(fusion, lists) < 0.3
    fit(fusion, lists, 0.1, seed=17, epochs=60)
    assert share_first(fusion, lists) > 0.6


def test_fit_leaves_the_sequence_alone() -> None:
    fusion = random_fusion(17)
    before = copy.deepcopy(fusion)
    fit(fusion, shortlists(17, lists=20, candidates=5), 0.01, seed=17)
    same = SEQUENCE | {"known_parts", "known_states", "known_users", "link_D2"}
    assert changed(before, fusion) == set(before.state_dict()) - same


def test_fit_sequence_changes_the_sequence_alone() -> None:
    fusion = random_fusion(17)
    before = copy.deepcopy(fusion)
    fit_sequence(fusion, shortlists(17, lists=20, candidates=5), 0.01, seed=17)
    assert changed(before, fusion) == SEQUENCE


def test_fit_sequence_gives_weight_to_a_sequence_that_tells_what_is_next() -> None:
    fusion, lists = fresh_fusion(), shortlists(17, lists=400, candidates=8)
    next_is = lists.sequence_BS.argmax(1)
    lists = replace(lists, is_next_BS=torch.nn.functional.one_hot(next_is, 8).bool())
    before = share_first(fusion, lists)
    fit_sequence(fusion, lists, 0.1, seed=17)
    assert SEQUENCE_SPEED * fusion.sequence.item() > 0.5
    assert share_first(fusion, lists) > before + 0.2


def test_fit_sequence_takes_from_what_tells_the_same_less_well() -> None:
    """Beside a sequence that knows what is next, a part that does not counts less than before."""
    fusion, lists = fresh_fusion(), shortlists(17, lists=400, candidates=8)
    next_is = lists.sequence_BS.argmax(1)
    lists = replace(lists, is_next_BS=torch.nn.functional.one_hot(next_is, 8).bool())
    fit_sequence(fusion, lists, 0.1, seed=17)
    assert fusion.sequence_beside[PARTS.index("text")] < -0.1


def test_fit_at_rate_0_changes_nothing_but_the_scale() -> None:
    fusion, lists = random_fusion(17), shortlists(17, lists=20, candidates=5)
    before = copy.deepcopy(fusion)
    fit(fusion, lists, 0.0, seed=17)
    assert changed(before, fusion) == {"user_mean", "user_deviation"}
    torch.testing.assert_close(fusion.user_mean, lists.users_BF.mean(0))


def test_fit_again_gives_the_same_weights() -> None:
    lists = shortlists(17, lists=600, candidates=5)
    found = [fresh_fusion(), fresh_fusion()]
    for fusion in found:
        fit(fusion, lists, 0.01, seed=17, epochs=2)
    assert changed(found[0], found[1]) == set()


def test_fit_of_a_single_list_is_finite() -> None:
    fusion, lists = fresh_fusion(), shortlists(17, lists=1, candidates=5)
    fit(fusion, lists, 0.01, seed=17)
    assert scores(fusion, lists).isfinite().all()


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
