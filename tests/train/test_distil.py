"""How a small encoder learns what a model's own says; no Ray."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from crossrec.config import ModelConfig
from crossrec.data.histories import DomainRange, Prepared
from crossrec.errors import CrossrecError
from crossrec.model.checkpoint import (
    Model,
    encoder_of,
    load_model,
    save_fusions,
    save_model,
    save_small,
)
from crossrec.model.fusion import VARIANTS
from crossrec.model.inference import ItemState, item_state, user_queries
from crossrec.model.recommender import Recommender
from crossrec.model.weights import BackboneFolder
from crossrec.storage import Store
from crossrec.train import distil as distil_module
from crossrec.train.distil import DistilJob, make_small, teach, why_nothing
from tests.small import fresh_fusion, histories, random_users

BOUNDS = ((0, 4), (4, 9))
DAY = 20
USERS = histories(*random_users(17, users=60, items=9, days=DAY))
RATED = replace(
    USERS,
    values={"rating": np.random.default_rng(17).random(len(USERS.rows), np.float32)},
)
FOLDER = "models/m"
CATALOGUE = pa.table(
    {"domain": ["shop"] * 4 + ["video"] * 5, "item_id": list("abcdefghi"), "events": range(9)}
)


def teacher_of(layers: int = 3, with_ratings: bool = False) -> Recommender:
    torch.manual_seed(17)
    settings = ModelConfig(width=16, layers=layers, heads=2, max_history=8)
    made = Recommender(settings, text_width=12, items=9, domains=2, with_ratings=with_ratings)
    with torch.no_grad():
        made.projection.normal_()
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made.eval()


def items_of(recommender: Recommender) -> ItemState:
    draw = torch.Generator().manual_seed(17)
    texts = torch.randn(9, 12, generator=draw)
    return item_state(recommender, texts, torch.arange(9), torch.arange(9.0))


def distance(teacher: Recommender, encoder: torch.nn.TransformerEncoder) -> float:
    """How far apart all users' questions by both encoders are."""
    items, own = items_of(teacher), teacher.encoder
    told = user_queries(teacher, items, RATED, BOUNDS, DAY)
    teacher.encoder = encoder
    said = user_queries(teacher, items, RATED, BOUNDS, DAY)
    teacher.encoder = own
    apart = (told.queries_BDW - said.queries_BDW).square().sum(2)
    return float((apart + (told.offsets_BD - said.offsets_BD).square()).mean().sqrt())


@pytest.mark.parametrize("with_ratings", [False, True])
def test_the_small_encoder_comes_near_its_teacher_who_stays_as_it_was(
    monkeypatch: pytest.MonkeyPatch, with_ratings: bool
) -> None:
    monkeypatch.setattr(distil_module, "STEPS", 100)
    teacher = teacher_of(with_ratings=with_ratings)
    before = {name: part.clone() for name, part in teacher.state_dict().items()}
    small, facts = teach(teacher, items_of(teacher), RATED, BOUNDS, DAY, seed=17)
    assert len(small.layers) == 1
    # The teacher's last layer alone is where it starts.
    assert distance(teacher, small) < 0.7 * distance(teacher, start_of(teacher))
    assert 0 < facts["distance"] < 0.9 * distance(teacher, start_of(teacher))
    assert all(torch.equal(before[name], part) for name, part in teacher.state_dict().items())


def start_of(teacher: Recommender) -> torch.nn.TransformerEncoder:
    return distil_module._start(teacher)


def test_a_seed_gives_one_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distil_module, "STEPS", 3)
    teacher = teacher_of()
    one, again, other = (
        teach(teacher, items_of(teacher), USERS, BOUNDS, DAY, seed)[0].state_dict()
        for seed in (17, 17, 18)
    )
    assert all(torch.equal(part, again[name]) for name, part in one.items())
    assert any(not torch.equal(part, other[name]) for name, part in one.items())


def test_without_users_the_encoder_is_the_one_it_starts_from() -> None:
    teacher = teacher_of()
    small, facts = teach(teacher, items_of(teacher), histories(), BOUNDS, DAY, seed=17)
    start = start_of(teacher).state_dict()
    assert all(torch.equal(part, start[name]) for name, part in small.state_dict().items())
    assert (facts["users"], facts["distance"]) == (0, 0.0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(str(tmp_path))
    (tmp_path / "none").mkdir()
    return made


def save(store: Store, teacher: Recommender, weight: float) -> None:
    model = Model(teacher.settings, teacher, CATALOGUE, ("shop", "video"))
    save_model(store, FOLDER, model, BackboneFolder(Path(store.full_path("none")), "digest"))
    fusions = {variant: fresh_fusion() for variant in VARIANTS}
    with torch.no_grad():
        fusions["model"].sequence.fill_(weight)
    save_fusions(store, FOLDER, fusions)


@pytest.mark.parametrize(
    ("layers", "weight", "with_ratings", "reason"),
    [
        (2, 0.1, False, None),
        (2, 0.0, True, None),
        (2, 0.0, False, "the sequence has earned no weight"),
        (1, 0.1, False, "model.layers is 1"),
    ],
)
def test_nothing_is_distilled_where_it_would_save_nothing(
    store: Store, layers: int, weight: float, with_ratings: bool, reason: str | None
) -> None:
    save(store, teacher_of(layers, with_ratings), weight)
    found = why_nothing(store, FOLDER)
    assert found == reason or (found is not None and found.startswith(str(reason)))


def test_a_small_encoder_is_made_once_and_from_what_the_model_has_seen(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = teacher_of()
    save(store, teacher, 0.1)
    domains = (DomainRange("shop", 0, 4, 0), DomainRange("video", 4, 9, 0))
    prepared = Prepared("prepared/x", "x", domains, 32, 60, 0, 9, 0)
    monkeypatch.setattr(distil_module, "whole_catalogue", lambda *_: items_of(teacher))
    monkeypatch.setattr(distil_module, "STEPS", 2)
    known: list[int] = []

    def note(*arguments: Any) -> Any:
        known.append(int(arguments[2].days.max()))
        return teach(*arguments)

    monkeypatch.setattr(distil_module, "teach", note)
    job = DistilJob(store, prepared, FOLDER, "vectors", day=12, seed=17)
    said = make_small(job, USERS)
    assert make_small(job, USERS) == said == store.read_json(f"{FOLDER}/small.json")
    assert known == [11]
    with torch.no_grad():
        teacher.start.add_(1.0)
        teacher.encoder.layers[0].linear1.bias.add_(1.0)
    save(store, teacher, 0.1)
    assert make_small(job, USERS)["distilled_from"] != said["distilled_from"]
    assert known == [11, 11]


def test_a_model_is_loaded_with_the_encoder_that_is_asked_for(store: Store) -> None:
    teacher = teacher_of()
    save(store, teacher, 0.1)
    assert encoder_of(store, FOLDER, "small") == "full"
    with pytest.raises(CrossrecError, match=r"a small encoder of this model, found none"):
        load_model(store, FOLDER, "small")
    small = start_of(teacher)
    said = save_small(store, FOLDER, teacher.encoder, small, {"steps": 3})
    assert (said["layers"], said["steps"]) == (1, 3)
    assert [encoder_of(store, FOLDER, wanted) for wanted in ("full", "small")] == ["full", "small"]
    full, loaded = load_model(store, FOLDER), load_model(store, FOLDER, "small")
    assert len(full.recommender.encoder.layers) == 3
    found = loaded.recommender.encoder.state_dict()
    assert all(torch.equal(found[name], part) for name, part in small.state_dict().items())
    assert not loaded.recommender.training


def test_another_models_small_encoder_is_refused(store: Store) -> None:
    teacher = teacher_of()
    save(store, teacher, 0.1)
    save_small(store, FOLDER, teacher.encoder, start_of(teacher), {})
    with torch.no_grad():
        teacher.encoder.layers[0].linear1.bias.add_(1.0)
    save(store, teacher, 0.1)
    with pytest.raises(CrossrecError, match=r"a small encoder of this model, found another's"):
        load_model(store, FOLDER, "small")
