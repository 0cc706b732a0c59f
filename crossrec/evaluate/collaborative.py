"""Two collaborative models of the library `implicit`, item-kNN and ALS: histories in, lists out.

    learned = learn(fit_item_knn, histories, domains, threads=2, seed=17)
    lists = serve(learned, known, k=50)["shop"]

Both know nothing but who has had what: no text, no time, no repeats. Users who are served need not
be among those that were learned from. Equal scores: the lower catalogue row first.

Tensor suffixes: U users learned from, B users served, C columns of a matrix, which are the items
that somebody has had, D those of one domain, F factors, K list length.
"""

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from implicit.cpu.als import AlternatingLeastSquares
from implicit.nearest_neighbours import CosineRecommender
from threadpoolctl import threadpool_limits

from crossrec.data.cooccurrence import EVENTS_A_USER
from crossrec.data.histories import DomainRange
from crossrec.data.replay import Histories, select_events, slice_users
from crossrec.data.sparse import keep_highest
from crossrec.data.userstate import event_ages
from crossrec.score.lists import Lists
from crossrec.score.scorer import USERS_A_BATCH
from crossrec.score.topk import top_k

Array = np.ndarray
Bounds = Sequence[tuple[int, int]]

Recommend = Callable[[sp.csr_matrix, sp.csr_matrix, tuple[int, int], int], Lists]
"""recommend(recent_BC, seen_BC, part, k): the k best of columns part[0]..part[1]-1 by what users
had recently, without what they have ever had; rows from part[0] on. A user without anything recent
gets none."""

Fit = Callable[[sp.csr_matrix, Bounds, int, int], Recommend]
"""fit(had_UC, bounds, threads, seed): learns from who has had what, 1.0 or nothing; bounds are the
(start, stop) of each domain's columns."""

NEIGHBOURS = 100

FACTORS = 128
ITERATIONS = 10
"""More change the third decimal of NDCG@10 at most (groceries of README, three cuts: 5, 10, 15)."""


def fit_item_knn(had_UC: sp.csr_matrix, bounds: Bounds, threads: int, seed: int) -> Recommend:
    """Learn each item's NEIGHBOURS nearest by the cosine of their users; a score is their sum.

    Source: Sarwar et al., Item-based collaborative filtering recommendation algorithms, 2001.
    """
    model = CosineRecommender(K=NEIGHBOURS, num_threads=threads)
    with warnings.catch_warnings():
        # Of a matrix that implicit itself has turned round.
        warnings.filterwarnings("ignore", "Method expects CSR input")
        model.fit(had_UC, show_progress=False)
    similar = {(start, stop): model.similarity[:, start:stop].tocsr() for start, stop in bounds}

    def recommend(
        recent_BC: sp.csr_matrix, seen_BC: sp.csr_matrix, part: tuple[int, int], k: int
    ) -> Lists:
        scores_BD = recent_BC @ similar[part]
        return _best(scores_BD - scores_BD.multiply(seen_BC[:, slice(*part)]), k)

    return recommend


def _best(scores_BD: sp.csr_matrix, k: int) -> Lists:
    """Return the k highest scores above 0 of each row."""
    scores_BD.sort_indices()
    found = keep_highest(scores_BD.tocoo(), k)
    rows_BK = np.full((scores_BD.shape[0], k), -1, np.int64)
    scores_BK = np.full(rows_BK.shape, -np.inf, np.float32)
    rows_BK[found.rows, found.places] = found.columns
    scores_BK[found.rows, found.places] = found.values
    return Lists(rows_BK, scores_BK)


def fit_als(had_UC: sp.csr_matrix, bounds: Bounds, threads: int, seed: int) -> Recommend:
    """Learn FACTORS numbers of each item by alternating least squares; a score is a dot product.

    Users who are served get factors of their own by the same least squares.
    Source: Hu, Koren and Volinsky, Collaborative filtering for implicit feedback datasets, 2008.
    """
    with _one_blas_thread():
        model = AlternatingLeastSquares(
            factors=FACTORS, iterations=ITERATIONS, num_threads=threads, random_state=seed
        )
        model.fit(had_UC, show_progress=False)
    items_CF = torch.from_numpy(model.item_factors)

    def recommend(
        recent_BC: sp.csr_matrix, seen_BC: sp.csr_matrix, part: tuple[int, int], k: int
    ) -> Lists:
        with _one_blas_thread():
            users_BF = model.recalculate_user(np.arange(recent_BC.shape[0]), recent_BC)
        products = [(torch.from_numpy(users_BF), items_CF[slice(*part)])]
        seen_S2 = np.stack(seen_BC[:, slice(*part)].nonzero(), 1).astype(np.int64)
        rows_BK, scores_BK = top_k(products, [], torch.from_numpy(seen_S2), k)
        rows_BK[torch.from_numpy(recent_BC.getnnz(1) == 0)] = -1
        return Lists(rows_BK.numpy(), scores_BK.numpy())

    return recommend


def _one_blas_thread() -> AbstractContextManager[None]:
    """Keep BLAS from starting threads inside implicit's own, which makes them many times slower."""
    limits: AbstractContextManager[None] = threadpool_limits(1, user_api="blas")
    return limits


@dataclass(frozen=True)
class Learned:
    """A model of some domains.

    columns: (C,) int64, the catalogue row of each of the model's items, ascending. bounds: of each
    domain within them.
    """

    domains: Sequence[DomainRange]
    columns: Array
    bounds: Bounds
    recommend: Recommend


def learn(
    fit: Fit, histories: Histories, domains: Sequence[DomainRange], threads: int, seed: int
) -> Learned:
    """Learn from the users' newest EVENTS_A_USER events in some domains, and from nothing else.

    Args:
        fit: `fit_item_knn` or `fit_als`.
        histories: what was known of a sample of users.
        domains: one or more, neighbours in the catalogue.
        threads: that the model may use.
        seed: of what the model begins with.
    """
    recent = _recent(_inside(histories, domains))
    columns = np.unique(recent.rows).astype(np.int64)
    ends = np.searchsorted(columns, [(domain.start, domain.stop) for domain in domains])
    bounds = [(int(start), int(stop)) for start, stop in ends]
    if not len(columns):
        return Learned(domains, columns, bounds, _recommend_nothing)
    had_UC = _to_matrix(recent, columns)
    had_UC = had_UC[had_UC.getnnz(1) > 0]
    return Learned(domains, columns, bounds, fit(had_UC, bounds, threads, seed))


def _recommend_nothing(
    recent_BC: sp.csr_matrix, seen_BC: sp.csr_matrix, part: tuple[int, int], k: int
) -> Lists:
    return _empty(recent_BC.shape[0], 0)


def serve(learned: Learned, known: Histories, k: int) -> dict[str, Lists]:
    """Return the users' lists by domain; who has had none of the model's items gets empty ones.

    Args:
        learned: the model.
        known: what was known of the users. All of it is left out of their lists.
        k: items a list at most.
    """
    found: dict[str, list[Lists]] = {domain.name: [] for domain in learned.domains}
    for start in range(0, len(known.lengths), USERS_A_BATCH):
        block = _inside(slice_users(known, start, start + USERS_A_BATCH), learned.domains)
        recent_BC = _to_matrix(_recent(block), learned.columns)
        seen_BC = _to_matrix(block, learned.columns)
        for domain, bounds in zip(learned.domains, learned.bounds, strict=True):
            best = learned.recommend(recent_BC, seen_BC, bounds, k)
            rows_BK = learned.columns[bounds[0] + best.rows] - domain.start
            found[domain.name].append(Lists(np.where(best.rows < 0, -1, rows_BK), best.scores))
    return {name: _join(parts, k) for name, parts in found.items()}


def _empty(users: int, k: int) -> Lists:
    return Lists(np.zeros((users, k), np.int64), np.zeros((users, k), np.float32))


def _join(parts: Sequence[Lists], k: int) -> Lists:
    if not parts:
        return _empty(0, k)
    rows, scores = ([getattr(part, name) for part in parts] for name in ("rows", "scores"))
    return Lists(np.concatenate(rows), np.concatenate(scores))


def _inside(histories: Histories, domains: Sequence[DomainRange]) -> Histories:
    """Return the events in domains that are neighbours in the catalogue."""
    rows = histories.rows
    return select_events(histories, (rows >= domains[0].start) & (rows < domains[-1].stop))


def _recent(histories: Histories) -> Histories:
    """Return each user's newest events: pairs of items grow with the square of their number."""
    return select_events(histories, event_ages(histories) < EVENTS_A_USER)


def _to_matrix(histories: Histories, columns: Array) -> sp.csr_matrix:
    """Return 1.0 where a user has had an item of `columns`, (U, C) float32."""
    places = np.searchsorted(columns, histories.rows)
    is_column = np.isin(histories.rows, columns)
    keys = (histories.owners[is_column], places[is_column])
    shape = (len(histories.lengths), len(columns))
    had = sp.csr_matrix((np.ones(len(keys[0]), np.float32), keys), shape=shape)
    had.data[:] = 1.0
    return had
