"""The whole configuration of a job: typed, bounded, frozen; a misspelt key is an error.

Every key with its meaning, unit and bounds; `configfile.load_config` reads one from a file:

    Config.model_validate({"storage": {"root": "/data/recs"}}).score.top_k    # 50
"""

import datetime as dt
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from crossrec.config_nightly import GateConfig, NightlyConfig
from crossrec.config_notify import NotifyConfig
from crossrec.config_score import CandidateRules, ScoreConfig
from crossrec.config_training import ModelConfig, Section, Share, TrainConfig
from crossrec.config_tune import TuneConfig

__all__ = [
    "BackboneName",
    "CandidateRules",
    "Config",
    "DataConfig",
    "EvaluateConfig",
    "GateConfig",
    "GroupsConfig",
    "ModelConfig",
    "NightlyConfig",
    "NotifyConfig",
    "PublishConfig",
    "ScoreConfig",
    "ShiftName",
    "StorageConfig",
    "TrainConfig",
    "TuneConfig",
]

DEFAULT_TEXT_COLUMNS = ("title", "category", "brand", "description")

DEFAULT_AVAILABLE_FROM = "available_from"

BackboneName = Literal["top", "lora", "bottleneck", "all"]

ShiftName = Literal["translated", "truncated", "shock", "wrong", "scarce"]


class DataConfig(Section):
    """What goes in."""

    events: str | None = None
    """Parquet file or folder of events; local path or any fsspec URI."""
    items: str | None = None
    """Parquet file or folder of items."""
    users: str | None = None
    """Parquet with a `user_id` column: users who get lists even without events; `evaluate.groups`
    and `score.candidates.requires` read its other columns."""
    forget: str | None = None
    """Parquet with a `user_id` column: users who asked to be forgotten. Nothing of theirs is kept,
    not even as a reject, trained on or listed; `publish.py purge` clears earlier runs of them."""
    relations: str | None = None
    """Parquet with `item_id`, `relation`, `related_item_id`, and perhaps `domain`, `related_domain`
    and `weight`: items that belong together by what a team knows. They become one more part of the
    score, at the weight that it earns."""
    demo_users: Annotated[int, Field(ge=50, le=1_000_000)] | None = None
    """Where `events` and `items` are not given: make the embedded demo data of this many users and
    use it."""
    demo: Literal["mixed", "collaboration", "trend"] = "mixed"
    """What decides the next event of the demo data: a little of everything, hidden groups of items,
    or text and this week's fashion."""
    demo_relations: bool = False
    """Also use relations between the items of the demo data, drawn from its hidden structure."""
    text_columns: tuple[str, ...] | None = None
    """Columns of items that make up its text, in this order; default: those of title, category,
    brand, description that the table has."""
    available_from: str = DEFAULT_AVAILABLE_FROM
    """Column of items with the date or timestamp from which an item can be had: its age counts from
    then, else from its first event. The default is used where the table has it."""
    as_of: dt.datetime | None = None
    """The only "now": later events are ignored. Default: the newest accepted event."""
    buckets: Annotated[int, Field(ge=32, le=100_000)] | None = None
    """Buckets of users, each one unit of work; default: one a million events, at least 32."""
    max_reject_share: Share = 0.1
    """Above this share of rejected events or items the job stops."""

    @model_validator(mode="after")
    def _needs_an_input(self) -> "DataConfig":
        if (self.events is None) != (self.items is None):
            missing = "data.items" if self.items is None else "data.events"
            raise ValueError(f"data.events and data.items go together; {missing} is not given")
        return self


class StorageConfig(Section):
    """Where results go."""

    root: str
    """Folder of all results; local path or any fsspec URI."""
    options: dict[str, Any] = Field(default_factory=dict, repr=False)
    """Options of the fsspec filesystem, for input and output (for s3: endpoint_url, key, secret);
    never logged."""


class GroupsConfig(Section):
    """Columns of the input whose values are judged apart."""

    items: tuple[str, ...] = ()
    """Of `data.items` (brand, category): how what users chose of each value was found, and how much
    of it is shown."""
    users: tuple[str, ...] = ()
    """Of `data.users` (country, age band): how well the users of each value are served."""


class EvaluateConfig(Section):
    """Judging."""

    protocol: Literal["time", "leave_one_out"] = "time"
    """What is judged: what users do in the newest days, or each user's newest event with all else
    known, other users' later events too (for comparison with papers). The latter chooses and weighs
    by the event before it."""
    holdout_days: Annotated[int, Field(ge=1, le=3650)] = 14
    """Newest days of the input that are only judged, never chosen by; how far ahead the model
    learns to look."""
    backbones: tuple[BackboneName, ...] = ("top",)
    """What the study lets learn of a backbone that the night leaves frozen, one beside the other,
    each from the night's trained head on: its top layers, LoRA, bottleneck adapters, all of it. The
    head goes on at a tenth of its rate, adapters learn at ten times the backbone's."""
    backbone_steps: Annotated[int, Field(ge=1)] = 100
    """Steps for which it learns."""
    groups: GroupsConfig = Field(default_factory=GroupsConfig)
    """Columns of items and users whose values are judged apart, with gaps and intervals."""
    steering: bool = False
    """Also judge lists at several values of `score.popularity_control` and `score.diversity`, to
    see what each costs; else at those of the config alone."""
    study: bool = False
    """Also train the model anew with other seeds, without parts of its knowledge, for each domain
    alone and with a backbone that learns, and report what each is worth; takes many times as
    long."""
    shifts: tuple[ShiftName, ...] = ()
    """Also train the model anew on data gone wrong, and report what is left of its quality: of the
    largest domain the texts translated into made-up words or truncated to ten characters, a few
    items rising to a third of the events, or all but 100 events gone; or a tenth of all events
    wrong."""

    @model_validator(mode="after")
    def _shifts_come_before_a_day(self) -> "EvaluateConfig":
        if self.shifts and self.protocol != "time":
            raise ValueError("evaluate.shifts needs evaluate.protocol time: they end on a day")
        return self

    @property
    def has_study(self) -> bool:
        """Whether other models are trained once the lists are there."""
        return self.study or bool(self.shifts)


class PublishConfig(Section):
    """Publication."""

    keep_runs: Annotated[int, Field(ge=1, le=10_000)] = 7
    """Published runs that stay; older ones are removed, never the current one, and with them nights
    of their time that came to nothing."""


class Config(Section):
    """A job's configuration."""

    run_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")] = Field(
        default_factory=lambda: dt.datetime.now(dt.UTC).strftime("%Y-%m-%d")
    )
    """Name of the run: a rerun under the same name continues it. Default: today's date in UTC."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 17
    """Seed of everything random."""
    data: DataConfig = Field(default_factory=DataConfig)
    storage: StorageConfig
    model: ModelConfig = Field(default_factory=ModelConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    score: ScoreConfig = Field(default_factory=ScoreConfig)
    publish: PublishConfig = Field(default_factory=PublishConfig)
    gate: GateConfig = Field(default_factory=GateConfig)
    nightly: NightlyConfig = Field(default_factory=NightlyConfig)
    notify: NotifyConfig = Field(default_factory=NotifyConfig)
    tune: TuneConfig = Field(default_factory=TuneConfig)

    @model_validator(mode="after")
    def _chances_are_of_days_ahead(self) -> "Config":
        if self.train.probabilities and self.evaluate.protocol != "time":
            raise ValueError(
                "train.probabilities needs evaluate.protocol time: chances are of days to come"
            )
        return self

    @model_validator(mode="after")
    def _nothing_is_without_effect(self) -> "Config":
        model, train = self.model, self.train
        if self.evaluate.groups.users and self.data.users is None:
            raise ValueError("evaluate.groups.users needs data.users, whose columns they are")
        if self.score.candidates.requires and self.data.users is None:
            raise ValueError("score.candidates.requires needs data.users, whose columns it names")
        asks = {
            "train.layer_decay": train.layer_decay != 1,
            "train.unfreeze_epochs": train.unfreeze_epochs > 0,
            "train.gradient_checkpointing": train.gradient_checkpointing,
        }
        idle = [name for name, is_set in asks.items() if is_set]
        if idle and not (model.backbone_learns or model.images_learn):
            raise ValueError(
                f"{', '.join(idle)}: the backbone learns nothing; set model.trainable, "
                "model.adapter or model.image_trainable, or leave it out"
            )
        if train.strategy == "fsdp":
            if model.images_learn:
                raise ValueError(
                    "train.strategy fsdp: it shares out text backbones, not model.image_backbone; "
                    "use ddp, or set model.image_trainable to head"
                )
            if not model.backbone_learns and train.adapt == "none":
                raise ValueError(
                    "train.strategy fsdp: the backbone learns nothing, so nothing is shared out; "
                    "set model.trainable, model.adapter or train.adapt, or leave it out"
                )
            if model.adapter == "adalora":
                raise ValueError(
                    "train.strategy fsdp: adalora ranks whole matrices; use lora, or ddp"
                )
        if model.adapter_targets and model.adapter not in ("lora", "adalora"):
            raise ValueError("model.adapter_targets needs model.adapter lora or adalora")
        if train.unfreeze_epochs and model.adapter == "adalora":
            raise ValueError(
                "train.unfreeze_epochs: adalora needs all of its layers from the start"
            )
        return self

    def public(self) -> dict[str, Any]:
        """Return what decides a run's results as JSON-ready values, without secrets."""
        return self.model_dump(mode="json", exclude={"storage": {"options"}, "notify": True})
