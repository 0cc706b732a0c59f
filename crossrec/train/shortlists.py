"""Shortlists of a past moment: what the fusion learns from.

Of the users who did something new in the days after it, the candidates that any simple weighing of
the parts would put on top.

    lists = gather(GatherJob(...), moment, histories, activity, events)      # one Ray task a moment

Tensor suffixes: B users of a block, C items of the domain, S shortlist, P parts, G item features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crossrec.data.itemstate import STATE_NAMES, EventStates
from crossrec.data.replay import Activity, Histories
from crossrec.model.fusion import PARTS, RELATED, Shortlists, join
from crossrec.train.moments import Block, GatherJob, Moment, look_at

SHORTLIST = 320
"""Candidates of a list; the probes rarely find more."""

PROBE_DEPTH = 40
POPULAR_DEPTH = 50
PROBES: tuple[Mapping[str, float], ...] = (
    {"text": 1.0},
    {"text": 1.0, "log_popularity_3d": 0.1},
    {"text": 1.0, "log_popularity_24d": 0.1},
    {"text_domain": 1.0, "log_popularity_6d": 0.1},
    {"ever": 0.15},
    {"ever": 0.15, "log_popularity_6d": 0.1},
    {"ever": 0.15, "log_popularity_24d": 0.1},
    {"ever": 0.1, "text": 1.0, "log_popularity_6d": 0.1},
    {"ever": 0.1, "text": 1.0, "log_popularity_96d": 0.1},
    {"recent": 0.15, "log_popularity_24d": 0.05},
    {"lately": 0.15, "text": 0.05},
    {"lately": 0.15, "log_popularity_6d": 0.1},
)
SEQUENCE_PROBES: tuple[Mapping[str, float], ...] = (
    {"sequence": 1.0},
    {"sequence": 1.0, "log_popularity_6d": 0.05},
    {"sequence": 1.0, "log_popularity_48d": 0.05},
)
RELATED_PROBES: tuple[Mapping[str, float], ...] = (
    {"related": 1.0, "text": 0.1},
    {"related": 0.3, "text": 1.0},
    {"is_new": 100.0, "text": 1.0},
    {"is_new": 100.0, "text": 1.0, "related": 0.3},
)
"""Where there are relations: what they say, and the new items among which they say most."""

POPULAR = ("log_popularity_1.5d", "log_popularity_6d", "log_popularity_24d", "log_popularity_96d")
"""Whose PROBE_DEPTH best unseen items of a user are on the list, and whose POPULAR_DEPTH best items
of all."""


def gather(
    job: GatherJob, moment: Moment, histories: Histories, activity: Activity, events: EventStates
) -> Shortlists | None:
    """Return the shortlists of a moment in which something was chosen; None if there are none.

    Arguments as for `moments.look_at`.
    """
    blocks = look_at(job, moment, histories, activity, events)
    found = [_describe(_shorten(block), block) for block in blocks]
    lists = join(found) if found else None
    if lists is None or not lists.is_next_BS.any():
        return None
    return lists.take(torch.nonzero(lists.is_next_BS.any(1)).squeeze(1))


@dataclass(frozen=True)
class _Shortened:
    """Parts (B, S) by name, item features (B, S, G), what is next and what is real (B, S)."""

    parts: Mapping[str, Tensor]
    items_BSG: Tensor
    is_next_BS: Tensor
    is_real_BS: Tensor


@torch.inference_mode()
def _shorten(block: Block) -> _Shortened:
    """Keep the candidates that any probe puts on top."""
    parts, states_CG = block.parts, block.states_CG
    shape = parts["text"].shape
    states = dict(zip(STATE_NAMES, states_CG.unbind(1), strict=True))
    is_next_BC = torch.zeros(shape, dtype=torch.bool)
    is_next_BC[block.following] = True
    is_seen_BC = torch.zeros(shape, dtype=torch.bool)
    is_seen_BC[block.seen] = True
    depth = min(PROBE_DEPTH, shape[1])
    tops = []
    probes = PROBES + (SEQUENCE_PROBES if "sequence" in parts else ())
    for probe in probes + (RELATED_PROBES if RELATED in parts else ()):
        scores_BC = sum(
            weight * (parts[name] if name in parts else states[name])
            for name, weight in probe.items()
        )
        assert isinstance(scores_BC, Tensor)
        tops.append(scores_BC.masked_fill(is_seen_BC, -torch.inf).topk(depth, dim=1).indices)
    for name in POPULAR:
        popular_S = states[name].topk(min(POPULAR_DEPTH, shape[1])).indices
        tops.append(popular_S.expand(shape[0], -1))
    columns_BS, is_real_BS = _merge(tops)
    is_real_BS &= ~is_seen_BC.gather(1, columns_BS)
    return _Shortened(
        {name: part.gather(1, columns_BS) for name, part in parts.items()},
        states_CG[columns_BS],
        is_next_BC.gather(1, columns_BS) & is_real_BS,
        is_real_BS,
    )


def _merge(tops: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Merge lists of columns, best ranks first, each column once.

    Returns:
        Columns (B, S), and which of them are no padding.
    """
    longest = max(top.shape[1] for top in tops)
    padded = [torch.nn.functional.pad(top, (0, longest - top.shape[1]), value=-1) for top in tops]
    columns_BN = torch.stack(padded, 2).flatten(1)
    sorted_BN, order_BN = columns_BN.sort(dim=1, stable=True)
    is_first_BN = torch.ones_like(sorted_BN, dtype=torch.bool)
    is_first_BN[:, 1:] = sorted_BN[:, 1:] != sorted_BN[:, :-1]
    is_real_BN = torch.zeros_like(is_first_BN).scatter(1, order_BN, is_first_BN & (sorted_BN >= 0))
    kept_BS = is_real_BN.byte().argsort(dim=1, descending=True, stable=True)[:, :SHORTLIST]
    columns_BS, is_real_BS = columns_BN.gather(1, kept_BS), is_real_BN.gather(1, kept_BS)
    missing = SHORTLIST - columns_BS.shape[1]
    columns_BS = torch.nn.functional.pad(columns_BS, (0, missing))
    return columns_BS.clamp(min=0), torch.nn.functional.pad(is_real_BS, (0, missing))


def _describe(short: _Shortened, block: Block) -> Shortlists:
    """Put a block's candidates and users together; half precision is plenty for learning."""
    features_BF, domain_BD = block.state.asked(block.index)
    names = (*PARTS, RELATED) if RELATED in short.parts else PARTS
    parts_BSP = torch.stack([short.parts[part] for part in names], -1)
    sequence_BS = short.parts.get("sequence", torch.zeros_like(parts_BSP[..., 0]))
    return Shortlists(
        parts_BSP.half(),
        sequence_BS.half(),
        short.items_BSG.half(),
        short.is_next_BS,
        short.is_real_BS,
        features_BF,
        domain_BD,
        torch.from_numpy(block.users),
    )
