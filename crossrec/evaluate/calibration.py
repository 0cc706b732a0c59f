"""Whether published probabilities come true: what lists said, and how often it was so.

    metrics["calibration"] = judge_calibration(job, holdout, truth, num_actors)   # of probabilities

    {"days": 14, "top_k": 50, "users": 4870, "known_users": P, "judged_lists": P} with
    P = {"all": F, "domain": {name: F}}
    F = {"pairs": 243500, "predicted": 0.0061, "observed": 0.0058, "ece": 0.0009, "bins": [
        {"low": 0.0004, "high": 0.0011, "predicted": 0.0008, "observed": 0.0007, "pairs": 24350},
        ...]}
    or None without pairs

Scores say: the user has an event with the item in the next `days` days. That is said of every user,
but the lists that are judged for their order are those of users who then did something new, of whom
it is more often true. So the model's lists are written once more, for all users of some buckets:

known_users: the items in lists of all users with an event before the hold-out. Here a well
    calibrated model has an error near 0.
judged_lists: of those, the lists of users who did something new in the hold-out, in whatever
    domain: the ones that all other figures are about. That they did is known only afterwards, so
    that more comes true here than was said, however good the model is.

What these figures do not say: pairs below the first `top_k` of a list are not among them, though
the link is fitted on a sample of all; and being among a user's best is more than having a score, so
that a link which is right over all pairs may be a little wrong over these. The last places of lists
are kept for new items (`score.new_share`), whose scores are lower. What a user had before is in no
list. The link is the one that was fitted before the hold-out, on days of the validation slice; the
published model's is fitted anew, on the hold-out, and nothing has judged it yet. Pairs of a user
depend on each other: an error is less sure than its number of pairs looks.

Array suffixes: S pairs.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from crossrec.data.histories import read_histories
from crossrec.data.replay import before, flatten
from crossrec.evaluate.holdout import Holdout, score_lists
from crossrec.schema import DOMAIN, ITEM_ID, USER_ID, domain_folder
from crossrec.score.bucket import ScoreJob

Array = np.ndarray

BINS = 10

MOST_USERS = 5_000
"""Of the input, whose lists are written for this: some 250,000 pairs a domain, of which even one in
a thousand is known to a tenth."""


class Pairs(NamedTuple):
    """Users and items of lists.

    scores_S: float32, the probabilities. outcomes_S: bool, whether it came to be. judged_S: bool,
    whether the user did something new in the hold-out.
    """

    scores_S: Array
    outcomes_S: Array
    judged_S: Array


def judge_calibration(
    job: ScoreJob, holdout: Holdout, truth: pa.Table, folder: str, num_actors: int | None
) -> dict[str, Any] | None:
    """Write the lists of all users of some buckets, on an initialised Ray, and judge them.

    Args:
        job: that made the lists of the hold-out, with a model whose scores are probabilities.
        holdout: the hold-out.
        truth: of the hold-out.
        folder: for the lists and the records of buckets.
        num_actors: as `score_lists`.

    Returns:
        As in the module's docstring; None under leave-one-out, where no days are predicted.
    """
    if not holdout.is_by_time:
        return None
    wide = replace(
        job,
        outputs={"model": folder},
        done=f"{folder}/done",
        active_until=None,
        earlier=None,
        explain=0,
    )
    most = MOST_USERS * job.prepared.buckets // max(job.prepared.users, 1)
    buckets = holdout.buckets[: max(1, most)]
    score_lists(wide, buckets, num_actors)
    users = _known_users(wide, holdout, buckets)
    return {
        "days": holdout.stop - holdout.start,
        "top_k": job.top_k,
        "users": len(users),
        **describe_calibration(read_pairs(wide, buckets, truth, users)),
    }


def _known_users(job: ScoreJob, holdout: Holdout, buckets: range) -> pl.Series:
    """Return the users of buckets who had an event before the hold-out."""
    found = []
    for bucket in buckets:
        known = before(flatten(read_histories(job.store, holdout.known, bucket)), holdout.start)
        found.append(known.user_ids.filter(pa.array(known.lengths > 0)))
    return pl.Series(USER_ID, pa.concat_arrays(found))


def read_pairs(
    job: ScoreJob, buckets: range, truth: pa.Table, users: pl.Series
) -> dict[str, Pairs]:
    """Return the pairs by domain, of lists that are written.

    Args:
        job: that wrote them.
        buckets: those to read.
        truth: of the hold-out.
        users: whose lists count.
    """
    records = [job.store.read_json(job.record_path(bucket)) for bucket in buckets]
    paths = [file["path"] for record in records for file in record["files"]]
    came = pl.DataFrame(pl.from_arrow(truth.select([USER_ID, DOMAIN, ITEM_ID])))
    came = came.with_columns(pl.col(USER_ID, DOMAIN, ITEM_ID).cast(pl.String))
    active = came[USER_ID].unique().implode()
    found = {}
    for domain in job.domains:
        inside = [path for path in paths if path.split("/")[-2] == domain_folder(domain)]
        lists = pl.concat(
            pl.DataFrame(pl.from_arrow(job.store.read_parquet(path))) for path in inside
        )
        lists = lists.filter(
            pl.col(USER_ID).is_in(users.implode()), pl.col("item_ids").list.len() > 0
        )
        shown = lists.explode("item_ids", "scores").rename({"item_ids": ITEM_ID})
        next_ = came.filter(pl.col(DOMAIN) == domain).select(USER_ID, ITEM_ID, came=True)
        pairs = shown.join(next_, on=[USER_ID, ITEM_ID], how="left", maintain_order="left")
        found[domain] = Pairs(
            pairs["scores"].to_numpy(),
            pairs["came"].fill_null(False).to_numpy(),
            pairs[USER_ID].is_in(active).to_numpy(),
        )
    return found


def describe_calibration(by_domain: Mapping[str, Pairs]) -> dict[str, Any]:
    """Return the figures of all users' pairs, and of those in the lists that are judged."""

    def figures(pairs: list[Pairs], is_judged: bool) -> dict[str, Any] | None:
        scores_S = np.concatenate([np.zeros(0, np.float32), *(part.scores_S for part in pairs)])
        outcomes_S = np.concatenate([np.zeros(0, bool), *(part.outcomes_S for part in pairs)])
        if is_judged:
            judged_S = np.concatenate([np.zeros(0, bool), *(part.judged_S for part in pairs)])
            scores_S, outcomes_S = scores_S[judged_S], outcomes_S[judged_S]
        return calibrate(scores_S, outcomes_S)

    def parts(is_judged: bool) -> dict[str, Any]:
        domains = {name: figures([pairs], is_judged) for name, pairs in by_domain.items()}
        return {
            "all": figures(list(by_domain.values()), is_judged),
            "domain": {name: part for name, part in domains.items() if part is not None},
        }

    return {"known_users": parts(False), "judged_lists": parts(True)}


def calibrate(scores_S: Array, outcomes_S: Array, bins: int = BINS) -> dict[str, Any] | None:
    """Return mean probability and frequency, overall and in bins, and the error between them.

    Bins hold about as many pairs each, cut between different probabilities, because most of them
    are close to 0: bins of equal width would put nearly all pairs into one. ece: the expected
    calibration error, the mean over pairs of how far their bin's mean probability is from its
    frequency. Source: Naeini, Cooper and Hauskrecht, Obtaining well calibrated probabilities using
    Bayesian binning, 2015; with bins of equal count as Nguyen and O'Connor, Posterior calibration
    and exploratory analysis for natural language processing models, 2015.

    Args:
        scores_S: probabilities.
        outcomes_S: bool.
        bins: at most.

    Returns:
        As F in the module's docstring, rounded to 6 digits; None without pairs.

    Of the lower two, said .1 and .3, one came to be; of the upper two, said .5 and .9, both did:
    the errors of the bins are .5 - .2 = .3 and 1 - .7 = .3.

    >>> found = calibrate(np.array([0.9, 0.1, 0.5, 0.3]), np.array([1, 0, 1, 1], bool), bins=2)
    >>> found["pairs"], found["predicted"], found["observed"], found["ece"]
    (4, 0.45, 0.75, 0.3)
    >>> found["bins"][0]
    {'low': 0.1, 'high': 0.3, 'predicted': 0.2, 'observed': 0.5, 'pairs': 2}
    """
    size = len(scores_S)
    if not size:
        return None
    order = np.argsort(scores_S, kind="stable")
    said, came = scores_S[order].astype(np.float64), outcomes_S[order].astype(np.float64)
    # A cut before the first pair of a probability: equal ones stay together.
    cuts = np.searchsorted(said, said[np.arange(1, bins) * size // bins])
    starts = np.unique(np.concatenate([[0], cuts]))
    counts = np.diff(starts, append=size)
    predicted, observed = (np.add.reduceat(part, starts) / counts for part in (said, came))
    rows = zip(
        said[starts], said[starts + counts - 1], predicted, observed, counts.tolist(), strict=True
    )
    return {
        "pairs": size,
        "predicted": _short(said.mean()),
        "observed": _short(came.mean()),
        "ece": _short(np.average(np.abs(predicted - observed), weights=counts)),
        "bins": [
            {
                "low": _short(low),
                "high": _short(high),
                "predicted": _short(mean),
                "observed": _short(rate),
                "pairs": pairs,
            }
            for low, high, mean, rate, pairs in rows
        ],
    }


def _short(value: float) -> float:
    return round(float(value), 6)
