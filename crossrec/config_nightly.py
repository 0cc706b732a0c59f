"""The config's sections of the night as a whole: when it trains, and what its model must show.

    nightly:
      finetune_every: 7
    gate:
      max_ndcg_loss: 0.05

`crossrec.config` is where others import from.
"""

from typing import Annotated

from pydantic import Field

from crossrec.config_training import Section, Share


class NightlyConfig(Section):
    """The night as a whole (`jobs/nightly.py`)."""

    finetune_every: Annotated[int, Field(ge=1, le=3650)] = 1
    """Days of data after which a model is trained anew; 7: once a week. The nights between score
    with the published model, which then sees the newest events, items and trends all the same."""


class GateConfig(Section):
    """When a night's model may replace the published one; else lists are made with the latter."""

    max_ndcg_loss: Share = 0.1
    """Share of the published model's NDCG@10 that may be lost on the same hold-out."""
    min_volume: Share = 0.5
    """Events of the newest week, at least, as a share of those of an ordinary one: the median of
    the four before."""
    max_rejected: Share = 0.05
    """Share of the events that may have been rejected, by what `data.max_reject_share` counts."""
    max_missing_days: Annotated[int, Field(ge=0, le=7)] = 0
    """Days without any event in the newest week; on data that has some every day."""
    max_drift: Share = 0.25
    """How far the domains' shares of the events may move from the four weeks before to the newest:
    half the sum of the changes."""
    max_growth: Annotated[float, Field(ge=0)] = 1.0
    """Share by which users and items may grow from the published night to this one; 1: to twice as
    many."""
    max_shrinkage: Share = 0.2
    """Share by which they may shrink."""
