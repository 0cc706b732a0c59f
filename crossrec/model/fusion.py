"""How text, collaboration, sequence and time add up to a score; one small network for all domains.

    score(user, item, day) = sum over parts p of w_p g_p(user) part_p(user, item)
                             + g(user) b(item) + a(user) . c(item)

The parts compare a user with an item; b and c read the state of the item on that day, g and a that
of the user (how active, how new and popular their taste). All but the neighbours is a product of a
user's and an item's columns, so that exact top-K is a matrix product. At step 0 the gates are 1, a
is 0, and the score is a mix set by hand; fine-tuning learns away from it (`train.fit`).

Tensor suffixes: B users, S or C items, P parts, F features of a user, G of an item, R rank, D
domains.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from crossrec.data.itemstate import HALF_LIVES_DAYS, STATE_NAMES
from crossrec.data.userstate import FEATURE_NAMES

PARTS = ("text", "text_domain", "ever", "recent", "lately")
"""Cosine of the item's text with the user's newest events, and with those of the domain over a
longer time; log(1 + overlap / OVERLAP_FLOOR) with the neighbours of the user's events: of those
over a longer time, of the newest alone, and with what goes along with them lately."""

VARIANTS = ("model", "without_sequence", "step0")
"""What is stored with a model: all of it, all but the learned sequence, and the mix before
training."""

STEP_0 = {"text": 1.0, "ever": 0.05}
STEP_0_POPULARITY = {3.0: 0.1}
"""Weights by hand before training: popularity by its half-life in days."""

RELATED = "related"
"""Beside PARTS, where `data.relations` are given: the same of the items related to the user's
events, with a weight for items that somebody has had and one for new ones."""

WITHOUT_RELATIONS = "without_relations"
"""The model with those weights at 0: no variant of its own, and judged beside it."""

LEFT_OUT = {
    "text": ("text", "text_domain"),
    "ids": ("ever", "recent", "lately"),
    "time": (*STATE_NAMES, *(f"taste_{name}" for name in STATE_NAMES)),
}
"""What `model.leave_out` takes away, of parts, item states and user features."""

IS_NEW = STATE_NAMES.index("is_new")

OVERLAP_FLOOR = 1e-3
"""Below it an overlap counts as linear."""

HIDDEN = 16
RANK = 8
"""Width of the networks, and of what user and item exchange. 900 weights in all: they learn from
some thousand lists."""

SEQUENCE_SPEED = 10.0
"""A cosine tells items apart less than the other parts do; at their speed its weight would end far
from where it is best."""

GATE_LIMIT = 1.5
"""A user changes the sequence's weight by e to this at most, the others' by e to its double: users
unlike those of the moments that taught it got weights of thousands."""

CLIP = 3.0
"""Features beyond so many deviations are clipped: a network knows nothing of what lies there."""


@dataclass(frozen=True)
class UserSide:
    """What users bring to a score.

    weights_BP: of PARTS. sequence_B: weight of the learned query. columns_BR: for the items'
    columns, 1 + RANK.
    """

    weights_BP: Tensor
    sequence_B: Tensor
    columns_BR: Tensor


class Fusion(nn.Module):
    """Weights of all parts of a score."""

    def __init__(
        self, domains: int, leave_out: Collection[str] = (), with_relations: bool = False
    ) -> None:
        super().__init__()
        users, items = len(FEATURE_NAMES) + 1, len(STATE_NAMES)
        out = {name for kind in leave_out for name in LEFT_OUT[kind]}
        for known, names in (
            ("known_parts", PARTS),
            ("known_states", STATE_NAMES),
            ("known_users", (*FEATURE_NAMES, "log_domain_events")),
        ):
            self.register_buffer(known, torch.tensor([float(name not in out) for name in names]))
        self.known_parts: Tensor
        self.known_states: Tensor
        self.known_users: Tensor
        self.register_buffer("user_mean", torch.zeros(users))
        self.register_buffer("user_deviation", torch.ones(users))
        self.user_mean: Tensor
        self.user_deviation: Tensor
        # Slope and level by domain; a slope of 0 says that scores are no probabilities.
        self.register_buffer("link_D2", torch.zeros(domains, 2))
        self.link_D2: Tensor
        self.register_buffer(RELATED, torch.zeros(2) if with_relations else None)
        self.related: Tensor | None
        self.weights = nn.Parameter(torch.tensor([STEP_0.get(part, 0.0) for part in PARTS]))
        mix = [STEP_0_POPULARITY.get(days, 0.0) for days in HALF_LIVES_DAYS]
        mix += [0.0] * (items - len(HALF_LIVES_DAYS))
        self.register_buffer("mix_popularity", torch.tensor(mix), persistent=False)
        self.mix_popularity: Tensor
        self.popularity = nn.Parameter(torch.tensor(mix))
        self.item = nn.Linear(items, HIDDEN)
        self.item_bias = nn.Linear(HIDDEN, 1)
        self.item_columns = nn.Linear(HIDDEN, RANK)
        self.gates = _mlp(users + domains, len(PARTS) + 1)
        self.user_columns = _mlp(users + domains, RANK)
        nn.init.zeros_(self.item_bias.weight)
        nn.init.zeros_(self.item_bias.bias)
        self.sequence = nn.Parameter(torch.zeros(()))
        # Log of what the other parts count beside the sequence, by what they counted without it.
        self.sequence_beside = nn.Parameter(torch.zeros(len(PARTS)))
        self.sequence_gate = nn.Linear(users + domains, 1)
        nn.init.zeros_(self.sequence_gate.weight)
        nn.init.zeros_(self.sequence_gate.bias)

    @torch.no_grad()
    def fit_scale(self, users_BF: Tensor) -> None:
        """Take mean and deviation of the users' features from a sample."""
        self.user_mean.copy_(users_BF.mean(0))
        self.user_deviation.copy_(users_BF.std(0, correction=0).clamp(min=1e-3))

    @property
    def has_link(self) -> bool:
        """Whether scores of all domains become probabilities."""
        return bool((self.link_D2[:, 0] > 0).all())

    def published(self, scores: Tensor, domain: int) -> Tensor:
        """Return what is published for scores in a domain: probabilities where there is a link.

        That is sigmoid(slope * score + level) (Platt 1999), in the same order.
        """
        slope, level = self.link_D2[domain].double()
        return torch.sigmoid(scores.double() * slope + level).float() if slope > 0 else scores

    def related_weights(self, is_new: Tensor) -> Tensor:
        """Return what being related counts for items, (...), by whether they are new, (...) bool.

        Raises:
            ValueError: the fusion knows of no relations.
        """
        if self.related is None:
            raise ValueError("a fusion of data without relations")
        return torch.where(is_new, self.related[1], self.related[0])

    def user_side(self, users_BF: Tensor, domain: Tensor) -> UserSide:
        """Return the users' side of a score.

        Args:
            users_BF: FEATURE_NAMES, then log(1 + events in the target domain).
            domain: (B, D) float32, one-hot target domain.
        """
        scaled_BF = ((users_BF - self.user_mean) / self.user_deviation).clamp(-CLIP, CLIP)
        asked = torch.cat([scaled_BF * self.known_users, domain], 1)
        gates = (2 * GATE_LIMIT * torch.tanh(self.gates(asked) / (2 * GATE_LIMIT))).exp()
        gate_B = (GATE_LIMIT * torch.tanh(self.sequence_gate(asked).squeeze(1) / GATE_LIMIT)).exp()
        return UserSide(
            self.weights * self.known_parts * gates[:, :-1] * self.sequence_beside.exp(),
            SEQUENCE_SPEED * self.sequence * gate_B,
            torch.cat([gates[:, -1:], self.user_columns(asked)], 1),
        )

    def item_side(self, items_SG: Tensor) -> Tensor:
        """Return the items' columns (..., 1 + RANK) for features (..., G)."""
        items_SG = items_SG * self.known_states
        hidden = functional.gelu(self.item(items_SG / 3))
        bias = (items_SG @ self.popularity).unsqueeze(-1) + self.item_bias(hidden)
        return torch.cat([bias, self.item_columns(hidden)], -1)


def _mlp(inputs: int, outputs: int) -> nn.Sequential:
    """Return a small network that is 0 at first."""
    last = nn.Linear(HIDDEN, outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(inputs, HIDDEN), nn.GELU(), last)


@dataclass(frozen=True)
class Shortlists:
    """Hard candidates of users at past moments, and which of them each user chose next.

    whose_B: number of the user, the same at all moments.
    parts_BSP: of PARTS, then that of RELATED where there are relations. sequence_BS: cosine of
    query and item, zeros where there was no model.
    items_BSG: states. is_next_BS, is_real_BS: bool, what was chosen and what is no padding.
    users_BF: features. domain_BD: one-hot.
    """

    parts_BSP: Tensor
    sequence_BS: Tensor
    items_BSG: Tensor
    is_next_BS: Tensor
    is_real_BS: Tensor
    users_BF: Tensor
    domain_BD: Tensor
    whose_B: Tensor

    def __len__(self) -> int:
        return len(self.users_BF)

    def take(self, index: Tensor) -> "Shortlists":
        """Return the lists at an index."""
        return Shortlists(*(part[index] for part in vars(self).values()))


def join(parts: Sequence[Shortlists]) -> Shortlists:
    """Return all lists one below the other."""
    return Shortlists(
        *(torch.cat(same) for same in zip(*(vars(p).values() for p in parts), strict=True))
    )


def scores(fusion: Fusion, lists: Shortlists) -> Tensor:
    """Return the scores (B, S) of shortlisted items; -inf in the padding."""
    side = fusion.user_side(lists.users_BF, lists.domain_BD)
    parts_BSP = lists.parts_BSP.float()
    total_BS = (parts_BSP[..., : len(PARTS)] * side.weights_BP.unsqueeze(1)).sum(-1)
    if fusion.related is not None:
        is_new_BS = lists.items_BSG[..., IS_NEW] > 0
        total_BS = total_BS + fusion.related_weights(is_new_BS) * parts_BSP[..., len(PARTS)]
    total_BS = total_BS + side.sequence_B.unsqueeze(1) * lists.sequence_BS.float()
    columns_BSR = fusion.item_side(lists.items_BSG.float())
    total_BS = total_BS + (columns_BSR * side.columns_BR.unsqueeze(1)).sum(-1)
    return total_BS.masked_fill(~lists.is_real_BS, -torch.inf)
