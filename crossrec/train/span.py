"""The days that choosing and judging set aside, and whether the input reaches back beyond them.

check_span(config, store, prepared, time_cuts(config, prepared))
"""

import numpy as np

from crossrec.config import Config
from crossrec.data.daily import load_activity
from crossrec.data.histories import Prepared
from crossrec.errors import ConfigError, explain
from crossrec.runlog import log
from crossrec.schema import US_PER_DAY
from crossrec.storage import Store

LEAST_SHARE = 0.01
"""Of all events, before the days set aside; with less of them nothing worth a word is learned."""


def time_cuts(config: Config, prepared: Prepared) -> tuple[int, int, int]:
    """Return the days on which the night, the hold-out and the validation slice begin.

    The night is the day after as_of: all accepted events are known. Under leave-one-out the
    hold-out is no stretch of time: all days are known.
    """
    night = prepared.as_of_us // US_PER_DAY + 1
    holdout = night
    if config.evaluate.protocol == "time":
        holdout = night - config.evaluate.holdout_days
    return night, holdout, holdout - config.train.valid_days


def check_span(
    config: Config, store: Store, prepared: Prepared, cuts: tuple[int, int, int]
) -> None:
    """Warn where next to no event is left to train on; leave-one-out sets no days aside.

    Args:
        config: of the run.
        store: of the run.
        prepared: the input.
        cuts: days on which night, hold-out and validation slice begin.

    Raises:
        ConfigError: `train.probabilities` is asked for, and nothing is left to fit them on.
    """
    night, holdout, valid = cuts
    if config.evaluate.protocol != "time":
        return
    activity = load_activity(store, prepared)
    if not len(activity.days):
        return
    first, last = int(activity.days.min()), night - 1
    spans = f"events of {night - first} days ({_date(first)} to {_date(last)})"
    days = config.evaluate.holdout_days
    if config.train.probabilities and first >= holdout:
        key = "evaluate.holdout_days"
        expected = f"events from before the last {days} days ({key}), to fit them on"
        mend = "make them shorter, give older events, or leave probabilities out"
        raise ConfigError(explain("train.probabilities", expected, spans, mend))
    total = int(activity.events.sum(dtype=np.int64))
    known = int(activity.events[activity.days < valid].sum(dtype=np.int64))
    if known >= LEAST_SHARE * total:
        return
    keys = f"train.valid_days={config.train.valid_days} and evaluate.holdout_days={days}"
    log.warning(
        "finetune: %s set aside the last %s days, but there are only %s: %s of %s events are left "
        "to train on, so the model is published about as it began, and lists go by text, "
        "neighbours and popularity; make them shorter, or give older events",
        keys,
        night - valid,
        spans,
        f"{known:,}",
        f"{total:,}",
    )


def _date(day: int) -> str:
    return str(np.datetime64(day, "D"))
