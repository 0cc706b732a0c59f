"""What a trained recommender knows, carried over to one for another catalogue and other domains.

In: a model as it was stored, and a fresh recommender of the same settings. Out: the fresh one with
the weights of the old; items and domains go by their names, and those that the old one did not know
start as in any training.
"""

from collections.abc import Sequence

import pyarrow as pa
import torch

from crossrec.errors import ConfigError, explain
from crossrec.model.checkpoint import Model
from crossrec.model.recommender import Recommender

SHAPING = ("width", "layers", "heads", "max_history", "leave_out")
"""Settings of the model that its weights depend on; the others may differ."""

BY_ITEM = frozenset({"id_embedding.weight"})
BY_DOMAIN = frozenset({"event_domain.weight", "query_domain.weight", "rating.deviation_D"})

TONIGHTS = frozenset({"rating.mean_D", "rating.level_I", "rating.shrinkage"})
"""Computed from all ratings that are known, not learned: those of the fresh recommender stay."""


@torch.no_grad()
def carry_over(
    recommender: Recommender, items: pa.Table, domains: Sequence[str], model: Model
) -> None:
    """Give a fresh recommender the weights of a stored model.

    Args:
        recommender: changed in place.
        items: its items as `Model.items`.
        domains: its domains.
        model: to start from.

    Raises:
        ConfigError: the model's weights are of another shape.
    """
    for name in SHAPING:
        now, then = getattr(recommender.settings, name), getattr(model.settings, name)
        if now != then:
            mend = f"set model.{name}={then}, or train from the start"
            raise ConfigError(explain(f"model.{name}", f"{then}, as trained", f"{now}", mend))
    kinds = [
        "a model of ratings" if head else "one of events"
        for head in (model.recommender.rating, recommender.rating)
    ]
    if kinds[0] != kinds[1]:
        mend = "choose the train.objective that it was trained with, or train from the start"
        raise ConfigError(explain("train.continue_from", kinds[1], kinds[0], mend))
    old, new = model.recommender.state_dict(), recommender.state_dict()
    if old["projection"].shape != new["projection"].shape:
        found, expected = (f"texts of width {part['projection'].shape[1]}" for part in (new, old))
        mend = "use the backbone that the model was trained with, or train from the start"
        raise ConfigError(explain("model.backbone", expected, found, mend))
    ids, _ = model.id_rows(items)
    places = {name: place for place, name in enumerate(model.domains)}
    known = [(row, places[name]) for row, name in enumerate(domains) if name in places]
    for name, weights in new.items():
        if name in BY_ITEM:
            is_known = torch.from_numpy(ids >= 0)
            weights[: len(ids)][is_known] = old[name][torch.from_numpy(ids)[is_known]]
        elif name in BY_DOMAIN:
            for row, place in known:
                weights[row] = old[name][place]
        elif name not in TONIGHTS:
            weights.copy_(old[name])
    # The row of "no event" comes after those of all domains.
    new["event_domain.weight"][-1] = old["event_domain.weight"][-1]
