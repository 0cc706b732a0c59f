import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from crossrec.config import ModelConfig
from crossrec.data.replay import Histories
from crossrec.model.biases import Biases, fit_biases
from crossrec.model.inference import ItemState, user_queries
from crossrec.model.objectives import ItemTable, Objective, Targets
from crossrec.model.rating import (
    RatingLoss,
    levels_of_items,
    predict_ratings,
    start_from_biases,
)
from crossrec.model.recommender import HistoryBatch, RatingHead, Recommender
from tests.small import histories

ITEMS, TEXT_WIDTH = 20, 8
BOUNDS = ((0, 10), (10, 20))
SETTINGS = ModelConfig(width=16, layers=1, heads=2, max_history=8, dropout=0.0, id_dropout=0.0)


def make_loss(balance: float = 1.0) -> RatingLoss:
    """Items with texts of their own, as if none had an event yet."""
    draw = torch.Generator().manual_seed(3)
    texts = functional.normalize(torch.randn(ITEMS, TEXT_WIDTH, generator=draw), dim=-1)
    with torch.random.fork_rng():
        torch.manual_seed(17)
        recommender = Recommender(SETTINGS, TEXT_WIDTH, ITEMS, 2, with_ratings=True)
    counts = torch.cat([torch.full((10,), 3.0), torch.ones(10)])
    table = ItemTable(torch.arange(ITEMS), counts, BOUNDS, 0, 0, balance)
    return RatingLoss(recommender, texts.__getitem__, table, Objective("mse"))


def head_of(loss: RatingLoss) -> RatingHead:
    assert loss.recommender.rating is not None
    return loss.recommender.rating


def batch_of(rows: list[list[int]], ratings: list[list[float]]) -> HistoryBatch:
    """Histories without padding, an event a day."""
    rows_BL = torch.tensor([[-1, *row] for row in rows])
    days_BL = torch.arange(rows_BL.shape[1], dtype=torch.int32).expand(rows_BL.shape)
    ratings_BL = torch.tensor([[float("nan"), *given] for given in ratings], dtype=torch.float32)
    return HistoryBatch(rows_BL, torch.where(rows_BL < 0, 2, rows_BL // 10), days_BL, ratings_BL)


def targets_of(batch: HistoryBatch) -> Targets:
    """Each event from the position before it."""
    users, columns = torch.nonzero(batch.rows_BL >= 0, as_tuple=True)
    assert batch.ratings_BL is not None
    rows, ratings = batch.rows_BL[users, columns], batch.ratings_BL[users, columns]
    return Targets(users, columns - 1, rows, torch.ones_like(users), ratings_N=ratings)


BATCH = batch_of([[3, 14, 7], [15, 2, 11]], [[4.0, 2.0, 5.0], [3.0, 1.0, 2.0]])
TARGETS = targets_of(BATCH)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_before_training_every_rating_is_the_mean_of_its_domain() -> None:
    loss = make_loss()
    head_of(loss).mean_D.copy_(torch.tensor([3.0, 2.0]))
    head_of(loss).deviation_D.copy_(torch.tensor([2.0, 0.5]))
    found = loss(BATCH, TARGETS, seeded()).item()
    by_domain = [(1**2 + 2**2 + 2**2) / 2.0**2, (0 + 1**2 + 0) / 0.5**2]
    assert found == pytest.approx(sum(by_domain))


def test_each_target_has_its_own_and_its_domains_weight() -> None:
    loss = make_loss(balance=0.0)
    weights = torch.tensor([1.0, 2.0, 0.0, 1.0, 0.5, 3.0])
    targets = Targets(*vars(TARGETS).values())
    targets = Targets(
        targets.users_N,
        targets.sources_N,
        targets.rows_N,
        targets.elapsed_N,
        weights,
        targets.ratings_N,
    )
    shares = loss.domain_weights
    # Three in four events are the first domain's, yet both weigh the same.
    assert shares[0] * 3 == pytest.approx(shares[1])
    ratings, domains = TARGETS.ratings_N, TARGETS.rows_N // 10
    assert ratings is not None
    expected = (ratings.square() * weights * torch.tensor(shares)[domains]).sum().item()
    assert loss(BATCH, targets, seeded()).item() == pytest.approx(expected)


def test_it_starts_from_the_levels_of_users_and_items() -> None:
    """In training and scoring alike; a new item has no level."""
    levels_I = np.zeros(ITEMS)
    levels_I[[3, 14, 7]] = [0.5, -1.0, 9.0]
    biases = Biases(np.array([3.0, 2.0]), np.array([2.0, 0.5]), levels_I, shrinkage=2.0)
    ids = np.arange(ITEMS)
    ids[7] = -1
    loss = make_loss()
    loss.items.ids_I[7] = -1
    head = head_of(loss)
    start_from_biases(head, biases, ids)
    batch = batch_of([[3, 14, 7]], [[4.0, 2.0, 5.0]])
    # The user's level after 4 - 3 - .5, after that and 2 - 2 + 1, and in the end.
    levels = [0.0, 0.5 / (1 + 2), (0.5 + 1) / (2 + 2), (0.5 + 1 + 2) / (3 + 2)]
    found = loss(batch, targets_of(batch), seeded()).item()
    errors = [
        (3.5 + levels[0] - 4) / 2,
        (1.0 + levels[1] - 2) / 0.5,
        (3.0 + levels[2] - 5) / 2,
    ]
    assert found == pytest.approx(sum(error**2 for error in errors))
    vectors = torch.zeros(ITEMS, 16)
    items = ItemState(vectors, vectors, head.item_levels(torch.from_numpy(ids)))
    asked = user_queries(loss.recommender.eval(), items, _as_histories(batch), BOUNDS, day=9)
    questions = asked.queries_BDW, asked.offsets_BD, items
    predicted = predict_ratings(questions, np.zeros(3, int), np.array([3, 14, 7]), BOUNDS)
    assert predicted.tolist() == pytest.approx([3.5 + levels[3], 1 + levels[3], 3 + levels[3]])


def test_levels_of_a_night_are_those_of_its_own_ratings() -> None:
    head = RatingHead(16, 2)
    head.mean_D.copy_(torch.tensor([3.0, 2.0]))
    levels_I = np.linspace(-1, 1, ITEMS)
    found = levels_of_items(head, Biases(np.array([3.5, 2.0]), np.ones(2), levels_I, 1.0), BOUNDS)
    np.testing.assert_allclose(found[:10], levels_I[:10] + 0.5, rtol=1e-6)
    np.testing.assert_allclose(found[10:], levels_I[10:], rtol=1e-6)


def test_ratings_of_the_history_are_read_and_later_ones_are_not() -> None:
    loss = make_loss().eval()
    with torch.no_grad():
        for part in loss.parameters():
            part.add_(0.1 * torch.randn_like(part))

    def hidden(ratings: list[list[float]]) -> Tensor:
        batch = batch_of([[3, 14, 7]], ratings)
        return loss._read(batch, torch.tensor([3, 7, 14]))[1][0]

    plain, other = hidden([[4.0, 2.0, 5.0]]), hidden([[4.0, 1.0, 5.0]])
    changed = (plain - other).abs().amax(-1) > 1e-4
    # Position 2 is after the second event.
    assert changed.tolist() == [False, False, True, True]
    missing = hidden([[4.0, float("nan"), 5.0]])
    assert missing.isfinite().all()


def test_it_learns_who_is_generous_and_what_is_good() -> None:
    """Ratings are a user's level plus an item's; three in four are seen, the others predicted."""
    draw = np.random.default_rng(5)
    quality, generosity = draw.normal(0, 1, ITEMS), draw.normal(0, 1, 240)
    rows = [draw.permutation(ITEMS)[:6].tolist() for _ in generosity]
    ratings = [
        [3 + level + quality[row] for row in taken]
        for level, taken in zip(generosity, rows, strict=True)
    ]
    learn, judge = (batch_of(rows[part], ratings[part]) for part in (slice(180), slice(180, 240)))
    loss = make_loss()
    biases = fit_biases(_as_histories(learn), BOUNDS, ITEMS)
    # The items' levels are left to be learned.
    start_from_biases(head_of(loss), biases, np.full(ITEMS, -1))
    optimizer = torch.optim.AdamW(loss.parameters(), 3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        (loss(learn, targets_of(learn), seeded()) / 1080).backward()
        optimizer.step()
    loss.eval()
    targets = targets_of(judge)
    late = targets.sources_N >= 3
    targets = Targets(
        targets.users_N[late],
        targets.sources_N[late],
        targets.rows_N[late],
        targets.elapsed_N[late],
        ratings_N=None if targets.ratings_N is None else targets.ratings_N[late],
    )
    with torch.no_grad():
        error = loss(judge, targets, seeded()).item() / len(targets.rows_N)
    # Of the variance, which is 2: of items alone and of users alone half would be left.
    assert error < 0.25


def _as_histories(batch: HistoryBatch) -> Histories:
    assert batch.ratings_BL is not None
    users, length = batch.rows_BL[:, 1:].shape
    found = histories(*([(0, 0)] * length for _ in range(users)))
    rows = batch.rows_BL[:, 1:].reshape(-1).numpy().astype(np.int32)
    values = {"rating": batch.ratings_BL[:, 1:].reshape(-1).numpy()}
    return Histories(found.user_ids, found.offsets, rows, found.days, values)
