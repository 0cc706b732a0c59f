import dataclasses
import math
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from crossrec.config import ModelConfig
from crossrec.model.objectives import ItemTable, NextEventLoss, Objective, Targets
from crossrec.model.recommender import HistoryBatch, Recommender, recent_mean
from crossrec.train.epoch import idle_batch

SETTINGS = ModelConfig(width=16, layers=1, heads=2, max_history=8)
TEXT_WIDTH, ITEMS = 12, 46
SOFTMAX = Objective()
BOUNDS = ((0, 6), (6, 46))
"""A domain of 6 items and one of 40."""


def make_loss(
    full_softmax_items: int = 1_000,
    negatives: int = 1,
    counts: Tensor | None = None,
    objective: Objective = SOFTMAX,
) -> NextEventLoss:
    """Random weights in evaluation mode; the same ones every time."""
    draw = torch.Generator().manual_seed(17)
    with torch.random.fork_rng():
        torch.manual_seed(17)
        recommender = Recommender(SETTINGS, TEXT_WIDTH, ITEMS, len(BOUNDS)).eval()
        with torch.no_grad():
            for parameter in recommender.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    texts = functional.normalize(torch.randn(ITEMS, TEXT_WIDTH, generator=draw), dim=-1)
    if counts is None:
        counts = torch.randint(0, 9, (ITEMS,), generator=draw).float()
    table = ItemTable(torch.arange(ITEMS), counts, BOUNDS, full_softmax_items, negatives)
    return NextEventLoss(recommender, texts.__getitem__, table, objective)


ROWS = torch.tensor([[-1, 3, 20, 9], [-1, 45, 3, -1]])
BATCH = HistoryBatch(
    ROWS,
    torch.tensor([[2, 0, 1, 1], [2, 1, 0, 2]]),
    torch.tensor([[4, 4, 6, 9], [1, 1, 8, 8]], dtype=torch.int32),
)
# Each event from the position before it, and the days between them.
TARGETS = Targets(
    torch.tensor([0, 0, 0, 1, 1]),
    torch.tensor([0, 1, 2, 0, 1]),
    torch.tensor([3, 20, 9, 45, 3]),
    torch.tensor([0, 2, 3, 0, 7]),
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def summed_by_hand(loss: NextEventLoss, batch: HistoryBatch, targets: Targets) -> float:
    """The full softmax, one target after the other, over the vectors of the whole catalogue."""
    model, counts = loss.recommender, loss.items.counts_I
    everything = torch.arange(ITEMS)
    vectors = model.item_vectors(loss.text_of(everything), loss.items.ids_I, torch.log1p(counts))
    history = vectors[batch.rows_BL.clamp(min=0)]
    hidden = model.encode(history, batch)
    profile = recent_mean(history, batch.rows_BL >= 0)
    total = 0.0
    parts = (targets.users_N, targets.sources_N, targets.rows_N, targets.elapsed_N)
    for user, source, row, elapsed in zip(*(part.tolist() for part in parts), strict=True):
        domain = int(row >= BOUNDS[0][1])
        start, stop = BOUNDS[domain]
        query = model.queries(
            hidden[user, source][None],
            profile[user, source][None],
            torch.tensor([domain]),
            torch.tensor([elapsed]),
        )
        logits = query @ vectors[start:stop].T * model.log_scale.exp()
        logits = logits + torch.log(1 + counts[start:stop])
        total += functional.cross_entropy(logits, torch.tensor([row - start])).item()
    return total


def test_full_softmax_equals_a_computation_by_hand() -> None:
    loss = make_loss()
    found = loss(BATCH, TARGETS, seeded()).item()
    assert found == pytest.approx(summed_by_hand(loss, BATCH, TARGETS), rel=1e-5)


def test_full_softmax_is_taken_where_the_sample_would_be_larger_than_the_domain() -> None:
    loss = make_loss(full_softmax_items=0, negatives=40)
    found = loss(BATCH, TARGETS, seeded()).item()
    assert found == pytest.approx(summed_by_hand(loss, BATCH, TARGETS), rel=1e-5)


def test_full_softmax_of_a_batch_is_the_sum_over_its_users() -> None:
    loss = make_loss()
    alone = 0.0
    for user in range(2):
        own = TARGETS.users_N == user
        part = HistoryBatch(
            *(part[user : user + 1] for part in (BATCH.rows_BL, BATCH.domains_BL, BATCH.days_BL))
        )
        chosen = (TARGETS.sources_N[own], TARGETS.rows_N[own], TARGETS.elapsed_N[own])
        alone += loss(part, Targets(torch.zeros_like(chosen[0]), *chosen), seeded()).item()
    assert loss(BATCH, TARGETS, seeded()).item() == pytest.approx(alone, rel=1e-5)


def test_sampled_softmax_divides_each_negative_by_its_chance() -> None:
    loss = make_loss(full_softmax_items=0, negatives=12, counts=torch.logspace(-1, 2.6, ITEMS))
    full = make_loss(counts=loss.items.counts_I)
    target = Targets(*(torch.tensor([value]) for value in (0, 2, 9, 3)))
    rows, log_chance = loss._candidates(target.rows_N, target.rows_N, 1, seeded(3))
    assert log_chance.max() - log_chance.min() > 0.1
    # What the whole domain's loss says of each item's logit beside that of the target.
    logits = torch.stack(
        [
            -full(BATCH, dataclasses.replace(target, rows_N=row[None]), seeded()).detach()
            for row in rows
        ]
    )
    is_target = rows == target.rows_N
    expected = functional.cross_entropy(
        torch.where(is_target, logits, logits - log_chance), is_target.nonzero()[0, 0]
    )
    found = loss(BATCH, target, seeded(3)).item()
    assert found == pytest.approx(expected.item(), abs=1e-4)


def test_sampled_softmax_is_near_the_full_one_on_average() -> None:
    # From 0.1 events to 400: what is popular is in every sample, what is rare in one of four.
    counts = torch.logspace(-1, 2.6, ITEMS)
    full = make_loss(counts=counts)
    sampled = make_loss(full_softmax_items=0, negatives=12, counts=counts)
    start, stop = BOUNDS[1]
    generator, users = seeded(), torch.zeros(30, dtype=torch.int64)
    differences = []
    with torch.no_grad():
        # Logits of one size, so that no single negative decides.
        for loss in (full, sampled):
            loss.recommender.log_scale.fill_(0.0)
        for _ in range(100):
            rows = start + torch.multinomial(counts[start:stop], 30, True, generator=generator)
            targets = Targets(users, users + 2, rows, users + 3)
            found = sampled(BATCH, targets, generator) - full(BATCH, targets, generator)
            differences.append(found.item() / 30)
    assert sum(differences) / len(differences) == pytest.approx(0.0, abs=0.04)
    assert max(differences) - min(differences) > 0.01


def test_sampled_sum_is_unbiased_where_targets_follow_the_counts() -> None:
    loss = make_loss(full_softmax_items=0, negatives=8)
    start, stop = BOUNDS[1]
    weights = torch.rand(ITEMS, generator=seeded(5)) + 0.5
    shares = loss.items.counts_I[start:stop] / loss.items.counts_I[start:stop].sum()
    generator = seeded(6)
    draws = []
    for _ in range(3_000):
        own = start + torch.multinomial(shares, 6, replacement=True, generator=generator)
        rows, log_chance = loss._candidates(own, own, 1, generator)
        draws.append(float((weights[rows] / log_chance.exp()).sum()))
    assert sum(draws) / len(draws) == pytest.approx(float(weights[start:stop].sum()), rel=0.02)


def test_sampled_candidates_are_unique_and_hold_every_target() -> None:
    loss = make_loss(full_softmax_items=0, negatives=20)
    own = torch.tensor([9, 45, 9, 3])
    for seed in range(20):
        rows = loss._candidates(own, own, 1, seeded(seed))[0].tolist()
        assert rows == sorted(set(rows))
        assert {9, 45} <= set(rows) <= set(range(*BOUNDS[1]))


def test_sampled_softmax_never_takes_a_target_as_its_own_negative() -> None:
    loss = make_loss(full_softmax_items=0, negatives=39)
    with torch.no_grad():
        # As at step 0: the query is the vector of the one event, here the target itself.
        for parameter in loss.recommender.query[2].parameters():
            parameter.zero_()
        loss.recommender.log_scale.fill_(8.0)
    batch = HistoryBatch(
        torch.tensor([[-1, 9]]), torch.tensor([[2, 1]]), torch.zeros(1, 2, dtype=torch.int32)
    )
    target = Targets(torch.tensor([0]), torch.tensor([1]), torch.tensor([9]), torch.tensor([1]))
    # Drawn in most samples: standing there twice would cost log 2.
    assert max(loss(batch, target, seeded(seed)).item() for seed in range(20)) < 0.01


def test_loss_encodes_each_item_once() -> None:
    loss = make_loss()
    asked: list[list[int]] = []
    texts = loss.text_of

    def text_of(rows: Tensor) -> Tensor:
        asked.append(rows.tolist())
        return texts(rows)

    loss.text_of = text_of
    only_domain_0 = TARGETS.rows_N < 6
    parts = (TARGETS.users_N, TARGETS.sources_N, TARGETS.rows_N, TARGETS.elapsed_N)
    loss(BATCH, Targets(*(part[only_domain_0] for part in parts)), seeded())
    # The candidates of domain 0, and of domain 1 what stands in the histories.
    assert asked == [[0, 1, 2, 3, 4, 5, 9, 20, 45]]


def test_loss_of_an_idle_batch_is_0_with_gradients() -> None:
    loss = make_loss().train()
    found = loss(*idle_batch(len(BOUNDS)), seeded())
    found.backward()
    assert found.item() == 0
    gradients = [parameter.grad for parameter in loss.recommender.encoder.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def test_loss_has_finite_gradients_where_an_item_has_no_text() -> None:
    loss = make_loss()
    texts = loss.text_of(torch.arange(ITEMS))
    texts[[3, 9]] = 0
    texts.requires_grad_(True)
    loss.text_of = texts.__getitem__
    loss(BATCH, TARGETS, seeded()).backward()
    for name, parameter in loss.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert texts.grad is not None
    assert texts.grad.isfinite().all()
    assert loss.recommender.no_text.grad is not None
    assert loss.recommender.no_text.grad.abs().max() > 0


def test_loss_of_new_items_neither_reads_nor_moves_an_id() -> None:
    loss = make_loss()
    loss.items.ids_I.fill_(-1)
    loss.items.ids_I[7] = 7
    before = loss(BATCH, TARGETS, seeded())
    before.backward()
    gradient = loss.recommender.id_embedding.weight.grad
    assert gradient is not None
    assert gradient.abs().sum(1).nonzero().flatten().tolist() == [7]
    with torch.no_grad():
        loss.recommender.id_embedding.weight[torch.arange(ITEMS) != 7] = 100.0
    assert loss(BATCH, TARGETS, seeded()).item() == before.item()


def test_loss_repeats_with_the_seed_and_differs_without() -> None:
    loss = make_loss(full_softmax_items=0, negatives=4)
    one, again, other = (loss(BATCH, TARGETS, seeded(seed)).item() for seed in (1, 1, 2))
    assert one == again
    assert not math.isclose(one, other, rel_tol=1e-6)


def test_loss_falls_when_it_is_minimised() -> None:
    loss = make_loss()
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
    first = loss(BATCH, TARGETS, seeded()).item()
    for _ in range(10):
        optimizer.zero_grad()
        loss(BATCH, TARGETS, seeded()).backward()
        optimizer.step()
    assert loss(BATCH, TARGETS, seeded()).item() < first / 2


def test_domain_weights_share_the_loss_by_events_to_a_power() -> None:
    counts = torch.zeros(ITEMS)
    counts[:3], counts[BOUNDS[1][0]] = 300.0, 100.0
    by_root = ItemTable(torch.arange(ITEMS), counts, BOUNDS, 0, 1, balance=0.5).domain_weights()
    # 900 and 100 events: shares of 30 : 10, of a loss of 1,000 targets in all.
    assert by_root == pytest.approx([750 / 900, 250 / 100])
    alike = ItemTable(torch.arange(ITEMS), counts, BOUNDS, 0, 1, balance=0.0).domain_weights()
    assert alike == pytest.approx([500 / 900, 500 / 100])
    assert ItemTable(torch.arange(ITEMS), counts, BOUNDS, 0, 1).domain_weights() == [1.0, 1.0]


def test_a_domain_without_events_has_no_weight() -> None:
    counts = torch.zeros(ITEMS)
    counts[0] = 5.0
    found = ItemTable(torch.arange(ITEMS), counts, BOUNDS, 0, 1, balance=0.5).domain_weights()
    assert found == pytest.approx([1.0, 0.0])


def log_odds(loss: NextEventLoss, target: Targets) -> Tensor:
    """Logits of one target's domain: cosine / temperature + log(1 + events)."""
    full = make_loss(counts=loss.items.counts_I)
    start, stop = BOUNDS[int(target.rows_N[0] >= BOUNDS[0][1])]
    found = [
        -full(BATCH, dataclasses.replace(target, rows_N=torch.tensor([row])), seeded()).detach()
        for row in range(start, stop)
    ]
    # The softmax loss gives them up to a constant; the sum of all exponentials is what is missing.
    model, counts = full.recommender, full.items.counts_I
    vectors = model.item_vectors(
        full.text_of(torch.arange(ITEMS)), full.items.ids_I, torch.log1p(counts)
    )
    history = vectors[BATCH.rows_BL.clamp(min=0)]
    user, source = int(target.users_N[0]), int(target.sources_N[0])
    query = model.queries(
        model.encode(history, BATCH)[user, source][None],
        recent_mean(history, BATCH.rows_BL >= 0)[user, source][None],
        torch.tensor([int(start > 0)]),
        target.elapsed_N,
    )
    first = query @ vectors[start] * model.log_scale.exp() + torch.log1p(counts[start])
    odds: Tensor = torch.stack(found) - found[0] + first.detach()
    return odds


TARGET = Targets(*(torch.tensor([value]) for value in (0, 2, 9, 3)))
OTHERS = [row for row in range(*BOUNDS[1]) if row not in (9, 20)]
"""What user 0 never had in the domain of TARGET."""


@pytest.mark.parametrize("objective", [Objective("bce"), Objective("gbce", 0.0)])
def test_bce_over_all_items_equals_a_computation_by_hand(objective: Objective) -> None:
    loss = make_loss(objective=objective)
    start, stop = BOUNDS[1]
    level = -math.log(float((1 + loss.items.counts_I[start:stop]).sum()))
    odds = log_odds(loss, TARGET) + level
    expected = functional.softplus(-odds[9 - start])
    expected = expected + sum(functional.softplus(odds[row - start]) for row in OTHERS)
    assert loss(BATCH, TARGET, seeded()).item() == pytest.approx(float(expected), rel=1e-4)


def test_gbce_trusts_a_target_less_the_fewer_negatives_it_has() -> None:
    bce, gbce = (make_loss(0, 8, objective=Objective(name, 1.0)) for name in ("bce", "gbce"))
    # Of 39 others 8 are negatives: the target weighs 8 / 39, and the level starts lower.
    assert gbce(BATCH, TARGET, seeded()).item() < bce(BATCH, TARGET, seeded()).item()


def test_contrastive_compares_with_the_targets_of_the_batch_alone() -> None:
    loss = make_loss(objective=Objective("contrastive"))
    rows, _ = loss._candidates(TARGETS.rows_N, TARGETS.rows_N, 1, seeded())
    assert rows.tolist() == [9, 20, 45]


def test_contrastive_takes_no_item_of_the_history_as_a_negative() -> None:
    loss = make_loss(objective=Objective("contrastive"))
    # User 0 had 20 and 9: for its target 9 the other target, 20, is no negative.
    both = dataclasses.replace(
        TARGET,
        users_N=torch.tensor([0, 0]),
        sources_N=torch.tensor([1, 2]),
        rows_N=torch.tensor([20, 9]),
        elapsed_N=torch.tensor([2, 3]),
    )
    assert loss(BATCH, both, seeded()).item() == pytest.approx(0.0, abs=1e-6)
    # User 1 had 45 and never those two.
    assert loss(BATCH, TARGETS, seeded()).item() > 0.1


@pytest.mark.parametrize("name", ["bce", "gbce", "contrastive"])
def test_every_objective_falls_when_it_is_minimised(name: Any) -> None:
    loss = make_loss(0, 8, objective=Objective(name))
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
    first = loss(BATCH, TARGETS, seeded()).item()
    for step in range(20):
        optimizer.zero_grad()
        loss(BATCH, TARGETS, seeded(step)).backward()
        optimizer.step()
    assert loss(BATCH, TARGETS, seeded()).item() < 0.8 * first


@pytest.mark.parametrize("name", ["softmax", "bce", "contrastive"])
def test_a_target_of_weight_2_counts_as_two(name: Literal["softmax", "bce", "contrastive"]) -> None:
    loss = make_loss(objective=Objective(name))
    plain, doubled = (
        loss(BATCH, replace(TARGETS, weights_N=torch.tensor(weights)), seeded()).item()
        for weights in ([1.0] * 5, [1.0, 1.0, 2.0, 0.0, 1.0])
    )
    alone = [
        loss(BATCH, replace(TARGETS, weights_N=torch.eye(5)[target]), seeded()).item()
        for target in range(5)
    ]
    assert plain == pytest.approx(loss(BATCH, TARGETS, seeded()).item())
    assert plain == pytest.approx(sum(alone), rel=1e-5)
    assert doubled == pytest.approx(plain + alone[2] - alone[3], rel=1e-5)


def test_targets_weigh_what_they_say() -> None:
    assert TARGETS.weight == 5
    assert replace(TARGETS, weights_N=torch.tensor([0.5, 1, 2, 0, 0])).weight == 3.5
