import copy
import math
from dataclasses import replace

import pytest
import torch

from crossrec.model.fusion import PARTS, SEQUENCE_SPEED, Fusion, Shortlists, scores
from crossrec.train.fit import (
    NET_RIDGE,
    RIDGE,
    SCALE,
    Earned,
    earn,
    earn_together,
    fit,
    fit_sequence,
    fit_together,
    keep_share,
    loss,
    measure,
    ndcg,
    penalty,
)
from tests.small import fresh_fusion, padded, random_fusion, shortlists

SEQUENCE = {"sequence", "sequence_beside", "sequence_gate.weight", "sequence_gate.bias"}


def changed(before: Fusion, after: Fusion) -> set[str]:
    """Names of the tensors that differ."""
    others = after.state_dict()
    return {
        name for name, part in before.state_dict().items() if not torch.equal(part, others[name])
    }


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
        lists.whose_B,
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
    fit(fusion, lists, 0.1, seed=17)
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
    lists = shortlists(17, lists=100, candidates=5)
    found = [fresh_fusion(), fresh_fusion()]
    for fusion in found:
        fit(fusion, lists, 0.01, seed=17)
    assert changed(found[0], found[1]) == set()


def test_fit_of_a_single_list_is_finite() -> None:
    fusion, lists = fresh_fusion(), shortlists(17, lists=1, candidates=5)
    fit(fusion, lists, 0.01, seed=17)
    assert scores(fusion, lists).isfinite().all()


def informed(share: float, lists: int = 400) -> Shortlists:
    """Of a share of the lists the sequence says what is next, of the others chance does."""
    found = shortlists(17, lists, candidates=30)
    is_told = torch.arange(lists) < share * lists
    drawn = torch.randint(30, (lists,), generator=torch.Generator().manual_seed(18))
    next_is = torch.where(is_told, found.sequence_BS.argmax(1), drawn)
    is_next = torch.nn.functional.one_hot(next_is, 30).bool()
    return replace(found, is_next_BS=is_next)


def test_ndcg_is_that_of_the_ten_best() -> None:
    lists = equal_scores([[False] * 12, [False] * 12, [True] + [False] * 11])
    places = torch.arange(12, 0, -1).float() / 100
    lists.parts_BSP[..., PARTS.index("text")] = places
    lists.is_next_BS[0, 1] = lists.is_next_BS[0, 2] = True
    lists.is_next_BS[1, 10] = True
    best = 1 + 1 / math.log2(3)
    expected = [(1 / math.log2(3) + 1 / math.log2(4)) / best, 0.0, 1.0]
    assert ndcg(Fusion(2), lists).tolist() == pytest.approx(expected)


def test_a_sequence_that_tells_what_is_next_earns_its_weight() -> None:
    earned = earn(fresh_fusion(), informed(1.0), 0.1, seed=17)
    assert earned.gain > 0.2
    assert earned.share > 0.9


def test_a_sequence_that_tells_nothing_earns_nothing() -> None:
    earned = earn(fresh_fusion(), informed(0.0), 0.1, seed=17)
    assert earned.gain < 2 * earned.error
    assert earned.share == 0.0


def test_earn_leaves_the_fusion_as_it_is() -> None:
    fusion = random_fusion(17)
    before = copy.deepcopy(fusion)
    earn(fusion, shortlists(17, lists=20, candidates=5), 0.1, seed=17)
    assert changed(before, fusion) == set()


def test_lists_of_the_same_users_say_no_more_than_one_each() -> None:
    gains = torch.randn(200, generator=torch.Generator().manual_seed(17))
    one, four = (measure(gains.repeat(n), torch.arange(200).repeat(n)) for n in (1, 4))
    assert four.gain == pytest.approx(one.gain, abs=1e-6)
    assert four.error == pytest.approx(one.error, rel=1e-5)
    assert one.error == pytest.approx(gains.std().item() / 200**0.5, rel=0.01)


@pytest.mark.parametrize(
    ("gain", "error", "share"),
    [(0.02, 0.01, 0.75), (0.01, 0.01, 0.0), (0.02, 0.0, 1.0), (-0.02, 0.001, 0.0), (0, 0, 0)],
)
def test_share_grows_with_how_sure_a_gain_is(gain: float, error: float, share: float) -> None:
    assert Earned(gain, error).share == pytest.approx(share)


def test_no_share_is_no_sequence() -> None:
    fusion, lists = random_fusion(17), shortlists(17, lists=5, candidates=7)
    keep_share(fusion, fresh_fusion(), 0.0)
    without = replace(lists, sequence_BS=lists.sequence_BS + 1)
    assert torch.equal(scores(fusion, lists), scores(fusion, without))


def test_a_share_lies_between_both() -> None:
    fusion, without = random_fusion(17), fresh_fusion()
    expected = 0.25 * fusion.weights + 0.75 * without.weights
    keep_share(fusion, without, 0.25)
    torch.testing.assert_close(fusion.weights, expected)


def test_what_is_learned_together_gives_the_sequence_what_others_would_take() -> None:
    """Both tell what is next, the text less well; after it there is little left to learn from."""
    lists = informed(1.0, lists=150)
    lists = replace(lists, parts_BSP=lists.parts_BSP + 0.7 * lists.is_next_BS.unsqueeze(2).half())
    apart, together = fresh_fusion(), fresh_fusion()
    fit(apart, lists, 0.01, seed=17)
    fit_sequence(apart, lists, 0.01, seed=17)
    fit_together(together, lists, 0.01, seed=17)
    assert together.sequence > 1.5 * apart.sequence


def test_together_a_sequence_that_tells_what_is_next_earns_its_weight() -> None:
    fusion = fresh_fusion()
    before = copy.deepcopy(fusion)
    told, untold = (
        earn_together(fusion, informed(share, lists=120), 0.01, seed=17) for share in (1.0, 0.0)
    )
    assert told.share > 0.9
    assert untold.gain < 2 * untold.error
    assert changed(before, fusion) == set()


def test_the_whole_share_changes_nothing() -> None:
    fusion = random_fusion(17)
    before = copy.deepcopy(fusion)
    keep_share(fusion, fresh_fusion(), 1.0)
    assert changed(before, fusion) == set()
