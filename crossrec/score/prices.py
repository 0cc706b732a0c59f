"""What each item pays for being shown, so that at full price all are shown about alike.

    write_prices(job)      # <items>/prices.safetensors, unless it is there

Lists of equal exposure are those of an assignment: each user gets PLACES items, each item as many
users as any other. The best assignment by the sum of scores has a price for each item, the dual of
its limit, and then everybody takes what is best by score less price (Bertsekas, Auction algorithms
for network flow problems, 1992). The prices are found on a sample of users, round by round: whoever
is shown more often than others becomes dearer, who is shown less becomes cheaper, in ever smaller
steps. They are state of items alone; no list knows of another user.

Tensor suffixes: B users, I items of the domain, K places.
"""

from dataclasses import replace

import ray
import torch
from torch import Tensor

from crossrec.data.histories import DomainRange
from crossrec.data.replay import Histories, before, sample_histories, select_users, slice_users
from crossrec.data.tasks import plain_errors
from crossrec.data.traits import read_traits
from crossrec.model.checkpoint import tensors_to_bytes
from crossrec.nodes import count_cpus_and_gpus, largest_node_cpus, torch_threads
from crossrec.runlog import log
from crossrec.score.bucket import ScoreJob
from crossrec.score.limits import Terms
from crossrec.score.scorer import USERS_A_BATCH, Scorer
from crossrec.score.steering import PRICES

PLACES = 10
"""Of a list that count as being shown: those that a user looks at first."""

USERS = 2_000
"""Of the sample."""

CPUS_A_TASK = 8
"""At most."""

ROUNDS = 60

FIRST_STEP, SLOWER = 0.3, 15
"""A step, in what lies between the first and the last place of most lists, and the rounds after
which it is half as long."""


def write_prices(job: ScoreJob) -> None:
    """Find the prices of all items as of the job's day, on an initialised Ray; once a folder."""
    if job.store.exists(f"{job.items}/{PRICES}"):
        return
    gpus = min(1, count_cpus_and_gpus()[1])
    threads = min(largest_node_cpus(with_gpu=gpus > 0), CPUS_A_TASK)
    # Not here: the driver's node may have neither GPU nor room.
    task = ray.remote(num_cpus=threads, num_gpus=gpus)(_write_prices)
    with plain_errors():
        highest = ray.get(task.remote(job, threads))
    said = ", ".join(f"{name!r} {price:.3g}" for name, price in highest.items())
    log.info("score: the dearest items pay %s", said)


def _write_prices(job: ScoreJob, threads: int) -> dict[str, float]:
    """Write the prices of all domains; return the highest of each."""
    with torch_threads(threads):
        scorer = replace(job, steered={}).open_scorer()
        sample = sample_users(job)
        found = {
            number: find_prices(_terms(scorer, sample, job.day, domain.name), domain).cpu()
            for number, domain in enumerate(job.prepared.domains)
            if domain.name in job.domains
        }
    tensors = {str(number): prices_I for number, prices_I in found.items()}
    job.store.write_bytes(f"{job.items}/{PRICES}", tensors_to_bytes(tensors))
    return {
        job.prepared.domains[number].name: max(prices_I.tolist(), default=0.0)
        for number, prices_I in found.items()
    }


def sample_users(job: ScoreJob) -> Histories:
    """Return users with events before the job's day, the first ones of the first buckets."""
    per_user = job.prepared.events / max(job.prepared.users, 1)
    sample = sample_histories(job.store, job.prepared, int(2 * USERS * per_user) + 1)
    known = before(sample, job.day)
    is_known = known.lengths > 0
    users = select_users(known, is_known & (is_known.cumsum() <= USERS))
    traits = read_traits(job.store, job.traits, users.user_ids, job.prepared.buckets)
    return replace(users, traits=traits)


def _terms(scorer: Scorer, users: Histories, day: int, name: str) -> list[Terms]:
    """Return what makes the scores of the users in a domain, by batches."""
    starts = range(0, len(users.lengths), USERS_A_BATCH)
    parts = (slice_users(users, start, start + USERS_A_BATCH) for start in starts)
    return [scorer.terms(part, day, name) for part in parts]


@torch.inference_mode()
def find_prices(terms: list[Terms], domain: DomainRange) -> Tensor:
    """Return what each item of a domain pays, (I,) float32, 0 at least.

    Args:
        terms: what makes the scores of a sample of users, by batches.
        domain: whose items they are.

    Returns:
        The prices of the round in which the items were shown most evenly. Items that no list may
        hold pay nothing.
    """
    size = domain.stop - domain.start
    if not terms or not size:
        return torch.zeros(size)
    prices_I = torch.zeros(size, device=terms[0].products[0][0].device)
    may_be_shown_I = torch.zeros_like(prices_I, dtype=torch.bool)
    for part in terms:
        to_users_BI = prices_I.new_ones(1, size, dtype=torch.bool)
        for of_block in part.left_out:
            to_users_BI = to_users_BI & ~of_block(0, size)
        may_be_shown_I |= to_users_BI.any(0)
    found_I, fewest, unit = prices_I, float("inf"), 0.0
    for number in range(ROUNDS + 1):
        shown_I, spread = _show(terms, prices_I)
        unit = unit or spread
        target = float(shown_I.sum()) / max(int(may_be_shown_I.sum()), 1)
        uneven = float(((shown_I - target) ** 2)[may_be_shown_I].sum())
        if uneven < fewest:
            found_I, fewest = prices_I, uneven
        step = unit * FIRST_STEP / (1 + number / SLOWER)
        # One more on both sides: where places are few, being shown by chance costs little.
        dearer_I = step * torch.log((shown_I + 1) / (target + 1))
        prices_I = torch.where(may_be_shown_I, prices_I + dearer_I, 0.0)
    cheapest = found_I[may_be_shown_I].min() if may_be_shown_I.any() else 0.0
    return torch.where(may_be_shown_I, found_I - cheapest, 0.0)


def _show(terms: list[Terms], prices_I: Tensor) -> tuple[Tensor, float]:
    """Return in how many first PLACES each item is at these prices, and how wide most of them are.

    That is the median of what lies between the first and the last score of a list.
    """
    shown_I, spreads = torch.zeros_like(prices_I), []
    for part in terms:
        ones_B1 = prices_I.new_ones(len(part.products[0][0]), 1)
        products = [*part.products, (ones_B1, -prices_I.unsqueeze(1))]
        rows_BK, scores_BK = replace(part, products=products).top_k(PLACES)
        shown_I += torch.bincount(rows_BK[rows_BK >= 0], minlength=len(prices_I))
        is_full_B = rows_BK[:, -1] >= 0
        spreads.append((scores_BK[:, 0] - scores_BK[:, -1])[is_full_B])
    wide = torch.cat(spreads)
    return shown_I, float(wide.median()) if len(wide) else 0.0
