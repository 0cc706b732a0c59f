"""How the parts of the score add up: learned at past moments, after the sequence has been trained.

The text, the neighbours and the state of items need no training, so every past moment can teach how
much they count. The learned sequence can only be judged at moments that it has not seen: those of
the validation slice.

    fuse(plan, store, prepared, train, seed)    # fusion.safetensors beside both models

Time is kept apart as everywhere: what the hold-out judges has learned from moments that end before
the hold-out begins; what the night uses has learned from the newest as well. Leave-one-out cuts
histories in place of time, so that all parts learn at once from one moment that nobody has seen.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
import torch

from crossrec.config import TrainConfig
from crossrec.data.daily import load_activity
from crossrec.data.histories import Prepared
from crossrec.data.itemstate import EventStates
from crossrec.data.replay import Activity, Histories, sample_histories
from crossrec.encode import encode_catalogue
from crossrec.model.checkpoint import load_model, save_fusions
from crossrec.model.fusion import SEQUENCE_SPEED, Fusion, Shortlists, join
from crossrec.model.source import BackboneSource
from crossrec.runlog import log
from crossrec.storage import Store
from crossrec.train.export import withdraw_unit
from crossrec.train.fit import (
    Earned,
    earn,
    earn_together,
    fit,
    fit_sequence,
    fit_together,
    keep_share,
)
from crossrec.train.link import describe_links, learn_link
from crossrec.train.moments import GatherJob, Moment
from crossrec.train.relate import weigh_relations
from crossrec.train.repeat import repeatable
from crossrec.train.shortlists import gather

SEQUENCE_MOMENTS = 3

LINK_USERS = 2_000
"""Of a domain, for the link from scores to probabilities."""

PAIRS_A_MOMENT = 1_000
"""Users of all domains together; at least FEWEST_PAIRS each."""
FEWEST_PAIRS = 100

SEQUENCE_SHARE = 3
"""So many times the users at moments with the sequence: there are few of these moments, and what it
adds to the other parts is small beside the noise."""

LEARNING_RATE = 0.01
"""Whatever the sequence encoder's is, but where that is 0: the networks are tiny."""

EARLY_SHARE = 0.25
"""Of the days from the first event to the night: too little is known then to learn from."""


@dataclass(frozen=True)
class FusePlan:
    """Days and models: the selected one has seen nothing of `valid` and later, the refitted all.

    valid, holdout, night: days on which those begin. horizon: days that are predicted at once.
    selected, refitted: model folders; without the last, only what the hold-out judges is learned.
    moments: that each fusion learns from, where the data is long enough.
    """

    valid: int
    holdout: int
    night: int
    horizon: int
    selected: str
    refitted: str | None = None
    moments: int = TrainConfig.model_fields["moments"].default


def past_moments(plan: FusePlan, first_day: int) -> list[Moment]:
    """Return the moments without the sequence, newest first.

    They lie a hold-out's length apart and end before the night; closer together where the data is
    short.
    """
    horizon = plan.horizon
    earliest = first_day + int((plan.night - first_day) * EARLY_SHARE)
    apart = min(horizon, (plan.night - horizon - earliest) // plan.moments)
    days = [plan.night - horizon - index * max(apart, 1) for index in range(plan.moments + 1)]
    return [Moment(day, day + horizon, False) for day in days if day > earliest]


def unseen_moments(plan: FusePlan) -> list[Moment]:
    """Return the moments of the validation slice, of which the selected model has seen nothing."""
    span = plan.holdout - plan.valid
    starts = sorted({plan.valid + span * n // SEQUENCE_MOMENTS for n in range(SEQUENCE_MOMENTS)})
    return [Moment(day, min(day + plan.horizon, plan.holdout), True) for day in starts]


def plan_moments(plan: FusePlan, first_day: int) -> list[Moment]:
    """Return all moments, newest first, those with the sequence last."""
    return past_moments(plan, first_day) + unseen_moments(plan)


def plan_newest(plan: FusePlan, first_day: int) -> list[Moment]:
    """Return what stands for them under leave-one-out: the newest events, seen from the night."""
    return [Moment(first_day, plan.night, with_sequence=True, is_newest=True)]


@repeatable()
def fuse(
    plan: FusePlan, store: Store, prepared: Prepared, train: TrainConfig, seed: int
) -> dict[str, Any]:
    """Learn the fusions on an initialised Ray, write them, and say from how much they learned.

    Args:
        plan: days and models.
        store: of the run.
        prepared: the input; under leave-one-out without the events that are held out.
        train: of the run.
        seed: of the run.
    """
    settings = load_model(store, plan.selected).settings
    vectors = encode_catalogue(store, prepared, BackboneSource(store, settings, plan.selected))
    pairs = max(FEWEST_PAIRS, PAIRS_A_MOMENT // len(prepared.domains))
    job = GatherJob(store, prepared, plan.selected, vectors, pairs, seed)
    rate = LEARNING_RATE if train.learning_rate else 0.0
    # Before the first weights are drawn, so that a night can be repeated.
    torch.manual_seed(seed)
    step0 = Fusion(len(prepared.domains), settings.leave_out, prepared.with_relations)
    if prepared.leaves_one_out:
        return _fuse_newest(job, plan, step0, rate)
    found = _gather_all(job, plan)
    early = [
        lists for moment, lists in found if moment.stop <= plan.holdout and not moment.with_sequence
    ]
    sequence = [lists for moment, lists in found if moment.with_sequence]
    base = _learn(step0, early, rate, seed)
    whole = copy.deepcopy(base)
    facts: dict[str, Any] = {"moments": len(early), "lists": sum(map(len, early))}
    if sequence:
        facts["sequence"] = _learn_sequence(whole, join(sequence), rate, seed)
    if train.publishes_probabilities:
        stop = min(plan.valid + plan.horizon, plan.holdout)
        facts["links"] = _link(job, Moment(plan.valid, stop, True), whole)
        if not whole.has_link:
            withdraw_unit(store, plan.selected)
    save_fusions(store, plan.selected, {"model": whole, "without_sequence": base, "step0": step0})
    if plan.refitted is None:
        return facts
    latest = [lists for moment, lists in found if not moment.with_sequence]
    latest = latest[: plan.moments]
    night_base = _learn(step0, latest, rate, seed)
    night = copy.deepcopy(night_base)
    with torch.no_grad():
        night.sequence.copy_(whole.sequence)
        night.sequence_beside.copy_(whole.sequence_beside)
        night.sequence_gate.load_state_dict(whole.sequence_gate.state_dict())
        night.link_D2.copy_(whole.link_D2)
    if train.publishes_probabilities:
        # The hold-out has been judged with the link before it; the night's learns from it too.
        facts["links"] = _link(job, Moment(plan.holdout, plan.night, True), night)
    if train.publishes_probabilities and not night.has_link:
        withdraw_unit(store, plan.refitted)
    save_fusions(
        store, plan.refitted, {"model": night, "without_sequence": night_base, "step0": step0}
    )
    return facts | {"moments": len(latest), "lists": sum(map(len, latest))}


def _fuse_newest(job: GatherJob, plan: FusePlan, step0: Fusion, rate: float) -> dict[str, Any]:
    """Learn and write one fusion for both models, as leave-one-out judges.

    From the event before the one that is held out, of which the selected model has seen nothing:
    all parts have these same lists. Days ahead are another task, in which what sells this week
    counts for more; and of probabilities, which are of days, there are none.
    """
    found = [lists for _, lists in _gather_all(job, plan)]
    base = _learn(step0, found, rate, job.seed)
    whole, facts = copy.deepcopy(base), dict[str, Any]()
    if found and rate:
        lists = join(found)
        earned = earn_together(step0, lists, rate, job.seed)
        whole = copy.deepcopy(step0)
        fit_together(whole, lists, rate, job.seed)
        keep_share(whole, base, earned.share)
        if whole.related is not None:
            weigh_relations(whole, lists, job.seed)
        facts["sequence"] = _describe(whole, earned)
    fusions = {"model": whole, "without_sequence": base, "step0": step0}
    for folder in filter(None, (plan.selected, plan.refitted)):
        save_fusions(job.store, folder, fusions)
    return facts | {"moments": len(found), "lists": sum(map(len, found))}


def _learn(step0: Fusion, lists: Sequence[Shortlists], rate: float, seed: int) -> Fusion:
    fusion = copy.deepcopy(step0)
    log.info("finetune: weighs the parts by %s lists", f"{sum(map(len, lists)):,}")
    if lists and rate:
        fit(fusion, join(lists), rate, seed)
        if fusion.related is not None:
            weigh_relations(fusion, join(lists), seed)
    return fusion


def _learn_sequence(fusion: Fusion, lists: Shortlists, rate: float, seed: int) -> dict[str, float]:
    """Give the sequence the weight that it earns; return what was found."""
    earned = earn(fusion, lists, rate, seed)
    without = copy.deepcopy(fusion)
    fit_sequence(fusion, lists, rate, seed)
    keep_share(fusion, without, earned.share)
    return _describe(fusion, earned)


def _describe(fusion: Fusion, earned: Earned) -> dict[str, float]:
    """Say what the sequence counts, and what that earned."""
    said = 100 * earned.share, earned.gain, earned.error
    log.info("finetune: the sequence keeps %.0f %% of its weight: gain %.4f, error %.4f", *said)
    found = {
        "weight": SEQUENCE_SPEED * fusion.sequence.item(),
        "share": earned.share,
        "gain": earned.gain,
        "error": earned.error,
    }
    return {name: round(value, 5) for name, value in found.items()}


def _link(job: GatherJob, moment: Moment, fusion: Fusion) -> dict[str, dict[str, float]]:
    """Fit a fusion's link at a moment, by a Ray task; return it by domain."""
    activity = load_activity(job.store, job.prepared)
    histories = sample_histories(job.store, job.prepared)
    wide = replace(job, pairs=LINK_USERS)
    links = ray.get(_learn_link.remote(wide, moment, fusion, histories, activity))
    fusion.link_D2.copy_(torch.from_numpy(links.copy()))
    return describe_links(fusion, [domain.name for domain in job.prepared.domains])


@ray.remote(num_cpus=2, max_retries=2)
def _learn_link(
    job: GatherJob, moment: Moment, fusion: Fusion, histories: Histories, activity: Activity
) -> np.ndarray:
    learn_link(job, moment, fusion, histories, activity, EventStates.of(activity))
    found: np.ndarray = fusion.link_D2.numpy()
    return found


def _gather_all(job: GatherJob, plan: FusePlan) -> list[tuple[Moment, Shortlists]]:
    """Return the shortlists of the moments that are planned, in their order."""
    known, shares, planner = job.prepared, {False: 1, True: SEQUENCE_SHARE}, plan_moments
    if known.leaves_one_out:
        planner = plan_newest
        # One moment stands for all.
        known, shares = known.without_newest(), dict.fromkeys(shares, plan.moments)
    activity = load_activity(job.store, known)
    if not len(activity.days):
        return []
    moments = planner(plan, int(np.quantile(activity.days, 0.01)))
    jobs = {kind: ray.put(replace(job, pairs=job.pairs * share)) for kind, share in shares.items()}
    shared = (
        ray.put(sample_histories(job.store, job.prepared)),
        ray.put(activity),
        ray.put(EventStates.of(activity)),
    )
    waiting = {
        _gather.remote(moment, jobs[moment.with_sequence], *shared): moment for moment in moments
    }
    found: dict[Moment, Shortlists] = {}
    while waiting:
        (done,), _ = ray.wait(list(waiting), num_returns=1)
        moment = waiting.pop(done)
        arrays = ray.get(done)
        if arrays is not None:
            # Copied: what Ray hands out cannot be written to, and torch warns of it.
            tensors = [torch.from_numpy(array.copy()) for array in arrays]
            found[moment] = Shortlists(*tensors)
        log.info("finetune: %s of %s moments gathered", len(moments) - len(waiting), len(moments))
    return [(moment, found[moment]) for moment in moments if moment in found]


@ray.remote(num_cpus=2, max_retries=2)
def _gather(
    moment: Moment, job: GatherJob, histories: Histories, activity: Activity, events: EventStates
) -> list[np.ndarray] | None:
    lists = gather(job, moment, histories, activity, events)
    return None if lists is None else [part.numpy() for part in vars(lists).values()]
