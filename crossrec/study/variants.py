"""The models that a study trains beside that of the run: one thing is different in each.

for variant in plan_variants(config, prepared.domains): ...
"""

from collections.abc import Sequence
from dataclasses import dataclass

from crossrec.config import BackboneName, Config
from crossrec.data.histories import DomainRange

OTHER_SEEDS = 2
LEFT_OUT = ("text", "ids", "time")


@dataclass(frozen=True)
class Variant:
    """A model to train.

    name: what the report calls it. kind: "seed", "ablation", "domain" or "backbone". config: of the
    training. domain: the only one that it knows, None for all. goes_on: whether it is trained from
    the run's own model on.
    """

    name: str
    kind: str
    config: Config
    domain: DomainRange | None = None
    goes_on: bool = False

    @property
    def folder(self) -> str:
        """Its folder within the study's; a domain's name may hold any character."""
        if self.domain is not None:
            return f"{self.kind}-{self.domain.start}"
        return self.name.replace(",", "").replace(":", "").replace(" ", "-")


FROZEN = "frozen backbone, trained head"
LEARNED = "fine-tuned backbone"
"""What the report calls a model by whether its backbone learned."""

TRAINED_HEAD_RATE = 0.1
"""Of the head's learning rate where it has been trained before: small batches at the whole rate
undo more than the backbone gains."""

ADAPTER_RATE = 10.0
"""Of the backbone's learning rate for adapters, which begin at nothing: some ten times what whole
weights take (Schulman et al. 2025, LoRA Without Regret)."""

_LEARNING: dict[BackboneName, tuple[str, dict[str, str]]] = {
    "top": ("top {layers} layers", {"trainable": "top"}),
    "lora": ("LoRA", {"adapter": "lora"}),
    "bottleneck": ("bottleneck adapters", {"adapter": "bottleneck"}),
    "all": ("all", {"trainable": "all"}),
}


def plan_variants(config: Config, domains: Sequence[DomainRange]) -> list[Variant]:
    """Return the models of a study.

    Each domain alone, where there are several; the model without each kind of knowledge; other
    seeds; and the backbone the other way: learning where it was frozen, frozen where it learned.
    All are trained from the start: what an earlier model knows came with what they go without. But
    a backbone learns from the run's own model on: in few steps a fresh head would learn nothing.
    """
    config = from_the_start(config)
    seeds = [
        Variant(f"seed {seed}", "seed", config.model_copy(update={"seed": seed}))
        for seed in range(config.seed + 1, config.seed + 1 + OTHER_SEEDS)
    ]
    already = config.model.leave_out
    ablations = [
        Variant(f"without {kind}", "ablation", _with_model(config, leave_out=(*already, kind)))
        for kind in LEFT_OUT
        if kind not in already
    ]
    alone = [Variant(f"{domain.name} alone", "domain", config, domain) for domain in domains]
    if len(domains) == 1:
        alone = []
    if _backbone_learns(config):
        frozen = _with_model(config, trainable="head", adapter="none", image_trainable="head")
        backbones = [Variant(FROZEN, "backbone", frozen)]
    else:
        backbones = [_learning(config, name) for name in config.evaluate.backbones]
    return [*alone, *ablations, *seeds, *backbones]


def from_the_start(config: Config) -> Config:
    """Return the config of a training that goes on from no earlier model."""
    return _with_train(config, continue_from=None)


def backbone_name(config: Config) -> str:
    """Return what the report calls a model by what of its backbone learned."""
    if _backbone_learns(config):
        return LEARNED
    return FROZEN


def _backbone_learns(config: Config) -> bool:
    return config.model.backbone_learns or config.model.images_learn


def _learning(config: Config, name: BackboneName) -> Variant:
    """Return the variant in which so much of the backbone learns, in steps that a CPU can take."""
    # At least one history for each worker and part of a step.
    size = max(32, config.train.num_workers * config.train.accumulate)
    steps = config.evaluate.backbone_steps
    small = {"batch_size": size, "full_softmax_items": 0, "negatives": 128, "max_steps": steps}
    said, values = _LEARNING[name]
    rates = {
        "learning_rate": config.train.learning_rate * TRAINED_HEAD_RATE,
        "backbone_learning_rate": config.train.backbone_learning_rate
        * (ADAPTER_RATE if "adapter" in values else 1.0),
    }
    model = _with_model(_with_train(config, **small, **rates, replay=1.0), **values)
    said = said.format(layers=config.model.top_layers)
    return Variant(f"{LEARNED}: {said}", "backbone", model, goes_on=True)


def _with_model(config: Config, **values: object) -> Config:
    return config.model_copy(update={"model": config.model.model_copy(update=values)})


def _with_train(config: Config, **values: object) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update=values)})
