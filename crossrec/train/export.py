"""A finished phase as a model folder, written by the worker that trained it."""

from dataclasses import dataclass
from typing import Any

from crossrec.model.checkpoint import Model, save_model, tensors_from_bytes
from crossrec.model.objectives import Objective
from crossrec.train.progress import Progress
from crossrec.train.task import Task, TrainJob


@dataclass(frozen=True)
class Phase:
    """One training of a run, from step 0 to a model folder.

    name: what progress and log call it. job: what it trains on; without a validation slice it
    trains as many epochs as the phase before it found best. folder: where its model goes. notes:
    facts for that model's config.json.
    """

    name: str
    job: TrainJob
    folder: str
    notes: dict[str, Any]


def describe_scores(objective: Objective, horizon_days: int) -> dict[str, str | int]:
    """Return what published scores mean under an objective, for who reads them.

    >>> describe_scores(Objective("gbce"), 14)["unit"]
    'probability'
    """
    if objective.name == "mse":
        return {"meaning": "rating that the user would give", "unit": "that of rating"}
    if objective.is_binary:
        meaning = "chance that the user has an event with the item within the horizon"
        return {"meaning": meaning, "unit": "probability", "horizon_days": horizon_days}
    return {"meaning": "higher is better, within a list", "unit": "none"}


def export_phase(phase: Phase, task: Task, best: bytes | None, chosen: Progress) -> None:
    """Write the model; again after a crash, with the same content.

    Args:
        phase: that ended.
        task: holds the weights of its last epoch.
        best: weights of the epoch to export instead, None for the last.
        chosen: of the phase that validated, this one or one before it.
    """
    if best is not None:
        task.loss.load_state_dict(tensors_from_bytes(best))
    job = phase.job
    domains = tuple(domain.name for domain in job.prepared.domains)
    facts = phase.notes | {
        "seed": job.seed,
        "backbone": job.model.backbone,
        "image_backbone": job.model.image_backbone,
        "known_before_day": job.known_before,
        "valid_ndcg@10": chosen.best_ndcg,
    }
    model = Model(job.model, task.loss.recommender, task.items, domains, facts)
    learned = task.learning_backbone
    texts = learned or job.source.untrained()
    save_model(job.store, phase.folder, model, texts, job.source.vision())
