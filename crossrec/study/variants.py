"""The models that a study trains beside that of the run: one thing is different in each.

for variant in plan_variants(config, prepared.domains): ...
"""

from collections.abc import Sequence
from dataclasses import dataclass

from crossrec.config import Config
from crossrec.data.histories import DomainRange

OTHER_SEEDS = 2
LEFT_OUT = ("text", "ids", "time")


@dataclass(frozen=True)
class Variant:
    """A model to train.

    name: what the report calls it. kind: "seed", "ablation", "domain" or "backbone". config: of the
    training. domain: the only one that it knows, None for all.
    """

    name: str
    kind: str
    config: Config
    domain: DomainRange | None = None

    @property
    def folder(self) -> str:
        """Its folder within the study's; a domain's name may hold any character."""
        if self.domain is not None:
            return f"{self.kind}-{self.domain.start}"
        return self.name.replace(",", "").replace(" ", "-")


FROZEN = "frozen backbone, trained head"
"""What the report calls a model whose backbone learned nothing."""


def plan_variants(config: Config, domains: Sequence[DomainRange]) -> list[Variant]:
    """Return the models of a study.

    Each domain alone, where there are several; the model without each kind of knowledge; other
    seeds; and the backbone the other way: learning where it was frozen, frozen where it learned.
    All are trained from the start: what an earlier model knows came with what they go without.
    """
    config = from_the_start(config)
    seeds = [
        Variant(f"seed {seed}", "seed", config.model_copy(update={"seed": seed}))
        for seed in range(config.seed + 1, config.seed + 1 + OTHER_SEEDS)
    ]
    ablations = [
        Variant(f"without {kind}", "ablation", _with_model(config, leave_out=(kind,)))
        for kind in LEFT_OUT
        if kind not in config.model.leave_out
    ]
    alone = [Variant(f"{domain.name} alone", "domain", config, domain) for domain in domains]
    if len(domains) == 1:
        alone = []
    if _backbone_learns(config):
        other = _with_model(config, trainable="head", adapter="none", image_trainable="head")
    else:
        other = _with_learning_backbone(config)
    backbone = Variant(backbone_name(other), "backbone", other)
    return [*alone, *ablations, *seeds, backbone]


def from_the_start(config: Config) -> Config:
    """Return the config of a training that goes on from no earlier model."""
    return _with_train(config, continue_from=None)


def backbone_name(config: Config) -> str:
    """Return what the report calls a model by what of its backbone learned."""
    if _backbone_learns(config):
        return "fine-tuned backbone"
    return FROZEN


def _backbone_learns(config: Config) -> bool:
    return config.model.backbone_learns or config.model.images_learn


def _with_learning_backbone(config: Config) -> Config:
    """Return a config in which the top of the backbone learns, in steps that a CPU can take."""
    steps = config.evaluate.backbone_steps
    small = {"batch_size": 32, "full_softmax_items": 0, "negatives": 128, "max_steps": steps}
    return _with_train(_with_model(config, trainable="top"), **small)


def _with_model(config: Config, **values: object) -> Config:
    return config.model_copy(update={"model": config.model.model_copy(update=values)})


def _with_train(config: Config, **values: object) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update=values)})
