import numpy as np
import pytest
import torch
from torch import Tensor

from crossrec.config import ModelConfig
from crossrec.data.itemstate import EventStates
from crossrec.data.replay import Histories, pad, select_users
from crossrec.data.userstate import domain_counts, user_features
from crossrec.model import inference
from crossrec.model.inference import (
    LONG_DECAY,
    LONG_EVENTS,
    ItemState,
    UserState,
    domain_of_rows,
    item_state,
    to_batch,
    user_queries,
    user_state,
)
from crossrec.model.overlap import PastEvents
from crossrec.model.recommender import (
    HistoryBatch,
    Recommender,
    recent_mean,
)
from tests.small import activity_of, histories

BOUNDS = ((0, 4), (4, 9))
DAY = 20


USERS = histories([(1, 3), (7, 3), (2, 19)], [], [(8, 1)], [(row % 9, row) for row in range(12)])


@pytest.fixture
def recommender() -> Recommender:
    torch.manual_seed(17)
    settings = ModelConfig(width=16, layers=2, heads=2, max_history=5)
    made = Recommender(settings, text_width=12, items=9, domains=2)
    with torch.no_grad():
        made.projection.normal_()
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made.eval()


@pytest.fixture
def items(recommender: Recommender) -> ItemState:
    counts = torch.arange(9.0)
    return item_state(recommender, torch.randn(9, 12), torch.arange(9), counts)


def test_domain_of_rows_knows_bounds_empty_domains_and_no_row() -> None:
    rows = np.array([[0, 2, 3], [4, -1, 3]])
    found = domain_of_rows(rows, [(0, 3), (3, 3), (3, 5)])
    assert found.tolist() == [[0, 0, 2], [2, 3, 2]]


def test_to_batch_marks_positions_without_event() -> None:
    batch = to_batch(pad(histories([(1, 3), (7, 5)], [(8, 1)]), 5), BOUNDS)
    assert batch.rows_BL.tolist() == [[-1, 1, 7], [-1, 8, -1]]
    assert batch.domains_BL.tolist() == [[2, 0, 1], [2, 1, 2]]
    assert batch.days_BL.tolist() == [[3, 3, 5], [1, 1, 1]]


@pytest.mark.parametrize("items_a_block", [1, 4])
def test_item_state_does_not_depend_on_its_blocks(
    recommender: Recommender, monkeypatch: pytest.MonkeyPatch, items_a_block: int
) -> None:
    inputs = torch.randn(9, 12), torch.arange(9), torch.arange(9.0)
    whole = item_state(recommender, *inputs)
    monkeypatch.setattr(inference, "ITEMS_A_BLOCK", items_a_block)
    blocks = item_state(recommender, *inputs)
    torch.testing.assert_close(blocks.texts_IW, whole.texts_IW)
    torch.testing.assert_close(blocks.vectors_IW, whole.vectors_IW)


def test_user_queries_of_a_batch_equal_each_user_alone(
    recommender: Recommender, items: ItemState
) -> None:
    asked = user_queries(recommender, items, USERS, BOUNDS, DAY)
    profiles, queries = asked.profile_BW, asked.queries_BDW
    for user in range(4):
        alone = user_queries(
            recommender, items, select_users(USERS, np.arange(4) == user), BOUNDS, DAY
        )
        torch.testing.assert_close(profiles[user], alone.profile_BW[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(queries[user], alone.queries_BDW[0], rtol=0, atol=1e-5)


def test_user_queries_ask_every_domain_in_one_pass(
    recommender: Recommender, items: ItemState, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[Tensor] = []
    embed = recommender.embed

    def counted(vectors: Tensor, batch: HistoryBatch) -> Tensor:
        passes.append(vectors)
        return embed(vectors, batch)

    monkeypatch.setattr(recommender, "embed", counted)
    queries = user_queries(recommender, items, USERS, BOUNDS, DAY).queries_BDW
    assert (len(passes), queries.shape) == (1, (4, 2, 16))
    assert (queries[:, 0] - queries[:, 1]).abs().amax(-1).min() > 1e-3


def test_user_queries_are_those_that_training_asks(
    recommender: Recommender, items: ItemState
) -> None:
    queries = user_queries(recommender, items, USERS, BOUNDS, DAY).queries_BDW
    # As model.objectives: the position after the newest event, here of user 0 on day 19.
    batch = to_batch(pad(USERS, 5), BOUNDS)
    history = items.vectors_IW[batch.rows_BL.clamp(min=0)]
    hidden = recommender.encode(history, batch)
    profile = recent_mean(history, batch.rows_BL >= 0)
    expected = recommender.queries(
        hidden[:1, 3], profile[:1, 3], torch.tensor([1]), torch.tensor([DAY - 19])
    )
    torch.testing.assert_close(queries[:1, 1], expected)


def test_user_queries_of_no_history_are_finite_and_of_no_profile(
    recommender: Recommender, items: ItemState
) -> None:
    asked = user_queries(recommender, items, USERS, BOUNDS, DAY)
    profiles, queries = asked.profile_BW, asked.queries_BDW
    assert profiles[1].abs().sum() == 0
    torch.testing.assert_close(queries[1].norm(dim=-1), torch.ones(2))


def test_user_queries_of_no_history_do_not_know_the_day(
    recommender: Recommender, items: ItemState
) -> None:
    one, other = (
        user_queries(recommender, items, USERS, BOUNDS, day).queries_BDW for day in (DAY, DAY + 100)
    )
    torch.testing.assert_close(one[1], other[1])
    assert (one[0] - other[0]).abs().max() > 1e-3


def test_user_queries_read_the_newest_events(recommender: Recommender, items: ItemState) -> None:
    long = [(row % 9, row) for row in range(12)]
    found = [
        user_queries(recommender, items, histories(events), BOUNDS, DAY).queries_BDW
        for events in (long, long[-5:], long[-4:])
    ]
    torch.testing.assert_close(found[0], found[1])
    assert (found[0] - found[2]).abs().max() > 1e-4


def test_user_queries_of_nobody_are_empty(recommender: Recommender, items: ItemState) -> None:
    asked = user_queries(recommender, items, histories(), BOUNDS, DAY)
    profiles, queries = asked.profile_BW, asked.queries_BDW
    assert (profiles.shape, queries.shape) == ((0, 16), (0, 2, 16))


def state_of(recommender: Recommender, items: ItemState, users: Histories) -> UserState:
    known = EventStates.of(activity_of(USERS, 9))
    return user_state(recommender, items, users, known, BOUNDS, DAY)


def listed(found: PastEvents) -> list[tuple[int, int]]:
    return list(zip(found.owners_E.tolist(), found.rows_E.tolist(), strict=True))


def test_user_state_holds_what_its_parts_give(recommender: Recommender, items: ItemState) -> None:
    found = state_of(recommender, items, USERS)
    asked = user_queries(recommender, items, USERS, BOUNDS, DAY)
    profiles, queries = asked.profile_BW, asked.queries_BDW
    assert torch.equal(found.profile_BW, profiles)
    assert torch.equal(found.queries_BDW, queries)
    known = EventStates.of(activity_of(USERS, 9))
    assert np.array_equal(found.features_BF.numpy(), user_features(USERS, known, DAY))
    assert np.array_equal(found.counts_BD.numpy(), domain_counts(USERS, BOUNDS))


def test_domain_profile_is_the_mean_of_the_domains_texts(
    recommender: Recommender, items: ItemState
) -> None:
    # User 0 has had rows 1, 7 and 2: the newest counts most.
    found = state_of(recommender, items, USERS).domain_profile_BDW
    texts = items.texts_IW
    expected = [LONG_DECAY**2 * texts[1] + texts[2], texts[7]]
    for index, mean in enumerate(expected):
        torch.testing.assert_close(found[0, index], mean / mean.norm())
    # Users 1 and 2 have had nothing there.
    assert found[1].abs().sum() == found[2, 0].abs().sum() == 0


def test_user_state_weighs_events_by_their_age(recommender: Recommender, items: ItemState) -> None:
    found = state_of(recommender, items, USERS)
    assert listed(found.lasting)[:4] == [(0, 1), (0, 7), (0, 2), (2, 8)]
    expected = torch.tensor([LONG_DECAY**2, LONG_DECAY, 1, 1])
    torch.testing.assert_close(found.lasting.weights_E[:4], expected)


def test_user_state_keeps_the_newest_events(recommender: Recommender, items: ItemState) -> None:
    rows = [number * number % 9 for number in range(LONG_EVENTS + 5)]
    users = histories([(row, 1) for row in rows])
    known = EventStates.of(activity_of(users, 9))
    found = user_state(recommender, items, users, known, BOUNDS, DAY)
    assert found.lasting.rows_E.tolist() == rows[-LONG_EVENTS:]


def test_user_state_asks_a_domain_with_its_events(
    recommender: Recommender, items: ItemState
) -> None:
    found = state_of(recommender, items, USERS)
    features, one_hot = found.asked(1)
    assert torch.equal(features[:, :-1], found.features_BF)
    # User 0 has had one item of the second domain.
    torch.testing.assert_close(features[0, -1], torch.tensor(2.0).log())
    assert one_hot.tolist() == [[0, 1]] * 4


def test_user_state_of_a_batch_equals_each_user_alone(
    recommender: Recommender, items: ItemState
) -> None:
    whole = state_of(recommender, items, USERS)
    for user in range(4):
        alone = state_of(recommender, items, select_users(USERS, np.arange(4) == user))
        for name in ("profile_BW", "domain_profile_BDW", "queries_BDW", "features_BF", "counts_BD"):
            own, expected = getattr(alone, name)[0], getattr(whole, name)[user]
            torch.testing.assert_close(own, expected, rtol=0, atol=1e-5)
        is_own = whole.lasting.owners_E == user
        assert torch.equal(alone.lasting.rows_E, whole.lasting.rows_E[is_own])


def test_user_state_of_nobody_is_empty(recommender: Recommender, items: ItemState) -> None:
    found = state_of(recommender, items, histories())
    assert found.domain_profile_BDW.shape == (0, 2, 16)
    assert len(found.lasting.rows_E) == len(found.features_BF) == 0
