"""Whom lists serve, and what they show, by any column of users or items (`evaluate.groups`).

In: the truth with its ranks, the lists, and the values of columns. Out: by group NDCG, HR and
coverage, each with its 95 % interval, and the gap between the best and the worst group.

    {"table": "users", "column": "country", "k": 10, "coverage_users": 40, "groups": [G, ...],
     "gaps": {"ndcg@10": {"best", "worst", "difference", "low", "high", "by_chance"}, ...}}
    G = {"name": "de", "lists": 812, "users": 400, "ndcg@10": {"mean", "low", "high"}, ...}

Groups of users: their lists. Groups of items: the lists of users who chose one of them, judged on
these items alone; beside it `items` of the group, and its share of what users chose (`chosen`) and
of all places (`shown`).

Groups with fewer lists than MIN_LISTS, and all but the MOST_GROUPS largest, are pooled as OTHER;
what has no value is NONE. Groups of MIN_LISTS and more count for the gap. Its ends, best and worst,
are those that were found, and of many groups some two always differ: `by_chance` is what the gap
would exceed in one case of twenty if all groups were served alike.

coverage@k: share of the catalogue (of a group of items: of its items) that `coverage_users` users
are shown in their first k on average: the same number in every group of a column, because more
users are shown more; half of those of the smallest group. Source: Hurlbert, The nonconcept of
species diversity, 1971 (rarefaction). Its interval leaves out blocks of users in turn, which if
anything makes it too wide (Efron and Stein, The jackknife estimate of variance, 1981).

Array suffixes: G groups, U users, R resamples or blocks that are left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from crossrec.data.attributes import Values
from crossrec.evaluate.bootstrap import resample
from crossrec.evaluate.metrics import measure_pairs, number_users
from crossrec.schema import USER_ID

Array = np.ndarray

MIN_LISTS = 30
"""Lists of a group that is told apart: one item found then moves HR by 0.03."""

MOST_GROUPS = 30
"""Groups of a column, the largest, that are told apart."""

OTHER, NONE = "(other)", "(none)"

BLOCKS = 20
"""Blocks of users, each left out once for the interval of coverage."""

NORMAL_95 = 1.96


@dataclass(frozen=True)
class Shown:
    """Every place among the first k of all lists: user from 0 and catalogue row, (N,) int64."""

    users: Array
    rows: Array


@dataclass(frozen=True)
class Judged:
    """What is judged: relevant items with their ranks, and all places that were shown.

    ranked: as `metrics.find_ranks` returns it, at least one row; its users, numbered in its order,
    are those of `shown`. rows: (N,) catalogue row of each of its rows. items: of the catalogue. k:
    only the first k of a list count.
    """

    ranked: pl.DataFrame
    rows: Array
    shown: Shown
    items: int
    k: int


@dataclass(frozen=True)
class Estimate:
    """A measure of groups: points (G,), and what it is for other users, draws (R, G).

    is_jackknife: draws are what is left without a block of users each, rather than resamples.
    """

    points: Array
    draws: Array
    is_jackknife: bool = False

    def told(self, group: int) -> dict[str, float] | None:
        """Return mean and 95 % interval of a group; None where it has none."""
        return self._describe("mean", self.points[group], self.draws[:, group])

    def gap(self, among: Array, names: Sequence[str]) -> dict[str, Any] | None:
        """Return the gap between the best and the worst of some groups, of two at least."""
        if len(among) < 2:
            return None
        best, worst = (among[find(self.points[among])] for find in (np.argmax, np.argmin))
        difference = self.points[best] - self.points[worst]
        told = self._describe("difference", difference, self.draws[:, best] - self.draws[:, worst])
        if told is None:
            return None
        found = {"best": names[best], "worst": names[worst], **told}
        if not self.is_jackknife:
            apart = np.ptp(self.draws[:, among] - self.points[among], axis=1)
            found["by_chance"] = round(float(np.nanquantile(apart, 0.95)), 5)
        return found

    def _describe(self, name: str, point: float, draws_R: Array) -> dict[str, float] | None:
        if np.isnan(point) or np.isnan(draws_R).all():
            return None
        if self.is_jackknife:
            size = len(draws_R)
            half = NORMAL_95 * np.sqrt((size - 1) * np.nanvar(draws_R))
            ends = point - half, point + half
        else:
            ends = tuple(np.nanquantile(draws_R, [0.025, 0.975]))
        values = zip((name, "low", "high"), (point, *ends), strict=True)
        return {key: round(float(value), 5) for key, value in values}


def judge_groups(judged: Judged, values: Mapping[tuple[str, str], Values]) -> list[dict[str, Any]]:
    """Return what the module's docstring says, for each column.

    Args:
        judged: what is judged.
        values: by (table, column), where table is "users" or "items": of the users in the order of
            their numbers, or of the catalogue.
    """
    return [_judge_column(judged, *where, found) for where, found in values.items()]


def _judge_column(judged: Judged, table: str, column: str, values: Values) -> dict[str, Any]:
    k, is_of_users = judged.k, table == "users"
    owners = number_users(judged.ranked) if is_of_users else judged.rows
    names, groups = _pool(values, owners, judged.ranked["pair"].to_numpy().astype(np.int64))
    chosen = groups[owners]
    places = groups[judged.shown.users if is_of_users else judged.shown.rows]
    numbers = range(len(names))
    frames = [
        measure_pairs(judged.ranked.filter(pl.Series(chosen == group)), [k]) for group in numbers
    ]
    lists = np.array([frame.height for frame in frames])
    large = np.flatnonzero(lists >= MIN_LISTS)
    estimates = _resampled(judged.ranked, frames, [f"ndcg@{k}", f"hr@{k}"])
    everybody = np.arange(len(values.codes) if is_of_users else number_users(judged.ranked)[-1] + 1)
    members = [everybody[groups == group] if is_of_users else everybody for group in numbers]
    coverage, coverage_users = _covered(judged, places, members, large)
    sizes = np.array(
        [judged.items if is_of_users else (groups == group).sum() for group in numbers]
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        coverage = Estimate(coverage.points / sizes, coverage.draws / sizes, is_jackknife=True)
    estimates[f"coverage@{k}"] = coverage
    found = []
    for group in np.flatnonzero(lists).tolist():
        part: dict[str, Any] = {"name": names[group], "lists": int(lists[group])}
        part["users"] = frames[group][USER_ID].n_unique()
        part |= {name: estimate.told(group) for name, estimate in estimates.items()}
        if not is_of_users:
            part["items"] = int(sizes[group])
            shares = {"shown": places == group, "chosen": chosen == group}
            part |= {name: round(float(share.mean()), 5) for name, share in shares.items()}
        found.append(part)
    gaps = {name: estimate.gap(large, names) for name, estimate in estimates.items()}
    return {
        "table": table,
        "column": column,
        "k": k,
        "coverage_users": coverage_users,
        "groups": found,
        "gaps": {name: gap for name, gap in gaps.items() if gap},
    }


def _pool(values: Values, owners: Array, pairs: Array) -> tuple[list[str], Array]:
    """Return the names of groups, the largest first, and the group of each user or item.

    Args:
        values: of all users or items.
        owners: the user or item of each relevant item.
        pairs: the list that each relevant item is in.
    """
    codes, size = values.codes[owners].astype(np.int64), len(values.names)
    span = int(pairs.max(initial=0)) + 1
    of_lists = np.unique((codes + 1) * span + pairs) // span - 1
    lists = np.bincount(of_lists[of_lists >= 0], minlength=size)
    large = np.flatnonzero(lists >= MIN_LISTS).tolist()
    large.sort(key=lambda code: (-lists[code], values.names[code]))
    kept = large[:MOST_GROUPS]
    group_of = np.full(size + 1, len(kept))
    group_of[kept] = np.arange(len(kept))
    # Codes of NO_VALUE are -1, the last place.
    group_of[-1] = len(kept) + 1
    return [*(values.names[code] for code in kept), OTHER, NONE], group_of[values.codes]


def _resampled(
    ranked: pl.DataFrame, frames: Sequence[pl.DataFrame], measures: Sequence[str]
) -> dict[str, Estimate]:
    """Return the means of measures over the pairs of each group, all on the same draws of users."""
    numbers = ranked.select(pl.col(USER_ID).unique(maintain_order=True)).with_row_index("number")
    sums = []
    for frame in frames:
        users = frame.select(USER_ID).join(numbers, on=USER_ID, how="left", maintain_order="left")
        owners = users["number"].to_numpy().astype(np.int64)
        weights = [np.ones(frame.height), *(frame[name].to_numpy() for name in measures)]
        sums += [np.bincount(owners, weight, numbers.height) for weight in weights]
    sums_UC = np.stack(sums, 1)
    totals_R = resample(sums_UC).reshape(-1, len(frames), 1 + len(measures))
    totals = sums_UC.sum(0).reshape(len(frames), 1 + len(measures))
    # A small group may have no pair at all in a draw.
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            name: Estimate(totals[:, at] / totals[:, 0], totals_R[..., at] / totals_R[..., 0])
            for at, name in enumerate(measures, 1)
        }


def _covered(
    judged: Judged, places: Array, members: Sequence[Array], large: Array
) -> tuple[Estimate, int]:
    """Return how many items so many users of each group are shown, and how many users that is.

    Args:
        judged: what is judged.
        places: group of each shown place.
        members: users of each group, all of them where items are grouped.
        large: groups whose smallest says how many users are looked at.
    """
    sizes = np.array([len(part) for part in members])
    drawn = max(1, int(sizes[large].min(initial=sizes.max())) // 2)
    points: list[float] = []
    draws: list[list[float]] = []
    for group, part in enumerate(members):
        inside = places == group
        block_U = np.zeros(int(part.max(initial=0)) + 1, np.int64)
        block_U[part] = np.arange(len(part)) % BLOCKS
        rows, places_N = np.unique(judged.shown.rows[inside], return_inverse=True)
        blocks_N = block_U[judged.shown.users[inside]]
        counts = np.bincount(places_N, minlength=len(rows))
        points.append(rarefy(counts, len(part), drawn))
        draws.append([])
        for block in range(BLOCKS):
            without = np.bincount(places_N[blocks_N == block], minlength=len(rows))
            left = len(part) - len(part[block::BLOCKS])
            draws[-1].append(rarefy(counts - without, left, drawn))
    return Estimate(np.array(points), np.array(draws).T, is_jackknife=True), drawn


def rarefy(counts: Array, users: int, drawn: int) -> float:
    """Return how many items some of the users are shown on average; NaN where there are too few.

    Args:
        counts: how many users each item is shown to.
        users: all of them.
        drawn: so many of them, each as likely as any other.

    One item is shown to one of four users, the other to all: two users meet the first in half of
    the cases.

    >>> float(rarefy(np.array([1, 4]), users=4, drawn=2))
    1.5
    """
    if users < drawn:
        return float("nan")
    before = np.arange(int(counts.max(initial=0)))
    missed = np.maximum(users - drawn - before, 0) / (users - before)
    chances = np.concatenate([[1.0], np.cumprod(missed)])
    return float((1 - chances[counts]).sum())
