from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from crossrec.config import Config, ModelConfig, TrainConfig
from crossrec.data.histories import DomainRange, Prepared
from crossrec.model.checkpoint import Model, load_fusions, load_model, save_model
from crossrec.model.fusion import Fusion, Shortlists
from crossrec.model.recommender import Recommender
from crossrec.model.weights import BackboneFolder
from crossrec.storage import Store
from crossrec.train import fuse as fuse_module
from crossrec.train.export import describe_scores
from crossrec.train.fuse import (
    SEQUENCE_MOMENTS,
    FusePlan,
    fuse,
    plan_moments,
    plan_newest,
)
from crossrec.train.moments import GatherJob, Moment
from tests.small import shortlists

MOMENTS = 16
SELECTED, REFITTED = "selected", "refitted"
LONG = FusePlan(972, 986, 1_000, horizon=14, selected=SELECTED, refitted=REFITTED)
PREPARED = Prepared(
    "prepared/x", "x", (DomainRange("shop", 0, 1, 0), DomainRange("video", 1, 2, 0)), 1, 0, 0, 2, 0
)


def plan(valid: int, holdout: int, night: int) -> FusePlan:
    return FusePlan(valid, holdout, night, night - holdout, SELECTED, REFITTED)


def config_of(train: TrainConfig, **evaluate: Any) -> Config:
    said = {"storage": {"root": "/x"}, "evaluate": evaluate}
    return Config.model_validate(said | {"train": train.model_dump()})


def without_sequence(moments: Sequence[Moment]) -> list[Moment]:
    return [moment for moment in moments if not moment.with_sequence]


def test_moments_of_long_data_lie_a_horizon_apart_and_end_before_the_night() -> None:
    found = without_sequence(plan_moments(LONG, first_day=0))
    starts = [1_000 - 14 - 14 * index for index in range(MOMENTS + 1)]
    assert [moment.start for moment in found] == starts
    assert all(moment.stop - moment.start == 14 for moment in found)


def test_moments_before_the_holdout_are_as_many_as_the_night_learns_from() -> None:
    found = without_sequence(plan_moments(LONG, first_day=0))
    assert len([moment for moment in found if moment.stop <= LONG.holdout]) == MOMENTS


def test_moments_of_short_data_lie_closer() -> None:
    # A quarter of 100 days is too early; 61 days are left for starts, 61 // 16 = 3 a moment.
    found = without_sequence(plan_moments(plan(72, 86, 100), first_day=0))
    assert [moment.start for moment in found] == [86 - 3 * index for index in range(MOMENTS + 1)]


@pytest.mark.parametrize("first_day", [0, 40, 70])
def test_moments_begin_after_the_early_share(first_day: int) -> None:
    found = without_sequence(plan_moments(plan(72, 86, 100), first_day))
    earliest = first_day + (100 - first_day) // 4
    assert found
    assert all(earliest < moment.start <= 86 for moment in found)


def test_moments_of_few_days_are_a_day_apart() -> None:
    found = without_sequence(plan_moments(plan(80, 90, 100), first_day=76))
    # A quarter of 24 days is 6: the first start is day 83.
    assert [moment.start for moment in found] == list(range(90, 82, -1))


def test_moments_with_the_sequence_divide_the_validation_slice() -> None:
    found = plan_moments(plan(956, 986, 1_000), first_day=0)[-SEQUENCE_MOMENTS:]
    assert found == [Moment(956, 970, True), Moment(966, 980, True), Moment(976, 986, True)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with both models."""
    made = Store(str(tmp_path))
    (tmp_path / "none").mkdir()
    settings = ModelConfig(width=8, layers=1, heads=2)
    items = pa.table({"domain": ["shop"], "item_id": ["a"], "events": [1]})
    model = Model(settings, Recommender(settings, 8, 1, 2), items, ("shop", "video"))
    for folder in (SELECTED, REFITTED):
        save_model(made, folder, model, BackboneFolder(tmp_path / "none", "digest"))
    return made


Found = dict[str, dict[str, Fusion]]


def told(lists: Shortlists) -> Shortlists:
    """The lists with a sequence that says what is next."""
    return replace(lists, sequence_BS=lists.sequence_BS + lists.is_next_BS.float())


def fused(
    store: Store, monkeypatch: pytest.MonkeyPatch, seeds: dict[Moment, int], rate: float = 1e-3
) -> Found:
    """Fuse from random lists, one seed a moment; return the fusions by model."""
    lists: list[tuple[Moment, Shortlists]] = [
        (moment, told(shortlists(seed, lists=20, candidates=30))) for moment, seed in seeds.items()
    ]
    monkeypatch.setattr(fuse_module, "encode_catalogue", lambda *_: "vectors")
    monkeypatch.setattr(fuse_module, "_gather_all", lambda *_: lists)
    fuse(LONG, store, PREPARED, TrainConfig(learning_rate=rate), seed=17)
    return {folder: load_fusions(store, folder) for folder in (SELECTED, REFITTED)}


def differ(one: Fusion, other: Fusion) -> bool:
    others = other.state_dict()
    return any(not torch.equal(part, others[name]) for name, part in one.state_dict().items())


MOMENTS_OF_LONG = plan_moments(LONG, first_day=0)
SEEDS = {moment: number for number, moment in enumerate(MOMENTS_OF_LONG)}


def test_fuse_lets_the_holdout_judge_what_has_not_seen_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = fused(store, monkeypatch, SEEDS)
    late = {moment: seed + 100 for moment, seed in SEEDS.items() if moment.stop > LONG.holdout}
    assert len(late) == 1
    other = fused(store, monkeypatch, SEEDS | late)
    for variant, fusion in one[SELECTED].items():
        assert not differ(fusion, other[SELECTED][variant])
    assert differ(one[REFITTED]["model"], other[REFITTED]["model"])


def test_fuse_for_the_night_reads_the_newest_moments(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = fused(store, monkeypatch, SEEDS)
    oldest = without_sequence(MOMENTS_OF_LONG)[-1]
    other = fused(store, monkeypatch, SEEDS | {oldest: 100})
    for folder, is_changed in ((REFITTED, False), (SELECTED, True)):
        variants = [found[folder]["without_sequence"] for found in (one, other)]
        assert differ(*variants) == is_changed


def test_fuse_adds_the_sequence_to_the_model_alone(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = fused(store, monkeypatch, SEEDS)
    for fusions in found.values():
        assert fusions["model"].sequence != 0
        assert fusions["without_sequence"].sequence == fusions["step0"].sequence == 0
        assert torch.equal(fusions["model"].weights, fusions["without_sequence"].weights)
        assert not torch.equal(fusions["model"].weights, fusions["step0"].weights)
    one, other = (fusions["model"].state_dict() for fusions in found.values())
    learned = [name for name in one if name.startswith("sequence")]
    assert all(torch.equal(one[name], other[name]) for name in learned)
    assert "sequence_beside" in learned
    assert one["sequence_beside"].any()


def test_fuse_gives_no_weight_to_a_sequence_that_says_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.train.test_fuse.told", lambda lists: lists)
    for fusions in fused(store, monkeypatch, SEEDS).values():
        assert not differ(fusions["model"], fusions["without_sequence"])


def test_fuse_again_gives_the_same_weights(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (fused(store, monkeypatch, SEEDS) for _ in range(2))
    for folder, fusions in one.items():
        for variant, fusion in fusions.items():
            assert not differ(fusion, other[folder][variant])


@pytest.mark.parametrize("is_told", [True, False])
def test_leave_one_out_learns_all_at_once_for_both_models(
    store: Store, monkeypatch: pytest.MonkeyPatch, is_told: bool
) -> None:
    known = PREPARED.without_newest()
    lists = shortlists(1, lists=100, candidates=30)
    (moment,) = plan_newest(LONG, first_day=3)
    assert moment == Moment(3, 1_000, with_sequence=True, is_newest=True)
    found = [(moment, told(lists) if is_told else lists)]
    monkeypatch.setattr(fuse_module, "encode_catalogue", lambda *_: "vectors")
    monkeypatch.setattr(fuse_module, "_gather_all", lambda *_: found)
    facts = fuse(LONG, store, known, TrainConfig(), seed=17)
    assert (facts["moments"], facts["lists"]) == (1, 100)
    one, other = (load_fusions(store, folder) for folder in (SELECTED, REFITTED))
    assert all(not differ(fusion, other[variant]) for variant, fusion in one.items())
    assert one["without_sequence"].sequence == 0
    assert (facts["sequence"]["share"] > 0.5) == is_told
    # Where the sequence earns nothing the model is the one without.
    assert differ(one["model"], one["without_sequence"]) == is_told


@pytest.mark.parametrize(
    ("planner", "judged", "known"),
    [
        (plan_moments, PREPARED, PREPARED),
        (plan_newest, PREPARED.without_newest(), PREPARED.without_newest().without_newest()),
    ],
)
def test_moments_are_gathered_as_they_are_planned(
    monkeypatch: pytest.MonkeyPatch,
    planner: Callable[[FusePlan, int], list[Moment]],
    judged: Prepared,
    known: Prepared,
) -> None:
    cluster = SimpleNamespace(
        put=lambda value: value,
        get=lambda moment: [np.zeros(1)] * len(fields(Shortlists)),
        wait=lambda waiting, num_returns: (waiting[-1:], waiting[:-1]),
    )
    gather = SimpleNamespace(remote=lambda moment, *_: moment)
    days = np.arange(1_000)

    def load(_: Store, prepared: Prepared) -> Any:
        assert prepared == known
        return SimpleNamespace(days=days)

    monkeypatch.setattr(fuse_module, "ray", cluster)
    monkeypatch.setattr(fuse_module, "_gather", gather)
    monkeypatch.setattr(fuse_module, "load_activity", load)
    monkeypatch.setattr(fuse_module, "sample_histories", lambda *_: None)
    monkeypatch.setattr(fuse_module, "EventStates", SimpleNamespace(of=lambda _: None))
    job = GatherJob(Store("/x"), judged, SELECTED, "vectors", 100, seed=17)
    found = [moment for moment, _ in fuse_module._gather_all(job, LONG)]
    assert found == planner(LONG, int(np.quantile(days, 0.01)))


def test_fuse_without_any_moment_keeps_step_0(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for fusions in fused(store, monkeypatch, {}).values():
        assert not differ(fusions["model"], fusions["step0"])


def test_fuse_at_rate_0_keeps_step_0(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for fusions in fused(store, monkeypatch, SEEDS, rate=0.0).values():
        assert not differ(fusions["model"], fusions["step0"])


@pytest.mark.parametrize(
    ("settings", "is_linked"),
    [
        ({}, False),
        ({"probabilities": True}, True),
        ({"objective": "contrastive", "probabilities": True}, True),
        ({"objective": "gbce"}, True),
        ({"objective": "mse"}, False),
    ],
)
def test_fuse_fits_a_link_where_scores_are_to_be_probabilities(
    store: Store, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], is_linked: bool
) -> None:
    """The hold-out's on days of the validation slice, the night's on those of the hold-out."""
    asked: list[Moment] = []

    def link(_: GatherJob, moment: Moment, fusion: Fusion) -> dict[str, dict[str, float]]:
        asked.append(moment)
        fusion.link_D2[:, 0] = moment.start
        return {}

    monkeypatch.setattr(fuse_module, "encode_catalogue", lambda *_: "vectors")
    monkeypatch.setattr(fuse_module, "_gather_all", lambda *_: [])
    monkeypatch.setattr(fuse_module, "_link", link)
    train = TrainConfig(**settings)
    fuse(LONG, store, PREPARED, train, seed=17)
    slopes = [load_fusions(store, folder)["model"].link_D2[0, 0] for folder in (SELECTED, REFITTED)]
    assert slopes == ([LONG.valid, LONG.holdout] if is_linked else [0, 0])
    assert (describe_scores(config_of(train))["unit"] == "probability") == is_linked
    assert all(moment.with_sequence for moment in asked)


def test_leave_one_out_makes_no_probabilities(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of which days would they be?"""
    monkeypatch.setattr(fuse_module, "encode_catalogue", lambda *_: "vectors")
    monkeypatch.setattr(fuse_module, "_gather_all", lambda *_: [])
    monkeypatch.setattr(fuse_module, "_link", pytest.fail)
    train = TrainConfig(objective="gbce")
    fuse(LONG, store, PREPARED.without_newest(), train, seed=17)
    assert not load_fusions(store, REFITTED)["model"].has_link
    assert describe_scores(config_of(train, protocol="leave_one_out"))["unit"] == "none"


def test_scores_without_a_link_are_not_called_probabilities(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the data is so short that nobody is known before the days set aside."""
    said = describe_scores(config_of(TrainConfig(probabilities=True)))
    for folder in (SELECTED, REFITTED):
        config = store.read_json(f"{folder}/config.json")
        store.write_json(f"{folder}/config.json", config | {"facts": {"seed": 1, "scores": said}})

    def link(_: GatherJob, moment: Moment, fusion: Fusion) -> dict[str, dict[str, float]]:
        if moment.start == LONG.holdout:
            fusion.link_D2[:, 0] = 1.0
        return {}

    monkeypatch.setattr(fuse_module, "encode_catalogue", lambda *_: "vectors")
    monkeypatch.setattr(fuse_module, "_gather_all", lambda *_: [])
    monkeypatch.setattr(fuse_module, "_link", link)
    fuse(LONG, store, PREPARED, TrainConfig(probabilities=True), seed=17)
    facts = [load_model(store, folder).facts for folder in (SELECTED, REFITTED)]
    assert [found["seed"] for found in facts] == [1, 1]
    assert [found["scores"]["unit"] for found in facts] == ["none", "probability"]
