import dataclasses

import pytest
import torch
from torch import Tensor

from crossrec.model.blend import HALF_LIVES_DAYS, Slice, choose_blends
from crossrec.model.recommender import POPULARITY_FLOOR, Blend

PAIRS, CANDIDATES, WIDTH = 60, 200, 8
NOTHING = torch.zeros(2, 0, dtype=torch.int64)


def unit(draw: torch.Generator, *shape: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, generator=draw), dim=-1)


def planted(blend: Blend, seed: int = 17, seen: Tensor = NOTHING) -> Slice:
    """Pairs whose three relevant items are what a blend puts on top."""
    draw = torch.Generator().manual_seed(seed)
    profile, queries = unit(draw, PAIRS, WIDTH), unit(draw, PAIRS, WIDTH)
    texts, vectors = unit(draw, CANDIDATES, WIDTH), unit(draw, CANDIDATES, WIDTH)
    popularity = torch.rand(len(HALF_LIVES_DAYS), CANDIDATES, generator=draw) * 20
    log_popularity = torch.log(
        popularity[HALF_LIVES_DAYS.index(blend.half_life_days)] + POPULARITY_FLOOR
    )
    scores = blend.text * profile @ texts.T + blend.sequence * queries @ vectors.T
    scores = scores + blend.popularity * log_popularity
    scores[seen[0], seen[1]] = -torch.inf
    relevant = torch.stack(
        [torch.arange(PAIRS).repeat_interleave(3), scores.topk(3).indices.flatten()]
    )
    return Slice(profile, queries, texts, vectors, popularity, seen, relevant)


def nobody() -> Slice:
    whole = planted(Blend(1.0, 0.0, 0.1, 6.0))
    return Slice(
        whole.profile_PW[:0],
        whole.queries_PW[:0],
        whole.texts_CW,
        whole.vectors_CW,
        whole.popularity_HC,
        NOTHING,
        NOTHING,
    )


@pytest.mark.parametrize(
    "blend",
    [
        Blend(1.0, 0.0, 0.3, 6.0),
        Blend(1.0, 1.0, 0.1, 24.0),
        Blend(0.25, 1.0, 0.5, 1.5),
        Blend(0.0, 1.0, 0.2, 384.0),
    ],
)
def test_choose_blends_finds_the_planted_weights(blend: Blend) -> None:
    blends, ndcg = choose_blends({"shop": [planted(blend)]})
    assert blends == {"shop": blend}
    assert ndcg == pytest.approx(1.0)


def test_choose_blends_finds_each_domain_its_own_weights() -> None:
    shop, video = Blend(1.0, 0.0, 0.3, 6.0), Blend(0.0, 1.0, 0.3, 6.0)
    blends, ndcg = choose_blends({"shop": [planted(shop)], "video": [planted(video, seed=18)]})
    assert blends == {"shop": shop, "video": video}
    assert ndcg == pytest.approx(1.0)


def test_choose_blends_serves_all_moments_of_a_domain() -> None:
    blend = Blend(1.0, 0.5, 0.2, 12.0)
    blends, ndcg = choose_blends({"shop": [planted(blend), nobody(), planted(blend, seed=18)]})
    assert blends == {"shop": blend}
    assert ndcg == pytest.approx(1.0)


def test_choose_blends_before_training_leaves_the_sequence_out() -> None:
    blends, ndcg = choose_blends(
        {"shop": [planted(Blend(0.0, 1.0, 0.2, 6.0))]}, with_sequence=False
    )
    assert (blends["shop"].text, blends["shop"].sequence) == (1.0, 0.0)
    assert ndcg < 0.9


def test_choose_blends_gives_a_domain_without_pairs_what_is_best_for_all() -> None:
    blend = Blend(1.0, 1.0, 0.1, 24.0)
    blends, ndcg = choose_blends({"empty": [nobody()], "none": [], "shop": [planted(blend)]})
    assert blends == {"empty": blend, "none": blend, "shop": blend}
    assert ndcg == pytest.approx(1.0)


def test_choose_blends_without_any_pair_gives_defaults() -> None:
    assert choose_blends({"shop": [nobody()], "video": []}) == (
        {"shop": Blend(), "video": Blend()},
        0.0,
    )


def test_choose_blends_never_counts_what_was_seen() -> None:
    # The ten best items of every pair are seen; the planted ones are the best of the rest.
    blend = Blend(1.0, 0.0, 0.3, 6.0)
    best = planted(blend)
    scores = best.profile_PW @ best.texts_CW.T + 0.3 * torch.log(
        best.popularity_HC[HALF_LIVES_DAYS.index(6.0)] + POPULARITY_FLOOR
    )
    seen = torch.stack(
        [torch.arange(PAIRS).repeat_interleave(10), scores.topk(10).indices.flatten()]
    )
    blends, ndcg = choose_blends({"shop": [planted(blend, seen=seen)]})
    assert blends == {"shop": blend}
    assert ndcg == pytest.approx(1.0)


def one_pair(candidates: int, relevant: int, text: Tensor) -> Slice:
    """One pair whose texts score as given, under equal popularity."""
    return Slice(
        torch.tensor([[1.0]]),
        torch.tensor([[1.0]]),
        text[:, None],
        torch.zeros(candidates, 1),
        torch.ones(len(HALF_LIVES_DAYS), candidates),
        NOTHING,
        torch.tensor([[0], [relevant]]),
    )


def test_choose_blends_looks_behind_many_seen_items() -> None:
    # Row 40 is the best unseen one; the 40 above it, more than a probe finds, are seen.
    plain = one_pair(600, 40, torch.arange(600.0).flip(0))
    popularity = torch.arange(600.0).expand(len(HALF_LIVES_DAYS), -1)
    seen = torch.stack([torch.zeros(40, dtype=torch.int64), torch.arange(40)])
    part = dataclasses.replace(plain, popularity_HC=popularity, seen=seen)
    assert choose_blends({"shop": [part]}, with_sequence=False)[1] == pytest.approx(1.0)


@pytest.mark.parametrize("candidates", [2, 3, 5, 9])
@pytest.mark.parametrize("relevant", [0, 1])
def test_choose_blends_counts_an_item_once_in_a_domain_of_few_items(
    candidates: int, relevant: int
) -> None:
    text = torch.arange(float(candidates)).flip(0)
    _, ndcg = choose_blends({"shop": [one_pair(candidates, relevant, text)]}, with_sequence=False)
    # Alone relevant and on rank relevant + 1.
    expected = 1 / torch.log2(torch.tensor(relevant + 2.0)).item()
    assert ndcg == pytest.approx(expected)


def test_choose_blends_gives_nothing_for_an_item_below_rank_10() -> None:
    text = torch.arange(30.0).flip(0)
    assert choose_blends({"shop": [one_pair(30, 9, text)]}, with_sequence=False)[1] > 0.28
    assert choose_blends({"shop": [one_pair(30, 10, text)]}, with_sequence=False)[1] == 0


def test_choose_blends_weighs_pairs_equally_over_moments_and_domains() -> None:
    text = torch.arange(30.0).flip(0)
    first, never = one_pair(30, 0, text), one_pair(30, 20, text)
    _, ndcg = choose_blends({"shop": [first, never], "video": [never]}, with_sequence=False)
    assert ndcg == pytest.approx((1 + 0 + 0) / 3)
