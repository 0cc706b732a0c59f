"""Continued learning: last night's model goes on from where it ended, on what is new since.

Two models go on: the selected one, which has seen nothing of its night's validation slice and
hold-out, is trained up to tonight's validation slice and judged; the refitted one is trained on
everything and published. Both learn from events that they have not seen, and again from all events
of a share of the users (replay); and each step draws their weights back a little.

    start = find_start(config, store)                   # None: train from the start
    kept = select_learners(lengths, newest_days, new_from, replay, rng)
    anchor = Anchor(optimizer, weight)
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from crossrec.config import Config
from crossrec.current import published_model
from crossrec.errors import ConfigError, explain
from crossrec.runlog import log
from crossrec.storage import Store

Array = np.ndarray

SINCE = "since"
"""Column of a table of histories: the day from which on events are targets, where not all are."""

FIRST_DAY = int(np.iinfo(np.int32).min)
"""Before all events: since then, all of a history's are targets."""

PUBLISHED = "published"
"""The model of the current publication, whichever that is."""


@dataclass(frozen=True)
class Start:
    """A model folder to go on from, which has seen the events before day `known_before`."""

    folder: str
    known_before: int


@dataclass(frozen=True)
class Earlier:
    """What an earlier night left: its two models, and the days (start, stop) of its hold-out.

    Without those days nothing is told of what is forgotten.
    """

    selected: Start
    refitted: Start
    holdout: tuple[int, int] | None = None


def find_start(config: Config, store: Store) -> Earlier | None:
    """Return what `train.continue_from` names; None where it is null, or nothing is published yet.

    What is found is pinned for the run: a rerun goes on from the same model, whatever has been
    published meanwhile.

    Raises:
        ConfigError: there is no such model, or what it was trained beside is gone.
    """
    if config.train.continue_from is None:
        return None
    pin = f"runs/{config.run_id}/start.json"
    if store.exists(pin):
        model = store.read_json(pin)["model"]
    else:
        model = _named_model(config.train.continue_from, store)
        store.write_json(pin, {"model": model})
    if model is None:
        return None
    facts = _read(store, f"{model}/config.json")["facts"]
    finetuned = _read(store, f"runs/{facts['run_id']}/finetune.json")
    days: dict[str, int] = finetuned["days"]
    return Earlier(
        Start(finetuned["selected"], days["valid"]),
        Start(model, days["night"]),
        (days["holdout"], days["night"]),
    )


def _named_model(name: str, store: Store) -> str | None:
    if name != PUBLISHED:
        return f"models/{name}"
    model = published_model(store)
    if model is None:
        log.info("finetune: nothing is published yet, so training begins at the start")
    return model


def _read(store: Store, path: str) -> dict[str, Any]:
    if not store.exists(path):
        mend = "name another model in train.continue_from, or set it to null for a full training"
        raise ConfigError(
            explain("train.continue_from", f"a model with {store.uri(path)}", "no such file", mend)
        )
    found: dict[str, Any] = store.read_json(path)
    return found


def select_learners(
    newest: Array, new_from: int, replay: float, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Return whose histories an epoch reads, and from which day on their events are targets.

    Args:
        newest: (U,) day of each user's newest event.
        new_from: events of this day and later are new.
        replay: share of the users who learn from all of their events again.
        rng: draws them anew each epoch.

    Returns:
        keep (U,) bool, and since (U,) int64: `new_from`, or FIRST_DAY for the replayed.
    """
    is_replayed = rng.random(len(newest)) < replay
    since = np.where(is_replayed, FIRST_DAY, new_from)
    return is_replayed | (newest >= new_from), since


class Anchor:
    """Draws weights back to where they started, each step a little.

    After a step of rate r a weight w that started at w0 becomes w - r * weight * (w - w0): L2-SP
    (Li, Grandvalet and Davoine 2018, eq. 2), decoupled from the gradient as AdamW's decay is.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, weight: float) -> None:
        self.weight = weight
        self.starts = [
            [part.detach().clone() for part in group["params"]] for group in optimizer.param_groups
        ]

    @torch.no_grad()
    def pull(self, optimizer: torch.optim.Optimizer) -> None:
        """Draw the weights back after a step of the optimizer."""
        for group, starts in zip(optimizer.param_groups, self.starts, strict=True):
            share = min(group["lr"] * self.weight, 1.0)
            for weights, start in zip(group["params"], starts, strict=True):
                weights.lerp_(start, share)
