"""The paired bootstrap against cases whose answer is known."""

from math import sqrt

import numpy as np
import pytest

from crossrec.evaluate.bootstrap import compare


def width(found: dict[str, float]) -> float:
    return found["high"] - found["low"]


def test_a_system_is_not_better_than_itself() -> None:
    same = np.random.default_rng(1).random(50)
    assert compare(same, {"twin": same.copy()}, np.arange(50)) == {
        "twin": {"pairs": 50, "difference": 0.0, "low": 0.0, "high": 0.0, "better": 0.0}
    }


def test_a_system_that_is_better_for_everybody_is_better_in_every_resample() -> None:
    noise = np.random.default_rng(1).random(60)
    found = compare(noise + 0.5, {"other": noise}, np.arange(60))["other"]
    assert found == {"pairs": 60, "difference": 0.5, "low": 0.5, "high": 0.5, "better": 1.0}


def test_each_of_several_systems_is_compared_as_if_alone() -> None:
    draw = np.random.default_rng(1)
    model, users = draw.random(40), np.repeat(np.arange(20), 2)
    others = {"low": model - draw.random(40), "high": model + draw.random(40)}
    together = compare(model, others, users)
    assert together == {
        name: compare(model, {name: other}, users)[name] for name, other in others.items()
    }
    assert (together["low"]["better"], together["high"]["better"]) == (1.0, 0.0)


def test_the_difference_is_the_mean_over_pairs() -> None:
    model, other = np.array([1.0, 0.5, 0.0]), np.array([0.0, 0.0, 0.0])
    found = compare(model, {"other": other}, np.array([0, 0, 1]))["other"]
    assert found["difference"] == (1.0 + 0.5 + 0.0) / 3
    # A resample has the first user twice (mean 0.75), once, or not at all (0).
    assert (found["low"], found["high"]) == (0.0, 0.75)
    assert found["better"] == pytest.approx(3 / 4, abs=0.03)


def test_the_interval_is_as_wide_as_that_of_a_normal_mean() -> None:
    users = 400
    differences = np.random.default_rng(1).standard_normal(users)
    found = compare(differences, {"other": np.zeros(users)}, np.arange(users))["other"]
    assert width(found) == pytest.approx(2 * 1.96 * differences.std() / sqrt(users), rel=0.1)


def test_pairs_of_one_user_do_not_count_as_independent() -> None:
    differences = np.repeat(np.random.default_rng(1).standard_normal(200), 4)
    nothing = {"other": np.zeros(800)}
    clustered = compare(differences, nothing, np.repeat(np.arange(200), 4))["other"]
    independent = compare(differences, nothing, np.arange(800))["other"]
    assert clustered["difference"] == independent["difference"]
    # Four times the pairs, but no more users: the interval of four times fewer.
    assert width(clustered) == pytest.approx(sqrt(4) * width(independent), rel=0.1)


def test_the_interval_covers_the_true_difference_as_often_as_it_says() -> None:
    draw = np.random.default_rng(1)
    runs, covered = 100, 0
    for seed in range(runs):
        model = draw.standard_normal(60) + 0.3
        found = compare(model, {"other": np.zeros(60)}, np.arange(60), seed)["other"]
        covered += found["low"] <= 0.3 <= found["high"]
    # 95 expected; four deviations of a count of 100 at 0.95 are 9.
    assert covered >= 86


def test_a_seed_gives_the_same_interval_whatever_the_blocks() -> None:
    draw = np.random.default_rng(1)
    model, others, users = draw.random(30), {"other": draw.random(30)}, np.arange(30) // 2
    found = compare(model, others, users, seed=3)
    assert found == compare(model, others, users, seed=3)
    assert found == compare(model, others, users, seed=3, draws_a_block=100)
    assert found != compare(model, others, users, seed=4)


def test_numbers_of_users_may_have_gaps() -> None:
    draw = np.random.default_rng(1)
    model, others, users = draw.random(30), {"other": draw.random(30)}, np.arange(30) // 2
    assert compare(model, others, users * 7 + 5) == compare(model, others, users)


def test_without_pairs_nothing_is_compared() -> None:
    nothing = np.zeros(0)
    assert compare(nothing, {"other": nothing}, np.zeros(0, np.int64)) == {}
