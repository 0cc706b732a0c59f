import math
import random
from collections.abc import Mapping
from typing import Any

import pytest

from crossrec.config import Config
from crossrec.configfile import load_config
from crossrec.errors import ConfigError
from crossrec.tune.space import apply_parameters, draw_trials, draw_value


def make_config(space: Mapping[str, Any], trials: int = 4, **sections: Any) -> Config:
    tune = {"space": space, "trials": trials}
    return Config.model_validate({"storage": {"root": "/nowhere"}, "tune": tune, **sections})


RATES = {"train.learning_rate": {"loguniform": [1e-4, 1e-2]}}


@pytest.mark.parametrize(
    ("said", "low", "high"),
    [
        ({"uniform": (0.2, 0.3)}, 0.2, 0.3),
        ({"loguniform": (1e-5, 1e-1)}, 1e-5, 1e-1),
        ({"randint": (2, 5)}, 2, 5),
        ({"quniform": (0.1, 0.5, 0.2)}, 0.1, 0.5),
    ],
)
def test_ranges_are_drawn_from_end_to_end(said: Any, low: float, high: float) -> None:
    found = [draw_value(said, random.Random(seed)) for seed in range(400)]
    span = high - low
    if "loguniform" in said:
        found, low, high = [math.log(value) for value in found], math.log(low), math.log(high)
        span = high - low
    assert low <= min(found) < low + span / 20
    assert high - span / 20 < max(found) <= high


def test_whole_numbers_and_steps_are_all_that_is_drawn() -> None:
    wholes = {draw_value({"randint": (2, 5)}, random.Random(seed)) for seed in range(100)}
    assert wholes == {2, 3, 4, 5}
    assert all(isinstance(value, int) for value in wholes)
    steps = {draw_value({"quniform": (0, 0.3, 0.1)}, random.Random(seed)) for seed in range(100)}
    assert steps == {0.0, 0.1, 0.2, 0.3}


def test_half_of_a_log_range_lies_below_its_geometric_mean() -> None:
    draws = [draw_value({"loguniform": (1e-4, 1e-2)}, random.Random(seed)) for seed in range(2000)]
    assert sum(value < 1e-3 for value in draws) / 2000 == pytest.approx(0.5, abs=0.05)


def test_trials_follow_from_the_seed() -> None:
    config = make_config(RATES)
    again = draw_trials(make_config(RATES))
    assert [trial.parameters for trial in draw_trials(config)] == [t.parameters for t in again]
    other = draw_trials(config.model_copy(update={"seed": config.seed + 1}))
    assert all(one.parameters != two.parameters for one, two in zip(again, other, strict=True))


def test_more_trials_or_keys_leave_what_was_drawn() -> None:
    few, many = draw_trials(make_config(RATES)), draw_trials(make_config(RATES, 9))
    assert [trial.parameters for trial in few] == [trial.parameters for trial in many[:4]]
    wider = draw_trials(make_config({"model.layers": [1, 2, 3], **RATES}))
    (key,) = RATES
    assert [trial.parameters[key] for trial in few] == [trial.parameters[key] for trial in wider]


def test_trial_trains_what_it_drew_and_all_else_as_given() -> None:
    config = make_config({**RATES, "model.leave_out": [["text"], ["ids"]]}, train={"epochs": 3})
    for trial in draw_trials(config):
        assert trial.config.train.learning_rate == trial.parameters["train.learning_rate"]
        assert list(trial.config.model.leave_out) == trial.parameters["model.leave_out"]
        before = {"model": config.model.model_dump(), "train": config.train.model_dump()}
        assert (
            apply_parameters(
                trial.config,
                {"train.learning_rate": config.train.learning_rate, "model.leave_out": ()},
            ).model_dump(include={"model", "train"})
            == before
        )
        assert trial.config.train.epochs == 3
        assert not trial.config.tune.space


def test_numbers_that_yaml_reads_as_text_are_numbers() -> None:
    config = make_config({"train.learning_rate": ["1e-4", "1e-3"]}, 2)
    found = {trial.parameters["train.learning_rate"] for trial in draw_trials(config)}
    assert found == {0.0001, 0.001}


def test_all_choices_are_drawn_before_one_comes_twice() -> None:
    config = make_config({"model.layers": [1, 2, 3, 4], "train.accumulate": [1, 2]}, 8)
    found = [tuple(trial.parameters.values()) for trial in draw_trials(config)]
    assert sorted(found) == [(layers, parts) for layers in (1, 2, 3, 4) for parts in (1, 2)]


def test_more_trials_than_the_space_has_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"tune\.trials: expected at most 2 trials.* found 3"):
        draw_trials(make_config({"train.accumulate": [1, 2]}, 3))


def test_search_without_a_space_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"tune\.space: expected keys to search, found none"):
        draw_trials(make_config({}))


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"train.learning_rat": [1]}, r"learning_rat; did you mean learning_rate\?"),
        ({"score.top_k": [1, 2]}, "keys of model and train"),
        ({"train": {"learning_rate": [1]}}, "keys of model and train"),
        ({"train.stop_on": ["hr@10", "mrr@10"]}, "compared by it"),
        ({"train.valid_days": [7, 14]}, "compared by it"),
        ({"train.continue_from": ["a", "b"]}, "from one model"),
        ({"model.width": 64}, "model.width to be a list of choices, or one of uniform"),
        ({"model.width": []}, "at least 1"),
        ({"model.dropout": {"unifrom": [0, 1]}}, "model.dropout to be a list of choices"),
        ({"model.dropout": {"uniform": [0.5]}}, "model.dropout: uniform to have 2 numbers, not 1"),
        ({"model.dropout": {"uniform": [0.5, 0.1]}}, "from the lower number to the higher"),
        ({"model.dropout": {"uniform": ["a", "b"]}}, "valid number"),
        ({"model.dropout": {"loguniform": [0, 0.1]}}, "begin above 0"),
        ({"model.layers": {"randint": [1, 2.5]}}, "whole numbers"),
        ({"model.dropout": {"quniform": [0, 0.1, 0.2]}}, "a step above 0 and within the range"),
    ],
)
def test_space_that_says_nothing_sensible_is_told(space: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(space)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"model.heads": [3, 5]}, "heads=[35].*width must be a multiple of heads"),
        ({"train.objective": ["softmax", "sofmax"]}, "objective=sofmax.*Input should be 'softmax'"),
        ({"train.learning_rate": {"uniform": [1.5, 2]}}, "less than or equal to 1"),
        ({"train.layer_decay": {"uniform": [0.5, 0.9]}}, "the backbone learns nothing"),
    ],
)
def test_values_that_the_config_does_not_take_are_refused(space: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)tune\.space: expected only values.*{message}"):
        draw_trials(make_config(space, 2))


def test_rankings_and_ratings_are_not_compared() -> None:
    with pytest.raises(ConfigError, match="one measure for all trials"):
        draw_trials(make_config({"train.objective": ["softmax", "mse"]}, 2))


def test_trials_without_epochs_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.epochs: expected epochs to compare"):
        draw_trials(make_config(RATES, train={"epochs": 0}))


def test_secret_is_not_told_with_a_wrong_value() -> None:
    storage = {"root": "/nowhere", "options": {"secret": "hunter2hunter2"}}
    with pytest.raises(ConfigError) as caught:
        draw_trials(make_config({"model.heads": [3, 5]}, 2, storage=storage))
    assert "hunter2" not in str(caught.value)


def test_example_is_a_search_that_is_whole_but_for_its_root() -> None:
    config = load_config("jobs/configs/tune.yaml", ["storage.root=/nowhere"])
    assert len(draw_trials(config)) == config.tune.trials
