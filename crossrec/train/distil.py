"""A small query encoder: one layer that learns to ask what the model's own encoder asks.

    facts = distil(store, prepared, {folder: day}, seed)     # small.safetensors, small.json

Item vectors, the embeddings of events and the head that asks stay those of the model; the layer
takes the place of all of its layers. The teacher's questions at every position of the histories it
learned from are all that is learned from, so that nothing is seen of a hold-out, nor of what came
next. A model whose sequence has no weight is scored without an encoder, so that there is nothing to
distil.

Tensor suffixes: B users, L positions, N positions that are asked at, W width.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor, nn

from crossrec.data.histories import Prepared
from crossrec.data.replay import Histories, before, pad, sample_histories, select_users
from crossrec.encode import encode_catalogue
from crossrec.model.checkpoint import digest_of, load_fusions, load_model, save_small, small_of
from crossrec.model.inference import ItemState, to_batch, user_queries
from crossrec.model.recommender import (
    GAP_DAYS,
    HistoryBatch,
    Recommender,
    causal_mask,
    make_encoder,
    recent_mean,
)
from crossrec.model.source import BackboneSource
from crossrec.nodes import torch_threads
from crossrec.runlog import log
from crossrec.storage import Store
from crossrec.train.moments import whole_catalogue
from crossrec.train.repeat import repeatable

LAYERS = 1
"""All of its positions but the newest are read for keys and values alone (`model.newest`): a layer
below it would cost several times as much."""

STEPS, USERS_A_STEP = 300, 64
LEARNING_RATE = 2e-3

CHECKED_SHARE = 0.1
"""Of the users: not learned from, so that they tell how near the small encoder comes."""

THREADS = 2


@dataclass(frozen=True)
class DistilJob:
    """A model to distil: its folder, that of its texts' vectors, the day up to which it learned."""

    store: Store
    prepared: Prepared
    model: str
    vectors: str
    day: int
    seed: int


def distil(store: Store, prepared: Prepared, days: Mapping[str, int], seed: int) -> dict[str, Any]:
    """Give models a small encoder beside their own, on an initialised Ray.

    Args:
        store: of the run.
        prepared: the input.
        days: by folder of each model, up to which it has learned. A model that has its small
            encoder already keeps it.
        seed: of what is drawn.

    Returns:
        What small.json of the last one says, or `nothing`: why there is nothing to distil.
    """
    histories = ray.put(sample_histories(store, prepared))
    found: dict[str, Any] = {}
    for folder, day in days.items():
        reason = why_nothing(store, folder)
        if reason is not None:
            log.info("finetune: no small encoder: %s", reason)
            return {"nothing": reason}
        settings = load_model(store, folder).settings
        vectors = encode_catalogue(store, prepared, BackboneSource(store, settings, folder))
        job = DistilJob(store, prepared, folder, vectors, day, seed)
        found = ray.get(_distil.remote(job, histories))
        said = ", ".join(f"{name} {value}" for name, value in found.items())
        log.info("finetune: a small encoder beside %s, %s", folder, said)
    return found


def why_nothing(store: Store, folder: str) -> str | None:
    """Return why a small encoder of a model would save nothing; None where it would."""
    recommender = load_model(store, folder).recommender
    if len(recommender.encoder.layers) <= LAYERS:
        return f"model.layers is {len(recommender.encoder.layers)}"
    if recommender.rating is None and not load_fusions(store, folder)["model"].sequence:
        return "the sequence has earned no weight, and scoring goes without its encoder"
    return None


@ray.remote(num_cpus=THREADS, max_retries=2)
def _distil(job: DistilJob, histories: Histories) -> dict[str, Any]:
    with torch_threads(THREADS):
        return make_small(job, histories)


def make_small(job: DistilJob, histories: Histories) -> dict[str, Any]:
    """Distil a model and write what was made, unless that is there; return what small.json says."""
    model = load_model(job.store, job.model)
    done = small_of(job.store, job.model)
    if done is not None and done["distilled_from"] == digest_of(model.recommender.encoder):
        return done
    items = whole_catalogue(job.store, job.prepared, job.vectors, model)
    bounds = [(domain.start, domain.stop) for domain in job.prepared.domains]
    known = before(histories, job.day)
    model.recommender.requires_grad_(False)  # only the small one learns
    small, facts = teach(model.recommender, items, known, bounds, job.day, job.seed)
    return save_small(job.store, job.model, model.recommender.encoder, small, facts)


@repeatable()
def teach(
    recommender: Recommender,
    items: ItemState,
    histories: Histories,
    bounds: Sequence[tuple[int, int]],
    day: int,
    seed: int,
) -> tuple[nn.TransformerEncoder, dict[str, Any]]:
    """Return a small encoder for a model, and how near it comes.

    Args:
        recommender: the teacher, in evaluation mode; stays as it is.
        items: of the whole catalogue.
        histories: to learn from; only events before `day`.
        bounds: (start, stop) of each domain's catalogue rows.
        day: up to which the teacher has learned.
        seed: of what is drawn.

    Returns:
        The encoder, and `users` that it learned from, `steps`, and `distance` between what both ask
        on the day, of other users: of unit vectors, in a model of ratings of ratings.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    is_checked = rng.random(len(histories.lengths)) < CHECKED_SHARE
    # Of a handful of users, those that check are among those that teach.
    learned = select_users(histories, ~is_checked) if is_checked.any() else histories
    checked = select_users(histories, is_checked) if is_checked.any() else histories
    # Users of about as many events go together, so that hardly any padding is read.
    order = np.argsort(learned.lengths, kind="stable")
    parts = np.array_split(order, -(-len(order) // USERS_A_STEP)) if len(order) else []
    small = _start(recommender)
    optimizer = torch.optim.AdamW(small.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, STEPS)
    for _ in range(STEPS if parts else 0):
        chosen = np.zeros(len(order), bool)
        chosen[parts[rng.integers(len(parts))]] = True
        padded = pad(select_users(learned, chosen), recommender.settings.max_history)
        batch = to_batch(padded, bounds)
        distance = _distance(recommender, small, items, batch, torch.from_numpy(padded.lengths))
        optimizer.zero_grad()
        distance.backward()
        nn.utils.clip_grad_norm_(small.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    facts = {
        "users": len(learned.lengths),
        "steps": STEPS,
        "distance": distance_of(recommender, small, items, checked, bounds, day),
    }
    return small, facts


def _start(recommender: Recommender) -> nn.TransformerEncoder:
    """Return the encoder that learns, without dropout: the teacher's last layers and norm."""
    small = make_encoder(recommender.settings, LAYERS)
    small.layers = copy.deepcopy(recommender.encoder.layers[-LAYERS:])
    small.norm = copy.deepcopy(recommender.encoder.norm)
    return small.eval().requires_grad_(True)


def _distance(
    recommender: Recommender,
    small: nn.TransformerEncoder,
    items: ItemState,
    batch: HistoryBatch,
    lengths_B: Tensor,
) -> Tensor:
    """Return the mean squared distance of what both ask at every position of some histories.

    Each position asks for a domain and a time ahead that are drawn.
    """
    with torch.no_grad():
        vectors_BLW = items.vectors_IW[batch.rows_BL.clamp(min=0)]
        read_BLW = recommender.embed(vectors_BLW, batch)
        told_BLW = recommender.encoder(read_BLW, mask=causal_mask(read_BLW), is_causal=True)
        profile_BLW = recent_mean(vectors_BLW, batch.rows_BL >= 0)
    own_BLW = small(read_BLW, mask=causal_mask(read_BLW), is_causal=True)
    is_known_BL = torch.arange(read_BLW.shape[1]) <= lengths_B.unsqueeze(1)
    asked = int(is_known_BL.sum())
    domains_N = torch.randint(recommender.query_domain.num_embeddings, (asked,))
    elapsed_N = torch.tensor(GAP_DAYS, dtype=torch.int32)[torch.randint(len(GAP_DAYS), (asked,))]
    profile_NW = profile_BLW[is_known_BL]
    own_NW, own_N = recommender.questions(own_BLW[is_known_BL], profile_NW, domains_N, elapsed_N)
    with torch.no_grad():
        told_NW, told_N = recommender.questions(
            told_BLW[is_known_BL], profile_NW, domains_N, elapsed_N
        )
    apart_N = (own_NW - told_NW).square().sum(1) + (own_N - told_N).square()
    return apart_N.mean()


def distance_of(
    recommender: Recommender,
    small: nn.TransformerEncoder,
    items: ItemState,
    histories: Histories,
    bounds: Sequence[tuple[int, int]],
    day: int,
) -> float:
    """Return the root mean squared distance of what both ask users' domains for; 0 of nobody."""
    shallow = copy.copy(recommender)
    shallow._modules = {**recommender._modules, "encoder": small}
    told, own = (
        user_queries(model, items, histories, bounds, day) for model in (recommender, shallow)
    )
    apart_BD = (told.queries_BDW - own.queries_BDW).square().sum(2)
    apart_BD += (told.offsets_BD - own.offsets_BD).square()
    return round(float(apart_BD.mean().nan_to_num().sqrt()), 5)
