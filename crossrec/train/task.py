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
from crossrec.data.histories import Prepared, read_catalogue
from crossrec.data.replay import Activity, load_activity
from crossrec.encode import BackboneSource, read_vectors
from crossrec.model.backbone import TextBackbone, encode_texts, select_trainable
from crossrec.model.inference import ItemState, item_state
from crossrec.model.objectives import ItemTable, NextEventLoss, Targets
from crossrec.model.recommender import HistoryBatch, Recommender
from crossrec.schema import DOMAIN, ITEM_ID
from crossrec.storage import Store

WARM_UP_STEPS = 50
WARM_UP_SHARE = 0.1
"""Steps over which the learning rate rises from 0, at most this share of all; then it falls along a
cosine to a tenth."""


@dataclass(frozen=True)
class TrainJob:
    """One training run: on which days, for how long, and where its inputs lie.

    known_before: events of this day and later are not trained on. valid: (start, stop) days of the
    validation slice; None trains all epochs and keeps the last. vectors: folder of text vectors of
    the backbone before training.
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

    @property
    def bounds(self) -> tuple[tuple[int, int], ...]:
        """(start, stop) of the catalogue rows of each domain."""
        return tuple((domain.start, domain.stop) for domain in self.prepared.domains)


class LearningTexts(nn.Module):
    """Text vectors through a backbone that learns: each call encodes anew, with gradients."""

    def __init__(self, backbone: TextBackbone, texts: list[str]) -> None:
        super().__init__()
        self.backbone = backbone
        self.texts = texts

    def forward(self, rows_U: Tensor) -> Tensor:
        """Return the text vectors (U, T) of catalogue rows; zero where there is no text."""
        texts = [self.texts[row] for row in rows_U.tolist()]
        tokens = {
            name: part.to(rows_U.device) for name, part in self.backbone.tokenize(texts).items()
        }
        has_text_U1 = torch.tensor([[bool(text)] for text in texts], device=rows_U.device)
        return torch.where(has_text_U1, self.backbone(**tokens), 0.0)


@dataclass
class Task:
    """What a worker trains, and what validation needs beside it.

    texts: learning text source, None where the backbone is frozen. vectors_IT: text vectors before
    training.
    items: rows of the id embedding, as `model.checkpoint.Model.items`.
    """

    loss: NextEventLoss
    texts: LearningTexts | None
    vectors_IT: Tensor
    items: pa.Table
    activity: Activity
    optimizer: torch.optim.Optimizer
    total_steps: int
    device: torch.device

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that learns."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def set_learning_rate(self, step: int) -> None:
        """Set each group's rate for a step, from 0."""
        done = min(step / max(self.total_steps, 1), 1.0)
        warm_up = max(1.0, min(WARM_UP_STEPS, self.total_steps * WARM_UP_SHARE))
        factor = min((step + 1) / warm_up, 1.0) * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor

    def item_state(self) -> ItemState:
        """Return the vectors of the whole catalogue under the current weights."""
        self.loss.eval()
        vectors_IT = self.vectors_IT
        if self.texts is not None:
            vectors_IT = torch.from_numpy(encode_texts(self.texts.backbone, self.texts.texts)).to(
                self.device
            )
        return item_state(
            self.loss.recommender, vectors_IT, self.loss.items.ids_I, self.loss.items.counts_I
        )


def idle_batch(domains: int) -> tuple[HistoryBatch, Targets]:
    """Return a batch without targets: its loss is 0, and it keeps workers in step."""
    nothing = torch.zeros(0, dtype=torch.int64)
    batch = HistoryBatch(
        torch.tensor([[-1, 0]]), torch.tensor([[domains, 0]]), torch.zeros(1, 2, dtype=torch.int32)
    )
    return batch, Targets(nothing, nothing, nothing, nothing)


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
    recommender = Recommender(job.model, vectors_IT.shape[1], items.num_rows, len(job.bounds))
    recommender.start_from(vectors_IT.cpu())
    texts = None
    learning: list[nn.Parameter] = []
    if job.model.trainable != "head":
        texts = LearningTexts(job.source.load(), catalogue["text"].to_pylist())
        learning = select_trainable(texts.backbone, job.model.trainable, job.model.top_layers)
    table = ItemTable(
        torch.from_numpy(np.where(has_id, np.cumsum(has_id) - 1, -1)).to(device),
        torch.from_numpy(counts.astype(np.float32)).to(device),
        job.bounds,
        job.train.full_softmax_items,
        job.train.negatives,
        job.train.domain_balance,
    )
    loss = NextEventLoss(
        recommender, texts if texts is not None else vectors_IT.__getitem__, table
    ).to(device)
    groups = _groups(
        list(recommender.parameters()), job.train.learning_rate, job.train.weight_decay
    )
    groups += _groups(learning, job.train.backbone_learning_rate, job.train.weight_decay)
    steps = job.train.epochs * -(-job.prepared.users // job.train.batch_size)
    return Task(
        loss,
        texts,
        vectors_IT,
        items,
        activity,
        torch.optim.AdamW(groups),
        min(steps, job.train.max_steps or steps),
        device,
    )


def _groups(
    parameters: list[nn.Parameter], peak: float, weight_decay: float
) -> list[dict[str, object]]:
    """Return optimizer groups: matrices decay, norms, biases and scalars do not."""
    matrices = [parameter for parameter in parameters if parameter.ndim > 1]
    others = [parameter for parameter in parameters if parameter.ndim <= 1]
    return [
        {"params": part, "lr": peak, "peak": peak, "weight_decay": decay}
        for part, decay in ((matrices, weight_decay), (others, 0.0))
        if part
    ]
