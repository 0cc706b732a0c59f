"""Before any label: the backbone learns the language of this catalogue, on Ray Train.

In: item texts, and the histories before the validation slice. Out, in the store, shared by all runs
that would make the same:

    cache/backbones/<digest>/          the adapted backbone, as transformers reads it
    cache/backbones/<digest>.json      pooling and curve; written last
    <folder>/adapt-<digest>/           checkpoints of Ray Train while it works

    settings, curve = adapt(config, store, prepared, valid, "runs/1/train")
    source = BackboneSource(store, settings)         # encoding and fine-tuning start from there

A step's texts follow from the seed and its number alone, so that a checkpoint needs no place in the
data.
"""

import hashlib
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
from torch import Tensor, nn

from crossrec.config import Config, ModelConfig, TrainConfig
from crossrec.data.histories import Prepared
from crossrec.model.adapt import LanguageLoss, PairLoss, language_kind
from crossrec.model.backbone import TextBackbone
from crossrec.model.checkpoint import tensors_below
from crossrec.model.source import BackboneSource
from crossrec.runlog import log
from crossrec.storage import Store
from crossrec.train.epoch import autocast, memory, sum_over_workers
from crossrec.train.material import Material, gather_material
from crossrec.train.optimize import build_optimizer, set_rates
from crossrec.train.progress import (
    Progress,
    is_checkpoint,
    read_checkpoint,
    report_epoch,
    take_state,
)
from crossrec.train.repeat import repeatable
from crossrec.train.sharding import average_whole, clip_gradients, join_workers, shard, world_size
from crossrec.train.tracking import Tracked, Tracker, open_tracker
from crossrec.train.workers import Run, run_workers

TEXTS_A_STEP = 64
"""Texts, or pairs, over all workers (Gao, Yao and Chen 2021, table A.1)."""

STEPS_A_ROUND = 50
"""After so many steps comes a checkpoint and a point of the curve: a minute of MiniLM on a core."""


@dataclass(frozen=True)
class AdaptJob:
    """One adaptation: of what, on which texts and histories, to where.

    known_before: events of this day and later are not read.
    """

    store: Store
    prepared: Prepared
    source: BackboneSource
    train: TrainConfig
    seed: int
    known_before: int
    target: str


def check_adapt(config: Config, store: Store) -> None:
    """Fail before any work where the backbone cannot be adapted as the config says.

    Raises:
        ConfigError: it has no language model.
    """
    if config.train.adapt != "mlm":
        return
    from transformers import AutoConfig

    place = BackboneSource(store, config.model).locate()
    trusted = config.model.trust_remote_code
    language_kind(AutoConfig.from_pretrained(place, trust_remote_code=trusted))


def adapt(
    config: Config, store: Store, prepared: Prepared, known_before: int, folder: str
) -> tuple[ModelConfig, list[dict[str, float]]]:
    """Adapt the backbone on an initialised Ray, going on where an earlier call ended.

    Args:
        config: with train.adapt; where that is none, nothing is done.
        store: for everything.
        prepared: texts and histories.
        known_before: events of this day and later are not read.
        folder: for checkpoints.

    Returns:
        Settings of which `backbone` is the adapted one, and the curve.
    """
    if config.train.adapt == "none":
        return config.model, []
    source = BackboneSource(store, config.model).pinned(config.run_id)
    name = _digest(config, source, prepared, known_before)
    target = f"cache/backbones/{name}"
    if not store.exists(f"{target}.json"):
        job = AdaptJob(store, prepared, source, config.train, config.seed, known_before, target)
        train = config.train
        run = Run(store, folder, f"adapt-{name}", train.num_workers, train.min_workers)
        run_workers(run, adapt_loop, {"job": job, "tracked": folder})
        # Three times the backbone each, and of no use any more.
        for checkpoint in filter(is_checkpoint, store.list(run.checkpoints)):
            store.delete(f"{run.checkpoints}/{checkpoint}")
    else:
        log.info("finetune: the backbone is adapted already, %s", store.uri(target))
    record = store.read_json(f"{target}.json")
    changed = {"backbone": store.uri(target), "pooling": record["pooling"]}
    return config.model.model_copy(update=changed), record["curve"]


def _digest(config: Config, source: BackboneSource, prepared: Prepared, known_before: int) -> str:
    """Return 16 hex digits that change with all that the adapted weights depend on."""
    train = config.train
    said = {
        "backbone": source.digest(),
        "prepared": prepared.digest,
        "known_before": known_before,
        "seed": config.seed,
        "settings": [train.adapt, train.adapt_steps, train.adapt_learning_rate, train.precision],
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


@dataclass
class AdaptTask:
    """What a worker trains; `model` is `loss`, in the wrapper that exchanges gradients."""

    backbone: TextBackbone
    loss: nn.Module
    model: nn.Module
    optimizer: torch.optim.Optimizer
    material: Material
    train: TrainConfig
    device: torch.device

    @property
    def learning_backbone(self) -> TextBackbone:
        """The backbone, which learns."""
        return self.backbone


def build_adapt(job: AdaptJob, device: torch.device) -> AdaptTask:
    """Load texts and backbone, and make the model at step 0."""
    torch.manual_seed(job.seed)
    backbone = job.source.load()
    loss: nn.Module = PairLoss(backbone)
    if job.train.adapt == "mlm":
        trusted = job.source.settings.trust_remote_code
        loss = LanguageLoss(backbone, job.source.locate(), trusted)
    if job.train.gradient_checkpointing:
        backbone.checkpoint_activations()
    if job.train.strategy == "fsdp":
        # A language model's head too: it may be tied to the backbone's table of tokens.
        whole = loss.model if isinstance(loss, LanguageLoss) else backbone.model
        shard(whole, device, job.train.precision)
    loss.train()
    model = join_workers(loss, device)
    # All of it at one rate from the first step, whatever is thawed later.
    rate = job.train.adapt_learning_rate
    train = job.train.model_copy(update={"learning_rate": rate, "unfreeze_epochs": 0})
    optimizer = build_optimizer(list(loss.parameters()), {}, train)
    with_pairs = train.adapt == "contrastive"
    material = gather_material(job.store, job.prepared, job.known_before, with_pairs)
    return AdaptTask(backbone, loss, model, optimizer, material, train, device)


@repeatable()
def adapt_loop(config: dict[str, Any]) -> None:
    """Adapt from the newest checkpoint on; rank 0 writes the backbone."""
    job: AdaptJob = config["job"]
    rank = ray.train.get_context().get_world_rank()
    task = build_adapt(job, ray.train.torch.get_device())
    progress = Progress("adapt")
    saved = read_checkpoint(job.store, config["folder"])
    if saved is not None:
        progress = saved.phases[-1]
        saved.restore(task)
    facts = {"seed": job.seed, "model": vars(job.source.settings), "train": vars(job.train)}
    tracked = Tracked(job.store, config["tracked"], "adapt", job.train.tracking, facts)
    tracker = open_tracker(tracked, progress.step, rank)
    while not progress.is_done:
        point = _run_round(job, task, progress, rank, tracker)
        progress.epoch += 1
        progress.is_done = progress.step >= job.train.adapt_steps
        progress.curve.append({"epoch": progress.epoch, **point})
        tracker.epoch(progress.step, progress.curve[-1])
        report_epoch(take_state(task, rank), [progress], None, rank)
    tracker.close()
    weights = take_state(task, rank).model
    if not rank:
        _export(job, task, weights, progress)


def _run_round(
    job: AdaptJob, task: AdaptTask, progress: Progress, rank: int, tracker: Tracker
) -> dict[str, float]:
    """Take the steps up to the next checkpoint; return the round's point of the curve."""
    began, first = time.perf_counter(), progress.step
    totals, norms = torch.zeros(2, dtype=torch.float64), []
    while progress.step < min(first + STEPS_A_ROUND, job.train.adapt_steps):
        torch.manual_seed(job.seed * 100_003 + progress.step * world_size() + rank)
        summed, count = _forward(task, progress.step, job.seed, rank)
        asked = sum_over_workers(torch.tensor([count])).item()
        # Workers' gradients are averaged; so that is the mean over all that was asked.
        (summed * world_size() / max(asked, 1)).backward()
        average_whole(task.model)
        norms.append(clip_gradients(list(task.loss.parameters()), task.train.clip_norm))
        set_rates(task.optimizer, progress.step, job.train.adapt_steps, 0, task.train)
        task.optimizer.step()
        task.optimizer.zero_grad(set_to_none=True)
        totals += torch.tensor([summed.item(), count])
        progress.step += 1
        own = {"loss": summed.item() / max(count, 1), "gradient_norm": norms[-1]}
        tracker.step(progress.step, own)
    total, count = sum_over_workers(totals).tolist()
    seconds = time.perf_counter() - began
    return {
        "loss": round(total / max(count, 1), 5),
        "learning_rate": float(f"{task.optimizer.param_groups[0]['lr']:.3g}"),
        "gradient_norm": round(float(np.mean(norms)), 4),
        "texts_per_s": round((progress.step - first) * TEXTS_A_STEP / seconds, 1),
        "seconds": round(seconds, 2),
        **memory(task.device),
    }


def _forward(task: AdaptTask, step: int, seed: int, rank: int) -> tuple[Tensor, int]:
    """Return the summed loss of this worker's share of a step, and of how many parts it is."""
    world = world_size()
    count = -(-TEXTS_A_STEP // world) * world
    first, second = task.material.draw(step, seed, count)
    texts = task.material.texts
    with autocast(task.device, task.train.precision):
        if task.train.adapt == "mlm":
            tokens = _tokens(task, [texts[place] for place in first[rank::world]])
            summed, asked = task.model(**tokens)
            return summed, asked
        own = [*first[rank::world], *second[rank::world]]
        seconds = np.concatenate([second[other::world] for other in range(world)])
        ids = (torch.from_numpy(part).to(task.device) for part in (first[rank::world], seconds))
        summed, asked = task.model(_tokens(task, [texts[place] for place in own]), *ids)
        return summed, asked


def _tokens(task: AdaptTask, texts: list[str]) -> dict[str, Tensor]:
    return {name: ids.to(task.device) for name, ids in task.backbone.tokenize(texts).items()}


def _export(
    job: AdaptJob, task: AdaptTask, weights: Mapping[str, Tensor], progress: Progress
) -> None:
    """Write the backbone with whole weights as a folder that `model.backbone` could name."""
    # Not the task's own: it may hold a share of the weights alone.
    (place,) = (n for n, part in task.loss.named_modules() if part is task.backbone.model)
    model = job.source.load().model
    model.load_state_dict(tensors_below(f"{place}.", weights))
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch)
        task.backbone.tokenizer.save_pretrained(scratch)
        for path in sorted(Path(scratch).iterdir()):
            job.store.write_bytes(f"{job.target}/{path.name}", path.read_bytes())
    record = {"pooling": task.backbone.pooling, "curve": progress.curve}
    job.store.write_json(f"{job.target}.json", record)
