"""The learned sequence part: item vectors, a history encoder, a query for every domain.

One pass over a history gives the query of every domain (SASRec, Kang and McAuley 2018, with text
items as in UniSRec, Hou et al. 2022). How much the cosine of query and item counts beside text,
neighbours and time is for `model.fusion` to learn.

Where items have images, a text's vector is followed by that of the image, and "text" means both.

Tensor suffixes: B users, L positions (position 0 is "no event yet"), D domains, I items, T text
width, W model width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from crossrec.config import ModelConfig

RECENT_EVENTS = 20
RECENT_DECAY = 0.9
"""The untrained profile of a user: mean of the newest 20 texts, weighted 0.9 ** age in events."""

SHORTEST = 0.1
"""Queries below this norm stay shorter than 1. At step 0 the query of someone without events is 0;
with the usual 1e-12 its gradient is some 1e11, and Adam holds the whole query back for the rest of
a night."""

ID_SPEED = 8.0
"""Adam moves a weight by the learning rate a step, and what an id adds has to grow from 0 to the
length of a text's vector: at the common rate that takes some 250 steps in which nothing seems to be
learned, and a night that stops early ends in them. On the demo NDCG@10 of the sequence on the
validation slice was .104 after 5 epochs of 32 steps without this and .197 after 9 with it."""

GAP_DAYS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Upper bounds of the buckets in which days between events are told apart."""


@dataclass(frozen=True)
class HistoryBatch:
    """A batch of histories, oldest first, padded at the end.

    rows_BL: catalogue row of each event, int64, -1 where there is none; position 0 is always -1 (no
    event yet).
    domains_BL: index of the event's domain, int64, the number of domains where there is none.
    days_BL: day of the event, int32.
    ratings_BL: what the user gave, float32, NaN for none; None where the input has no ratings.
    """

    rows_BL: Tensor
    domains_BL: Tensor
    days_BL: Tensor
    ratings_BL: Tensor | None = None

    def to(self, device: torch.device) -> "HistoryBatch":
        """Return the batch on another device."""
        return HistoryBatch(
            self.rows_BL.to(device),
            self.domains_BL.to(device),
            self.days_BL.to(device),
            None if self.ratings_BL is None else self.ratings_BL.to(device),
        )


class Recommender(nn.Module):
    """All that is learned beside the backbone; `rating` where it predicts what users will give."""

    def __init__(
        self,
        settings: ModelConfig,
        text_width: int,
        items: int,
        domains: int,
        with_ratings: bool = False,
    ) -> None:
        super().__init__()
        width = settings.width
        self.settings = settings
        # Fixed: what the untrained profile sees of a text. `start_from` fits it and starts the
        # adaptor from it.
        self.register_buffer("projection", torch.zeros(width, text_width))
        self.projection: Tensor
        self.adaptor = nn.Linear(text_width, width, bias=False)
        # What stands in for the text of an item that has none; a zero vector has no direction to
        # learn from.
        self.no_text = nn.Parameter(torch.randn(width) * width**-0.5)
        # Zero: an item starts as what its text says, and a rarely seen one stays near it.
        # One row at least: looking up "no id" reads a row too.
        self.id_embedding = nn.Embedding(max(items, 1), width)
        nn.init.zeros_(self.id_embedding.weight)
        self.id_gate = nn.Linear(1, 1)
        self.start = nn.Parameter(torch.randn(width) * width**-0.5)
        self.position = nn.Parameter(torch.randn(settings.max_history + 1, width) * 0.02)
        self.event_domain = nn.Embedding(domains + 1, width)
        self.gap = nn.Embedding(len(GAP_DAYS) + 1, width)
        self.encoder = make_encoder(settings, settings.layers)
        self.query_domain = nn.Embedding(domains, width)
        answer = nn.Linear(2 * width, width)
        self.query = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), answer)
        # Zero: before training the query is the profile of recent items.
        nn.init.zeros_(answer.weight)
        nn.init.zeros_(answer.bias)
        self.log_scale = nn.Parameter(torch.tensor(2.5))
        for embedding in (self.event_domain, self.gap, self.query_domain):
            nn.init.normal_(embedding.weight, std=0.02)
        self.rating = RatingHead(width, domains, items) if with_ratings else None

    @torch.no_grad()
    def start_from(self, text_IT: Tensor) -> None:
        """Let the model start as the untrained mix: project texts on their main directions.

        Directions are those of the uncentred texts (right singular vectors), so that cosines
        survive; on real titles 128 of MiniLM's 384 keep the untrained mix's NDCG@10.
        """
        _, vectors_TT = torch.linalg.eigh((text_IT.T @ text_IT).double())
        kept = min(self.projection.shape)
        self.projection.zero_()
        self.projection[:kept] = vectors_TT.flip(1)[:, :kept].T.to(self.projection)
        self.adaptor.weight.copy_(self.projection)

    def text_vectors(self, text_IT: Tensor) -> Tensor:
        """Return the untrained unit vectors (I, W) of items; zero where an item has no text."""
        if "text" in self.settings.leave_out:
            return text_IT.new_zeros(len(text_IT), self.settings.width)
        return functional.normalize(text_IT @ self.projection.T, dim=-1)

    def item_vectors(self, text_IT: Tensor, ids_I: Tensor, log_counts_I: Tensor) -> Tensor:
        """Return unit vectors (I, W) of items.

        Args:
            text_IT: text vectors.
            ids_I: row in the id embedding, -1 for an item that has none (it is new).
            log_counts_I: log(1 + events the item had in training); decides how far the id is
                trusted.
        """
        gate_I1 = torch.sigmoid(self.id_gate(log_counts_I.unsqueeze(-1)))
        known_I1 = (ids_I >= 0).unsqueeze(-1) & ("ids" not in self.settings.leave_out)
        if self.training and self.settings.id_dropout:
            known_I1 = known_I1 & (torch.rand_like(gate_I1) >= self.settings.id_dropout)
        has_text_I1 = (text_IT != 0).any(-1, keepdim=True)
        has_text_I1 = has_text_I1 & ("text" not in self.settings.leave_out)
        base_IW = torch.where(has_text_I1, self.adaptor(text_IT), self.no_text)
        ids_IW = ID_SPEED * self.id_embedding(ids_I.clamp(min=0))
        return functional.normalize(base_IW + torch.where(known_I1, gate_I1 * ids_IW, 0.0), dim=-1)

    def encode(self, vectors_BLW: Tensor, batch: HistoryBatch) -> Tensor:
        """Return hidden states (B, L, W): position p has read the first p events."""
        hidden_BLW = self.embed(vectors_BLW, batch)
        encoded: Tensor = self.encoder(hidden_BLW, mask=causal_mask(hidden_BLW), is_causal=True)
        return encoded

    def embed(self, vectors_BLW: Tensor, batch: HistoryBatch) -> Tensor:
        """Return what the encoder reads (B, L, W): item, place, domain, gap, rating of events."""
        days_BL = batch.days_BL
        gaps_BL = torch.cat([torch.zeros_like(days_BL[:, :1]), days_BL[:, 1:] - days_BL[:, :-1]], 1)
        items_BLW = torch.where((batch.rows_BL >= 0).unsqueeze(-1), vectors_BLW, self.start)
        hidden_BLW: Tensor = (
            items_BLW
            + self.position[: vectors_BLW.shape[1]]
            + self.event_domain(batch.domains_BL)
            + self.gap(gap_bucket(gaps_BL))
        )
        if self.rating is not None and batch.ratings_BL is not None:
            hidden_BLW = hidden_BLW + self.rating.read(batch.ratings_BL, batch.domains_BL)
        return hidden_BLW

    def queries(
        self, hidden_BW: Tensor, profile_BW: Tensor, domains_B: Tensor, elapsed_B: Tensor
    ) -> Tensor:
        """Return unit queries (B, W), one a row.

        Args:
            hidden_BW: hidden state after the newest event that is known.
            profile_BW: the user's recent items in model space, the query's starting point.
            domains_B: target domain.
            elapsed_B: days from the newest known event to the day that is predicted.
        """
        asked_BW = hidden_BW + self.query_domain(domains_B) + self.gap(gap_bucket(elapsed_B))
        return functional.normalize(profile_BW + self.query(asked_BW), dim=-1, eps=SHORTEST)

    def questions(
        self, hidden_BW: Tensor, profile_BW: Tensor, domains_B: Tensor, elapsed_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return what answers: products of (B, W) with item vectors, plus (B,).

        That is the cosine with the query, or where the model knows ratings the one it predicts.
        Arguments as in `queries`.
        """
        queries_BW = self.queries(hidden_BW, profile_BW, domains_B, elapsed_B)
        if self.rating is None:
            return queries_BW, queries_BW.new_zeros(len(queries_BW))
        asked_BW = hidden_BW + self.query_domain(domains_B) + self.gap(gap_bucket(elapsed_B))
        return self.rating.ask(asked_BW, queries_BW, domains_B)


class RatingHead(nn.Module):
    """Reads the ratings of a history and predicts the next one; see `model.rating`.

    mean_D, deviation_D: of the ratings in each domain. level_I: what an item adds, by its row in
    the id embedding. shrinkage: ratings after which half of a user's own level is believed.
    """

    def __init__(self, width: int, domains: int, items: int = 0) -> None:
        super().__init__()
        self.register_buffer("mean_D", torch.zeros(domains))
        self.register_buffer("deviation_D", torch.ones(domains))
        self.register_buffer("level_I", torch.zeros(max(items, 1)))
        self.register_buffer("shrinkage", torch.tensor(torch.inf))
        self.mean_D: Tensor
        self.deviation_D: Tensor
        self.level_I: Tensor
        self.shrinkage: Tensor
        self.given = nn.Linear(2, width, bias=False)
        self.generosity = nn.Linear(width, 1)
        self.item_bias = nn.Parameter(torch.zeros(width))
        self.match = nn.Parameter(torch.zeros(()))
        # Before training every rating is the domain's mean and both levels.
        for weights in (self.given.weight, *self.generosity.parameters()):
            nn.init.zeros_(weights)

    def read(self, ratings_BL: Tensor, domains_BL: Tensor) -> Tensor:
        """Return what ratings add to the events they were given for, (B, L, W)."""
        known_BL = ~torch.isnan(ratings_BL)
        domains_BL = domains_BL.clamp(max=len(self.mean_D) - 1)
        scaled_BL = (ratings_BL - self.mean_D[domains_BL]) / self.deviation_D[domains_BL]
        scaled_BL = torch.where(known_BL, scaled_BL, 0.0)
        read_BLW: Tensor = self.given(torch.stack([scaled_BL, known_BL.float()], -1))
        return read_BLW

    def item_levels(self, ids_N: Tensor) -> Tensor:
        """Return what items add, of any shape; 0 where the row in the id embedding is -1."""
        return torch.where(ids_N >= 0, self.level_I[ids_N.clamp(min=0)], 0.0)

    def user_levels(self, ratings_BL: Tensor, domains_BL: Tensor, levels_BL: Tensor) -> Tensor:
        """Return what a user adds after each event, (B, L); arguments as in `left_over`."""
        left_BL, known_BL = self.left_over(ratings_BL, domains_BL, levels_BL)
        return left_BL.cumsum(1) / (known_BL.cumsum(1) + self.shrinkage)

    def left_over(
        self, ratings_BL: Tensor, domains_BL: Tensor, levels_BL: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return what items leave over of ratings, 0 where there is none, and where there are any.

        levels_BL: what the events' items add.
        """
        known_BL = ~torch.isnan(ratings_BL)
        means_BL = self.mean_D[domains_BL.clamp(max=len(self.mean_D) - 1)]
        return torch.where(known_BL, ratings_BL - means_BL - levels_BL, 0.0), known_BL

    def ask(self, asked_BW: Tensor, queries_BW: Tensor, domains_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return vectors (B, W) and offsets (B,): product with an item's vector, plus offset."""
        deviation_B = self.deviation_D[domains_B]
        vectors_BW = deviation_B.unsqueeze(1) * (self.item_bias + self.match * queries_BW)
        generosity_B = self.generosity(asked_BW).squeeze(1)
        return vectors_BW, self.mean_D[domains_B] + deviation_B * generosity_B


def make_encoder(settings: ModelConfig, layers: int) -> nn.TransformerEncoder:
    """Return the encoder of histories with so many layers, at step 0."""
    layer = nn.TransformerEncoderLayer(
        settings.width,
        settings.heads,
        4 * settings.width,
        settings.dropout,
        activation="gelu",
        batch_first=True,
        norm_first=True,
    )
    norm = nn.LayerNorm(settings.width)
    return nn.TransformerEncoder(layer, layers, norm, enable_nested_tensor=False)


def causal_mask(hidden_BLW: Tensor) -> Tensor:
    """Return which positions must not be read, (L, L) bool: those that come later."""
    length = hidden_BLW.shape[1]
    return torch.ones(length, length, dtype=torch.bool, device=hidden_BLW.device).triu(1)


def gap_bucket(days: Tensor) -> Tensor:
    """Return the bucket of each number of days, int64 in 0..len(GAP_DAYS)."""
    return torch.bucketize(days, torch.tensor(GAP_DAYS, device=days.device, dtype=days.dtype))


def recent_mean(vectors_BLW: Tensor, known_BL: Tensor) -> Tensor:
    """Return (B, L, W): the unit mean of the newest events up to each position.

    Args:
        vectors_BLW: vectors of events, anything where `known_BL` is false.
        known_BL: whether there is an event at the position.
    """
    length = vectors_BLW.shape[1]
    age_LL = torch.arange(length).unsqueeze(1) - torch.arange(length)
    weight_LL = torch.where(
        (age_LL >= 0) & (age_LL < RECENT_EVENTS), RECENT_DECAY ** age_LL.float(), 0.0
    )
    return functional.normalize(
        weight_LL.to(vectors_BLW) @ (vectors_BLW * known_BL.unsqueeze(-1)), dim=-1
    )
