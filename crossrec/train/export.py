"""A finished phase as a model folder, written by the worker that trained it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from crossrec.config import Config
from crossrec.model.adapters import select_trainable
from crossrec.model.backbone import TextBackbone
from crossrec.model.checkpoint import Model, save_model, tensors_below
from crossrec.model.vision import VisionBackbone
from crossrec.runlog import log
from crossrec.storage import Store
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

    @property
    def histories(self) -> str:
        """Name of the dataset that it trains on: one for all phases that see the same input."""
        view = self.job.prepared.view
        if view is None:
            return "histories"
        return f"histories-{view.start}-{view.stop}-{view.without_newest}"


NO_UNIT = {"meaning": "higher is better, within a list", "unit": "none"}


def describe_scores(config: Config) -> dict[str, str | int]:
    """Return what published scores mean, for who reads them."""
    if config.train.objective == "mse":
        return {"meaning": "rating that the user would give", "unit": "that of rating"}
    # Leave-one-out predicts an event, and no days within which it comes.
    if config.train.publishes_probabilities and config.evaluate.protocol == "time":
        meaning = "chance that the user has an event with the item within the horizon"
        horizon = config.evaluate.holdout_days
        return {"meaning": meaning, "unit": "probability", "horizon_days": horizon}
    return dict(NO_UNIT)


def withdraw_unit(store: Store, folder: str) -> None:
    """Say in a model's config.json that its scores mean nothing but their order."""
    path = f"{folder}/config.json"
    said = store.read_json(path)
    store.write_json(path, said | {"facts": said["facts"] | {"scores": NO_UNIT}})
    log.warning(
        "finetune: nobody known did anything new in the days that probabilities are fitted on: "
        "scores of %s stay without a unit; give older events, or change train.valid_days and "
        "evaluate.holdout_days",
        store.uri(folder),
    )


def export_phase(phase: Phase, task: Task, weights: Mapping[str, Tensor], chosen: Progress) -> None:
    """Write the model; again after a crash, with the same content.

    Args:
        phase: that ended.
        task: of the phase, whatever weights it holds.
        weights: of the epoch to export, whole; the task may hold a share of them alone.
        chosen: of the phase that validated, this one or one before it.
    """
    job = phase.job
    recommender = task.loss.recommender
    recommender.load_state_dict(tensors_below("recommender.", weights))
    domains = tuple(domain.name for domain in job.prepared.domains)
    facts = phase.notes | {
        "seed": job.seed,
        "backbone": job.model.backbone,
        "image_backbone": job.model.image_backbone,
        "known_before_day": job.known_before,
        "valid_ndcg@10": chosen.best_ndcg,
    }
    model = Model(job.model, recommender, task.items, domains, facts)
    texts = job.source.untrained() if task.texts is None else _trained_backbone(job, weights)
    images = job.source.vision() if task.images is None else _trained_vision(job, weights)
    save_model(job.store, phase.folder, model, texts, images)


def _trained_backbone(job: TrainJob, weights: Mapping[str, Tensor]) -> TextBackbone:
    backbone = job.source.load()
    select_trainable(backbone, job.model)
    backbone.load_state_dict(tensors_below("text_of.texts.backbone.", weights))
    return backbone


def _trained_vision(job: TrainJob, weights: Mapping[str, Tensor]) -> VisionBackbone:
    backbone = job.source.load_vision()
    backbone.load_state_dict(tensors_below("text_of.images.backbone.", weights))
    return backbone
