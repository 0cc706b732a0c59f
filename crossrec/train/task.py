"""The pieces of a training run, built from the store alone: text source, loss, optimizer, schedule.

    task = build_task(job, device)
    summed = task.loss(batch, targets, generator)

Tensor suffixes: U unique items, I items, T text width.
"""

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from crossrec.config import ModelConfig, TrainConfig
from crossrec.data.daily import load_activity
from crossrec.data.histories import Prepared, read_catalogue
from crossrec.data.imagefile import fetch_images
from crossrec.data.replay import Activity, before, sample_histories
from crossrec.model.adapters import (
    adapter_penalty,
    depths,
    schedule_adapter,
    select_trainable,
    step_adapter,
)
from crossrec.model.backbone import TextBackbone
from crossrec.model.biases import fit_biases
from crossrec.model.carry import carry_over
from crossrec.model.checkpoint import load_model
from crossrec.model.inference import ItemState, item_state
from crossrec.model.objectives import ItemTable, NextEventLoss, Objective
from crossrec.model.rating import RatingLoss, start_from_biases
from crossrec.model.recommender import Recommender
from crossrec.model.source import BackboneSource
from crossrec.model.vision import select_image_layers
from crossrec.schema import DOMAIN, ITEM_ID
from crossrec.storage import Store
from crossrec.train.continued import Anchor, Start
from crossrec.train.learning import LearningImages, LearningItems, LearningTexts
from crossrec.train.optimize import build_optimizer, set_rates
from crossrec.train.sharding import clip_gradients, is_sharded, shard
from crossrec.vectorcache import read_vectors


@dataclass(frozen=True)
class TrainJob:
    """One training run: on which days, for how long, and where its inputs lie.

    known_before: events of this day and later are not trained on. start: a model to go on from, on
    events that it has not seen; earlier: (start, stop) days of the hold-out beside which that model
    was judged. valid: (start, stop) days of the validation slice; newest_of: in its place, under
    leave-one-out, an input whose users' newest events an epoch is judged by. Without either all
    epochs are trained, and the last is kept. vectors: folder of the items' vectors before training:
    of their texts, and of their images where there are any.
    """

    store: Store
    prepared: Prepared
    vectors: str
    source: BackboneSource
    model: ModelConfig
    train: TrainConfig
    seed: int
    known_before: int
    valid: tuple[int, int] | None
    epochs: int
    start: Start | None = None
    earlier: tuple[int, int] | None = None
    newest_of: Prepared | None = None

    @property
    def is_validated(self) -> bool:
        """Whether epochs are judged, and the best is kept."""
        return self.valid is not None or self.newest_of is not None

    @property
    def bounds(self) -> tuple[tuple[int, int], ...]:
        """(start, stop) of the catalogue rows of each domain."""
        return tuple((domain.start, domain.stop) for domain in self.prepared.domains)

    @property
    def is_of_ratings(self) -> bool:
        """Whether ratings are what is predicted."""
        return self.train.objective == "mse"


@dataclass
class Task:
    """What a worker trains, and what validation needs beside it.

    learning: the items' vectors, where a backbone learns. vectors_IT: those before training.
    items: rows of the id embedding, as `model.checkpoint.Model.items`. passes: times that an epoch
    reads every history.
    """

    loss: NextEventLoss
    learning: LearningItems | None
    vectors_IT: Tensor
    items: pa.Table
    activity: Activity
    optimizer: torch.optim.Optimizer
    passes: int
    total_steps: int
    device: torch.device
    train: TrainConfig
    anchor: Anchor | None

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that learns."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    @property
    def trained(self) -> int:
        """Weights that learn."""
        return sum(parameter.numel() for parameter in self.parameters)

    @property
    def texts(self) -> LearningTexts | None:
        """The texts, where their backbone learns."""
        return self.learning.texts if self.learning is not None else None

    @property
    def images(self) -> LearningImages | None:
        """The images, where their backbone learns."""
        return self.learning.images if self.learning is not None else None

    @property
    def learning_backbone(self) -> TextBackbone | None:
        """The backbone of texts, where it learns."""
        return self.texts.backbone if self.texts is not None else None

    @property
    def items_read(self) -> int:
        """Times that an item went through a backbone that learns, in training."""
        return self.learning.items_read if self.learning is not None else 0

    @property
    def tokens_read(self) -> int:
        """Tokens, padding included, that a text backbone that learns has read in training."""
        return self.texts.tokens_read if self.texts is not None else 0

    def step(self, step: int, epoch: int) -> float:
        """Take an optimizer step, the gradients being there; return their norm before clipping."""
        set_rates(self.optimizer, step, self.total_steps, epoch, self.train)
        norm = clip_gradients(self.parameters, self.train.clip_norm)
        self.optimizer.step()
        if self.anchor is not None:
            self.anchor.pull(self.optimizer)
        if self.texts is not None:
            step_adapter(self.texts.backbone, step)
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def penalty(self) -> Tensor:
        """Return what is added to the mean loss of a step."""
        found = adapter_penalty(self.texts.backbone) if self.texts is not None else None
        return torch.zeros((), device=self.device) if found is None else found

    def item_state(self) -> ItemState:
        """Return the vectors of the whole catalogue under the current weights; all take part."""
        self.loss.eval()
        vectors_IT = self.vectors_IT if self.learning is None else self.learning.whole()
        return item_state(
            self.loss.recommender, vectors_IT, self.loss.items.ids_I, self.loss.items.counts_I
        )


def build_task(job: TrainJob, device: torch.device) -> Task:
    """Load texts, vectors and activity, and make the model at step 0."""
    catalogue = pa.concat_tables(
        read_catalogue(job.store, job.prepared, domain.name) for domain in job.prepared.domains
    )
    vectors = [read_vectors(job.store, job.vectors, domain.name) for domain in job.prepared.domains]
    vectors_IT = torch.from_numpy(np.concatenate(vectors)).to(device)
    activity = load_activity(job.store, job.prepared)
    counts = activity.counts(-(2**31), job.known_before)
    has_id = counts > 0
    items = (
        catalogue.select([DOMAIN, ITEM_ID])
        .append_column("events", pa.array(counts))
        .filter(pa.array(has_id))
    )
    ids = np.where(has_id, np.cumsum(has_id) - 1, -1)
    recommender = Recommender(
        job.model, vectors_IT.shape[1], items.num_rows, len(job.bounds), job.is_of_ratings
    )
    recommender.start_from(vectors_IT.cpu())
    if recommender.rating is not None:
        known = before(sample_histories(job.store, job.prepared), job.known_before)
        biases = fit_biases(known, job.bounds, len(has_id))
        start_from_biases(recommender.rating, biases, ids)
    if job.start is not None:
        names = [domain.name for domain in job.prepared.domains]
        carry_over(recommender, items, names, load_model(job.store, job.start.folder))
    learning, depth_of = _learning_items(job, catalogue, vectors_IT, device)
    table = ItemTable(
        torch.from_numpy(ids).to(device),
        torch.from_numpy(counts.astype(np.float32)).to(device),
        job.bounds,
        job.train.full_softmax_items,
        job.train.negatives,
        job.train.domain_balance,
    )
    kind = RatingLoss if job.is_of_ratings else NextEventLoss
    loss = kind(
        recommender,
        learning if learning is not None else vectors_IT.__getitem__,
        table,
        Objective(job.train.objective, job.train.gbce_t),
    ).to(device)
    passes, total_steps = count_steps(job, activity)
    if learning is not None and learning.texts is not None:
        schedule_adapter(learning.texts.backbone, total_steps)
    if job.train.compile:
        compile_modules(loss)
    head = [*recommender.parameters(), *loss.levels]
    optimizer = build_optimizer(head, depth_of, job.train)
    anchor = None
    if job.start is not None and job.train.anchor:
        anchor = Anchor(optimizer, job.train.anchor)
    return Task(
        loss,
        learning,
        vectors_IT,
        items,
        activity,
        optimizer,
        passes,
        total_steps,
        device,
        job.train,
        anchor,
    )


def _learning_items(
    job: TrainJob, catalogue: pa.Table, vectors_IT: Tensor, device: torch.device
) -> tuple[LearningItems | None, dict[nn.Parameter, int]]:
    """Let of both backbones learn what the settings name.

    Returns:
        The items' vectors, where one learns; what does, with how far below the top each part lies.
    """
    texts = images = None
    if job.model.backbone_learns:
        texts = LearningTexts(job.source.load(), catalogue["text"].to_pylist())
        _let_learn(texts.backbone, job, device)
    if job.model.images_learn:
        backbone = job.source.load_vision()
        select_image_layers(backbone, job.model)
        files = fetch_images(job.store, job.prepared)
        images = LearningImages(backbone, files, job.train.gradient_checkpointing)
    learners = [learner for learner in (texts, images) if learner is not None]
    depth_of = {
        part: depth
        for learner in learners
        for part, depth in depths(learner.backbone.model).items()
        if part.requires_grad
    }
    return LearningItems(vectors_IT, texts, images) if learners else None, depth_of


def _let_learn(backbone: TextBackbone, job: TrainJob, device: torch.device) -> None:
    select_trainable(backbone, job.model)
    if job.train.gradient_checkpointing:
        backbone.checkpoint_activations()
    if job.train.strategy == "fsdp":
        shard(backbone.model, device, job.train.precision)


def count_steps(job: TrainJob, activity: Activity) -> tuple[int, int]:
    """Return how often an epoch reads every history, and the optimizer steps of all, at most."""
    users = job.prepared.users
    if job.start is not None:
        new_events = int(activity.counts(job.start.known_before, job.known_before).sum())
        users = min(users, new_events + math.ceil(job.train.replay * users))
    a_pass = -(-users // job.train.batch_size)
    # What is new since a model to go on from is little on purpose.
    passes = -(-job.train.epoch_steps // max(a_pass, 1)) if job.start is None else 1
    # Not job.epochs: a refit goes through the rates that the chosen epoch had.
    steps = job.train.epochs * passes * a_pass
    return passes, min(steps, job.train.max_steps or steps)


def compile_modules(loss: NextEventLoss) -> None:
    """Compile in place what runs at every step; batches differ in length, so shapes are dynamic."""
    loss.recommender.encoder.compile(dynamic=True)
    # Shared out, a backbone comes together by hooks, which are not for a compiler.
    if isinstance(loss.text_of, LearningItems) and not is_sharded(loss.text_of):
        for learner in (loss.text_of.texts, loss.text_of.images):
            if learner is not None:
                learner.backbone.model.compile(dynamic=True)
