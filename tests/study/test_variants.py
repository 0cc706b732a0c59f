import pytest

from crossrec.config import Config, TrainConfig
from crossrec.data.histories import DomainRange
from crossrec.study.variants import plan_variants

SHOP, ODD = DomainRange("shop", 0, 5, 9), DomainRange("a/b ..", 5, 7, 3)


def config(**model: object) -> Config:
    return Config.model_validate({"seed": 5, "storage": {"root": "/x"}, "model": model})


def test_variants_differ_from_the_run_in_one_thing_each() -> None:
    whole = config()
    found = {variant.name: variant for variant in plan_variants(whole, [SHOP, ODD])}
    assert list(found) == [
        "shop alone",
        "a/b .. alone",
        "without text",
        "without ids",
        "without time",
        "seed 6",
        "seed 7",
        "fine-tuned backbone: top 2 layers",
    ]
    assert found["shop alone"].domain == SHOP
    assert found["shop alone"].config == whole
    assert found["without ids"].config.model.leave_out == ("ids",)
    assert found["without ids"].config.train == whole.train
    assert found["seed 7"].config == whole.model_copy(update={"seed": 7})
    top = found["fine-tuned backbone: top 2 layers"]
    assert top.config.model.trainable == "top"
    assert [variant.name for variant in found.values() if variant.goes_on] == [top.name]


def test_a_frozen_backbone_is_compared_with_each_way_to_learn_that_is_asked_for() -> None:
    whole = Config.model_validate(
        {"storage": {"root": "/x"}, "evaluate": {"backbones": ["all", "lora", "bottleneck"]}}
    )
    found = [v.config.model for v in plan_variants(whole, [SHOP]) if v.kind == "backbone"]
    assert [(model.trainable, model.adapter) for model in found] == [
        ("all", "none"),
        ("head", "lora"),
        ("head", "bottleneck"),
    ]
    assert all(model.backbone_learns for model in found)


def test_an_ablation_goes_without_what_the_run_goes_without_too() -> None:
    found = plan_variants(config(leave_out=("ids",)), [SHOP])
    left_out = {v.name: v.config.model.leave_out for v in found if v.kind == "ablation"}
    assert left_out == {"without text": ("ids", "text"), "without time": ("ids", "time")}


def test_a_trained_head_learns_less_and_adapters_more() -> None:
    asked = {"storage": {"root": "/x"}, "evaluate": {"backbones": ["all", "lora", "bottleneck"]}}
    whole = Config.model_validate(asked)
    found = [v.config.train for v in plan_variants(whole, [SHOP]) if v.kind == "backbone"]
    head, backbone = whole.train.learning_rate, whole.train.backbone_learning_rate
    assert [train.learning_rate for train in found] == [pytest.approx(head / 10)] * 3
    rates = [train.backbone_learning_rate / backbone for train in found]
    assert rates == [1, pytest.approx(10), pytest.approx(10)]


@pytest.mark.parametrize(("workers", "expected"), [(2, 32), (24, 48)])
def test_the_small_batches_of_a_backbone_leave_every_worker_a_share(
    workers: int, expected: int
) -> None:
    said = {"num_workers": workers, "accumulate": 2, "batch_size": 256}
    whole = Config.model_validate({"storage": {"root": "/x"}, "train": said})
    (train,) = (v.config.train for v in plan_variants(whole, [SHOP]) if v.kind == "backbone")
    assert train.batch_size == expected
    assert TrainConfig.model_validate(train.model_dump()) == train


def test_variants_have_plain_folders_of_their_own() -> None:
    folders = [variant.folder for variant in plan_variants(config(), [SHOP, ODD])]
    assert len(set(folders)) == len(folders)
    assert all(folder.replace("-", "").isalnum() for folder in folders)


def test_a_single_domain_has_no_twin() -> None:
    assert all(variant.domain is None for variant in plan_variants(config(), [SHOP]))


@pytest.mark.parametrize(
    "learning",
    [
        {"trainable": "top"},
        {"trainable": "all"},
        {"image_backbone": "x", "image_trainable": "all"},
    ],
)
def test_a_backbone_that_learns_is_compared_with_a_frozen_one(learning: dict[str, str]) -> None:
    (backbone,) = [
        variant
        for variant in plan_variants(config(**learning), [SHOP])
        if variant.kind == "backbone"
    ]
    assert backbone.name == "frozen backbone, trained head"
    assert backbone.config.model.trainable == "head"
    assert not backbone.config.model.images_learn
