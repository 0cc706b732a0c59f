"""A search's trials, drawn up front: their settings follow from seed and space alone.

    trials = draw_trials(config)
    trials[0].name, trials[0].parameters     # ("trial-0001", {"train.learning_rate": 0.0013})

What a trial draws for a key depends on nothing but the seed, its number and that key: more trials,
or another key, change nothing of it.
"""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from crossrec.config import Config
from crossrec.errors import ConfigError, explain

DRAWS = 200
"""Draws for a trial before its space counts as used up: of 20 choices the last one is missed once
in 30,000 times."""


@dataclass(frozen=True)
class Trial:
    """A training of the search: what was drawn, by dotted key, and the config that it makes."""

    name: str
    parameters: Mapping[str, Any]
    config: Config


def draw_trials(config: Config) -> list[Trial]:
    """Return the trials of a config, all different.

    Raises:
        ConfigError: there is no space, it has no such number of trials, or a value is impossible.
    """
    tune = config.tune
    if not tune.space:
        mend = "give it as in jobs/configs/tune.yaml"
        raise ConfigError(explain("tune.space", "keys to search", "none", mend))
    trials: list[Trial] = []
    for number in range(1, tune.trials + 1):
        for attempt in range(DRAWS):
            trial = _draw_trial(config, number, attempt)
            if all(trial.parameters != other.parameters for other in trials):
                trials.append(trial)
                break
        else:
            expected = f"at most {len(trials)} trials, which differ"
            mend = "lower it or widen tune.space"
            raise ConfigError(explain("tune.trials", expected, str(tune.trials), mend))
    _check_measure(trials)
    return trials


def _draw_trial(config: Config, number: int, attempt: int) -> Trial:
    drawn = {
        # The random numbers of a text are the same on every machine.
        key: draw_value(said, random.Random(f"{config.seed}/{number}/{attempt}/{key}"))
        for key, said in sorted(config.tune.space.items())
    }
    changed = apply_parameters(config, drawn)
    # As the config reads them: 1e-3, which YAML takes for text, has become a number.
    values = {key: _value(changed, key) for key in drawn}
    return Trial(f"trial-{number:04d}", values, changed)


def draw_value(said: Any, rng: random.Random) -> Any:
    """Return a value from a list of choices or a range, as `tune.space` says.

    >>> draw_value({"randint": (3, 3.0)}, random.Random(17)), draw_value(["a"], random.Random(17))
    (3, 'a')
    """
    if not isinstance(said, Mapping):
        return rng.choice(said)
    ((kind, (low, high, *step)),) = said.items()
    if kind == "uniform":
        return rng.uniform(low, high)
    if kind == "loguniform":
        return math.exp(rng.uniform(math.log(low), math.log(high)))
    if kind == "randint":
        return rng.randint(int(low), int(high))
    return round(low + step[0] * rng.randint(0, int((high - low) / step[0] + 1e-9)), 12)


def apply_parameters(config: Config, parameters: Mapping[str, Any]) -> Config:
    """Return the config with other values, by dotted key, and without a search.

    Raises:
        ConfigError: together they are none that the config takes.
    """
    settings = config.model_dump(exclude={"tune"})
    for key, value in parameters.items():
        section, _, name = key.partition(".")
        settings[section][name] = value
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        # Not the problem's input, which may be the whole config.
        problems = [
            ".".join(map(str, problem["loc"])) + f" {problem['msg']}" for problem in error.errors()
        ]
        found = ", ".join(f"{key}={value}" for key, value in parameters.items())
        raise ConfigError(
            explain(
                "tune.space",
                "only values that the config takes",
                f"{found} ({'; '.join(problems)})",
                "change the space",
            )
        ) from None


def _value(config: Config, key: str) -> Any:
    section, _, name = key.partition(".")
    value = getattr(getattr(config, section), name)
    return list(value) if isinstance(value, tuple) else value


def _check_measure(trials: list[Trial]) -> None:
    """Fail where trials cannot be compared, or have nothing to be compared by."""
    of_ratings = {trial.config.train.objective == "mse" for trial in trials}
    if len(of_ratings) > 1:
        mend = "search objectives of rankings and mse apart"
        found = "mse, judged by its error, beside others, judged by their ranking"
        raise ConfigError(explain("tune.space", "one measure for all trials", found, mend))
    if any(trial.config.train.epochs == 0 for trial in trials):
        mend = "give train.epochs=1 or more"
        raise ConfigError(explain("train.epochs", "epochs to compare trials by", "0", mend))
