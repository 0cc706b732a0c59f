"""How a rating is predicted, and the loss that teaches it.

    r(user, item) = mean_d + level_u + level_i + deviation_d (g(h) + b . v + s q . v)

The biases and the match of biased matrix factorisation (Koren, Bell and Volinsky 2009, eq. 4). Both
levels are computed from the ratings that are known (`model.biases`): the item's when training
begins and anew each night, the user's from the history. What they leave over is learned, with query
q and item vector v as for all objectives and h, what the history says; it is read with the ratings
that the user gave. Generosity g adds to the user's level and b . v to the item's: text alone gives
it for an item that nobody has rated.

    loss = RatingLoss(recommender, text_of, items, Objective("mse"))

Tensor suffixes: B users, L positions, N targets, D domains, U unique items of a batch, W width.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from crossrec.model.biases import Biases
from crossrec.model.inference import ItemState, domain_of_rows
from crossrec.model.objectives import NextEventLoss, Targets
from crossrec.model.recommender import HistoryBatch, RatingHead


@torch.no_grad()
def start_from_biases(head: RatingHead, biases: Biases, ids_I: np.ndarray) -> None:
    """Let the head predict as the biases do until it has learned more.

    Args:
        head: changed in place.
        biases: of ratings that may be learned from.
        ids_I: each item's row in the id embedding, -1 for none: then it has no level.
    """
    head.mean_D.copy_(torch.from_numpy(biases.means_D))
    head.deviation_D.copy_(torch.from_numpy(biases.deviations_D))
    has_id = ids_I >= 0
    head.level_I[torch.from_numpy(ids_I[has_id])] = torch.from_numpy(biases.items_I[has_id]).float()
    head.shrinkage.fill_(biases.shrinkage)


def levels_of_items(head: RatingHead, biases: Biases, bounds: Sequence[tuple[int, int]]) -> Tensor:
    """Return what each item adds by what is known today, (I,) float32, beside the head's means."""
    levels_I = biases.items_I.copy()
    shifts_D = biases.means_D - head.mean_D.double().cpu().numpy()
    for (start, stop), shift in zip(bounds, shifts_D, strict=True):
        levels_I[start:stop] += shift
    return torch.from_numpy(levels_I).float()


def predict_ratings(
    questions: tuple[Tensor, Tensor, ItemState],
    users: np.ndarray,
    rows: np.ndarray,
    bounds: Sequence[tuple[int, int]],
) -> np.ndarray:
    """Return the ratings (N,) that users would give, as scoring predicts them.

    Args:
        questions: queries (B, D, W) and offsets (B, D) of users, state of all items.
        users: (N,) int64 places among the B users.
        rows: (N,) catalogue rows.
        bounds: (start, stop) of each domain's catalogue rows.
    """
    queries_BDW, offsets_BD = (part.cpu() for part in questions[:2])
    items, domains = questions[2], domain_of_rows(rows, bounds)
    products_N = (queries_BDW[users, domains] * items.vectors_IW[rows].cpu()).sum(1)
    levels_N = 0.0 if items.levels_I is None else items.levels_I[rows].cpu()
    found: np.ndarray = (products_N + offsets_BD[users, domains] + levels_N).numpy()
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
            predicted_N = predicted_N + self._levels(batch, head)[places]
            predicted_N = predicted_N + head.item_levels(self.items.ids_I[targets.rows_N])
            errors_N = (predicted_N - ratings_N) / head.deviation_D[domains_N]
            weights_N = errors_N.new_tensor(self.domain_weights)[domains_N]
            if targets.weights_N is not None:
                weights_N = weights_N * targets.weights_N
            return (weights_N * errors_N.square()).sum() + hidden_BLW.sum() * 0.0

    def _levels(self, batch: HistoryBatch, head: RatingHead) -> Tensor:
        """Return the user's level after each event, (B, L)."""
        if batch.ratings_BL is None:
            return torch.zeros(batch.rows_BL.shape, device=batch.rows_BL.device)
        ids_BL = torch.where(batch.rows_BL < 0, -1, self.items.ids_I[batch.rows_BL.clamp(min=0)])
        levels_BL = head.item_levels(ids_BL)
        return head.user_levels(batch.ratings_BL, batch.domains_BL, levels_BL)

    def _domains(self, rows_N: Tensor) -> Tensor:
        starts = torch.tensor([start for start, _ in self.items.bounds], device=rows_N.device)
        return torch.searchsorted(starts, rows_N, right=True) - 1
