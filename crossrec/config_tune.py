"""The config's section of the search for settings: what is drawn from, how often, who is stopped.

    tune:
      space:
        train.learning_rate: {loguniform: [1e-4, 1e-2]}
        model.width: [64, 128]

`crossrec.config` is where others import from.
"""

import difflib
from typing import Annotated, Any

from pydantic import Field, field_validator

from crossrec.config_training import ModelConfig, Section, TrainConfig

Choice = bool | int | float | str | tuple[str, ...] | None
Choices = Annotated[tuple[Choice, ...], Field(min_length=1)]

RANGES = {"uniform": 2, "loguniform": 2, "randint": 2, "quniform": 3}
"""Kinds of range, and how many numbers each takes."""

SECTIONS: dict[str, type[Section]] = {"model": ModelConfig, "train": TrainConfig}
"""Whose keys can be searched."""

COMPARED_BY = {"train.stop_on", "train.valid_days", "train.max_valid_pairs"}
"""They say what is measured: trials that differ in one could not be compared."""

ONE_A_RUN = {"train.continue_from"}
"""A run goes on from one model."""


class TuneConfig(Section):
    """The search for settings (`jobs/tune.py`); the other jobs read nothing of it."""

    space: dict[str, Choices | dict[str, tuple[float, ...]]] = Field(default_factory=dict)
    """What is drawn from, by dotted key of model or train: a list of choices; or a range {uniform:
    [low, high]}, {loguniform: [low, high]}, {randint: [low, high]} of whole numbers with both ends,
    or {quniform: [low, high, step]}."""
    trials: Annotated[int, Field(ge=1, le=10_000)] = 16
    """Trainings, each with settings of its own."""
    max_concurrent: Annotated[int, Field(ge=1, le=1_000)] = 1
    """Trials that train at once; each has `train.num_workers` workers."""
    grace_epochs: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Epochs before which ASHA stops no trial."""
    reduction: Annotated[int, Field(ge=2, le=100)] = 3
    """ASHA lets about one in so many go on, after `grace_epochs`, so many times that, and so on."""

    @field_validator("space", mode="before")
    @classmethod
    def _has_known_keys(cls, space: Any) -> Any:
        if not isinstance(space, dict):
            raise ValueError("a mapping of dotted keys, as train.learning_rate: [1e-3, 3e-3]")
        for key, said in space.items():
            _check_key(str(key))
            is_range = isinstance(said, dict) and len(said) == 1 and set(said) <= set(RANGES)
            if not is_range and not isinstance(said, list | tuple):
                raise ValueError(f"{key} to be a list of choices, or one of {', '.join(RANGES)}")
        return space

    @field_validator("space")
    @classmethod
    def _has_ranges_that_can_be_drawn_from(cls, space: dict[str, Any]) -> dict[str, Any]:
        for key, said in space.items():
            if isinstance(said, dict):
                ((kind, numbers),) = said.items()
                _check_range(f"{key}: {kind}", kind, numbers)
        return space


def _check_key(key: str) -> None:
    section, dot, name = key.partition(".")
    if section not in SECTIONS or not dot:
        raise ValueError(f"keys of model and train, as train.learning_rate, not {key}")
    known = SECTIONS[section].model_fields
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        mend = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"known keys, not {key}{mend}")
    if key in COMPARED_BY:
        raise ValueError(f"no {key}: trials are compared by it")
    if key in ONE_A_RUN:
        raise ValueError(f"no {key}: a run goes on from one model")


def _check_range(where: str, kind: str, numbers: tuple[float, ...]) -> None:
    if len(numbers) != RANGES[kind]:
        raise ValueError(f"{where} to have {RANGES[kind]} numbers, not {len(numbers)}")
    low, high, *step = numbers
    if not low < high:
        raise ValueError(f"{where} to go from the lower number to the higher")
    if kind == "loguniform" and low <= 0:
        raise ValueError(f"{where} to begin above 0")
    if kind == "randint" and any(number != int(number) for number in numbers):
        raise ValueError(f"{where} to have whole numbers")
    if step and not 0 < step[0] <= high - low:
        raise ValueError(f"{where} to have a step above 0 and within the range")
