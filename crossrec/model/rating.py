"""How a rating is predicted, and the loss that teaches it.

    r(user, item) = mean_d + deviation_d (g(h) + b . v + s q . v)

The biases and the match of biased matrix factorisation (Koren, Bell and Volinsky 2009, eq. 4), with
query q and item vector v as for all objectives and h, what the history says; it is read with the
ratings that the user gave. Generosity g is the user's bias, b . v the item's, which text alone
gives for an item that nobody has rated.

    loss = RatingLoss(recommender, text_of, items, Objective("mse"))

Tensor suffixes: B users, L positions, N targets, D domains, U unique items of a batch, W width.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from crossrec.data.replay import Histories
from crossrec.model.inference import domain_of_rows
from crossrec.model.objectives import NextEventLoss, Targets
from crossrec.model.recommender import HistoryBatch, RatingHead
from crossrec.schema import RATING


@torch.no_grad()
def fit_scale(head: RatingHead, histories: Histories, bounds: Sequence[tuple[int, int]]) -> None:
    """Take mean and deviation of each domain's ratings; where it has none, those of all.

    Args:
        head: changed in place.
        histories: of a sample of users, no event later than what may be learned from.
        bounds: (start, stop) of each domain's catalogue rows.
    """
    ratings = histories.values[RATING]
    is_given = ~np.isnan(ratings)
    ratings = ratings[is_given].astype(np.float64)
    domains = domain_of_rows(histories.rows[is_given], bounds)
    for index in range(len(bounds)):
        own = ratings[domains == index]
        own = own if len(own) else ratings
        if len(own):
            head.mean_D[index] = float(own.mean())
            # Where all are the same, errors count as they are.
            head.deviation_D[index] = float(own.std()) or 1.0


def predict_ratings(
    questions: tuple[Tensor, Tensor, Tensor],
    users: np.ndarray,
    rows: np.ndarray,
    bounds: Sequence[tuple[int, int]],
) -> np.ndarray:
    """Return the ratings (N,) that users would give, as scoring predicts them.

    Args:
        questions: queries (B, D, W) and offsets (B, D) of users, vectors (I, W) of all items.
        users: (N,) int64 places among the B users.
        rows: (N,) catalogue rows.
        bounds: (start, stop) of each domain's catalogue rows.
    """
    queries_BDW, offsets_BD, vectors_IW = (part.cpu() for part in questions)
    domains = domain_of_rows(rows, bounds)
    products_N = (queries_BDW[users, domains] * vectors_IW[rows]).sum(1)
    found: np.ndarray = (products_N + offsets_BD[users, domains]).numpy()
    return found


class RatingLoss(NextEventLoss):
    """The recommender under the squared error of ratings, each over its domain's variance."""

    def forward(
        self,
        batch: HistoryBatch,
        targets: Targets,
        generator: torch.Generator,
        chosen_M: Tensor | None = None,
    ) -> Tensor:
        """Return the loss summed over the targets, each with its own and its domain's weight.

        Args:
            batch: histories, with ratings.
            targets: with ratings.
            generator: not used: nothing is drawn.
            chosen_M: not used.
        """
        head, ratings_N = self.recommender.rating, targets.ratings_N
        if head is None or ratings_N is None:
            raise ValueError("a rating loss needs a recommender, and targets, with ratings")
        known_BL = batch.rows_BL >= 0
        rows_U = torch.unique(torch.cat([batch.rows_BL[known_BL], targets.rows_N]))
        vectors_UW, hidden_BLW, profile_BLW = self._read(batch, rows_U)
        domains_N = self._domains(targets.rows_N)
        places = targets.users_N, targets.sources_N
        queries_NW, offsets_N = self.recommender.questions(
            hidden_BLW[places], profile_BLW[places], domains_N, targets.elapsed_N
        )
        with torch.autocast(queries_NW.device.type, enabled=False):
            vectors_NW = vectors_UW[torch.searchsorted(rows_U, targets.rows_N)].float()
            predicted_N = (queries_NW.float() * vectors_NW).sum(1) + offsets_N.float()
            errors_N = (predicted_N - ratings_N) / head.deviation_D[domains_N]
            weights_N = errors_N.new_tensor(self.domain_weights)[domains_N]
            if targets.weights_N is not None:
                weights_N = weights_N * targets.weights_N
            return (weights_N * errors_N.square()).sum() + hidden_BLW.sum() * 0.0

    def _domains(self, rows_N: Tensor) -> Tensor:
        starts = torch.tensor([start for start, _ in self.items.bounds], device=rows_N.device)
        return torch.searchsorted(starts, rows_N, right=True) - 1
