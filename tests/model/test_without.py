from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from crossrec.config import ModelConfig
from crossrec.data.itemstate import EventStates
from crossrec.data.replay import Histories, select_events
from crossrec.model.inference import ItemState, user_state
from crossrec.model.recommender import Recommender
from crossrec.model.without import UsersWithout, users_without
from tests.small import activity_of, histories, random_users

BOUNDS, DAY, ITEMS = [(0, 20), (20, 40)], 61, 40
# Short ones, and one longer than anything that weighs its events.
USERS = histories(
    *[user for user in random_users(3, 30, ITEMS, DAY - 1, most=70) if user],
    [(row % ITEMS, row // 8) for row in range(230)],
)
STATES = EventStates.of(activity_of(USERS, ITEMS))


def make_model(max_history: int, layers: int = 2) -> tuple[Recommender, ItemState]:
    with torch.random.fork_rng():
        torch.manual_seed(17)
        settings = ModelConfig(width=16, layers=layers, heads=2, max_history=max_history)
        recommender = Recommender(settings, 12, ITEMS, len(BOUNDS)).eval()
        with torch.no_grad():
            for parameter in recommender.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        vectors = (functional.normalize(torch.randn(ITEMS, 16), dim=-1) for _ in range(2))
        return recommender, ItemState(*vectors)


def without_age(age: int) -> tuple[Histories, torch.Tensor]:
    """USERS without their event of an age, and who has one."""
    who = np.flatnonzero(USERS.lengths > age)
    keep = np.ones(len(USERS.rows), bool)
    keep[USERS.offsets[1:][who] - 1 - age] = False
    return select_events(USERS, keep), torch.from_numpy(who)


def differences(versions: UsersWithout, age: int, max_history: int) -> dict[str, float]:
    """The largest difference of a version from what the shorter history says itself."""
    recommender, items = make_model(max_history)
    shorter, who = without_age(age)
    truth = user_state(recommender, items, shorter, STATES, BOUNDS, DAY)
    pairs = {
        "profile": (versions.profile_BVW[:, 1 + age], truth.profile_BW),
        "domain": (versions.domain_profile_BDVW[:, :, 1 + age], truth.domain_profile_BDW),
        "queries": (versions.queries_BDVW[:, :, 1 + age], truth.queries_BDW),
    }
    return {name: float((a[who] - b[who]).abs().max()) for name, (a, b) in pairs.items()}


@pytest.mark.parametrize("age", [0, 1, 2, 19, 20, 45, 60, 199])
def test_all_but_the_sequence_is_what_the_shorter_history_says(age: int) -> None:
    recommender, items = make_model(30)
    versions = users_without(recommender, items, USERS, STATES, BOUNDS, DAY)
    found = differences(versions, age, 30)
    assert max(value for name, value in found.items() if name != "queries") < 1e-5


@pytest.mark.parametrize("age", [0, 1])
def test_sequence_is_exact_without_one_of_the_two_newest_events(age: int) -> None:
    # No history is cut off: where one is, an older event comes in, which the encoder did not read.
    recommender, items = make_model(300)
    versions = users_without(recommender, items, USERS, STATES, BOUNDS, DAY)
    assert differences(versions, age, 300)["queries"] < 1e-5
    assert differences(versions, 5, 300)["queries"] > 1e-3


def test_first_version_is_the_user_as_they_are() -> None:
    recommender, items = make_model(30)
    versions = users_without(recommender, items, USERS, STATES, BOUNDS, DAY)
    whole = user_state(recommender, items, USERS, STATES, BOUNDS, DAY)
    torch.testing.assert_close(versions.profile_BVW[:, 0], whole.profile_BW)
    torch.testing.assert_close(versions.queries_BDVW[:, :, 0], whole.queries_BDW)
    torch.testing.assert_close(versions.asked(1), whole.asked(1))


def test_without_the_sequence_nothing_of_it_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    recommender, items = make_model(30)
    monkeypatch.setattr(recommender, "embed", None)
    versions = users_without(recommender, items, USERS, STATES, BOUNDS, DAY, with_sequence=False)
    assert not versions.queries_BDVW.any()


def test_versions_of_a_model_of_ratings_leave_the_event_out_of_the_users_level() -> None:
    rated = replace(
        USERS,
        values={"rating": np.random.default_rng(4).normal(3, 1, len(USERS.rows)).astype("f4")},
    )
    settings = ModelConfig(width=16, layers=1, heads=2, max_history=300)
    recommender = Recommender(settings, 12, ITEMS, len(BOUNDS), with_ratings=True).eval()
    head = recommender.rating
    assert head is not None
    head.shrinkage.fill_(2.0)
    zeros = torch.zeros(ITEMS, 16)
    items = ItemState(zeros, zeros, torch.linspace(-1, 1, ITEMS))
    versions = users_without(recommender, items, rated, STATES, BOUNDS, DAY)
    whole = user_state(recommender, items, rated, STATES, BOUNDS, DAY)
    torch.testing.assert_close(versions.offsets_BDV[:, :, 0], whole.offsets_BD)
    keep = np.ones(len(rated.rows), bool)
    who = np.flatnonzero(rated.lengths > 3)
    keep[rated.offsets[1:][who] - 1 - 3] = False
    shorter = user_state(recommender, items, select_events(rated, keep), STATES, BOUNDS, DAY)
    torch.testing.assert_close(versions.offsets_BDV[who, :, 4], shorter.offsets_BD[who])
    assert not torch.allclose(shorter.offsets_BD[who], whole.offsets_BD[who])
