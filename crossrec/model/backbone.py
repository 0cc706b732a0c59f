"""A pretrained transformer that turns item text into vectors.

In: a folder of weights, or a hub id, and texts. Out: one L2-normalised float32 vector a text.

    backbone = load_backbone("/weights/minilm", max_tokens=64)
    vectors = encode_texts(backbone, ["Deep space photographs", "A chess primer"])   # (2, 384)

Tensor suffixes: B texts, T tokens, W width.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from crossrec.errors import ConfigError, explain
from crossrec.model.pooling import SENTENCE_TRANSFORMERS, pool, pooling_of, sentence_pooling

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOKENS_A_BATCH = 8_192
"""Padded tokens that one forward pass without gradients may hold (MiniLM: 90 MB of activations)."""


class TextBackbone(nn.Module):
    """Tokenizer, transformer and pooling in one, then the L2 norm."""

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        max_tokens: int,
        pooling: str = "mean",
    ) -> None:
        super().__init__()
        self.pooling = pooling
        self.model = model
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens

    @property
    def width(self) -> int:
        """Width of a vector."""
        return int(self.model.config.hidden_size)

    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Return `input_ids` and `attention_mask`, (B, T) int64, padded to the longest text."""
        tokens = self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        )
        return {name: tokens[name] for name in ("input_ids", "attention_mask")}

    def checkpoint_activations(self) -> None:
        """Compute activations again in the backward pass, where the model can."""
        model: Any = self.model
        model.activation_checkpointing_enable({"use_reentrant": False})

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return (B, W) unit vectors; differentiable."""
        hidden_BTW = self.model(
            input_ids=input_ids, attention_mask=attention_mask
        ).last_hidden_state
        pooled_BW = pool(hidden_BTW, attention_mask, self.pooling)
        return nn.functional.normalize(pooled_BW.float(), dim=-1)


def load_backbone(
    source: str, max_tokens: int, trust_remote_code: bool = False, pooling: str = "auto"
) -> TextBackbone:
    """Load a backbone from a local folder or by its hub id; weights are safetensors, never pickles.

    Args:
        source: folder or id.
        max_tokens: of a text that are read.
        trust_remote_code: whether code that comes with it may run.
        pooling: as `model.pooling`; auto: as sentence-transformers' file beside the weights says,
            else by the architecture.

    Raises:
        ConfigError: there is no such model, or it holds no safetensors or no tokenizer.
    """
    # Here, because it takes 6 s of CPU, which processes that load no backbone do without.
    from transformers import AutoConfig, AutoModel, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
        # Without files transformers makes up a tokenizer that knows no word.
        if len(tokenizer) <= len(tokenizer.all_special_ids):
            raise ValueError("no vocabulary of a tokenizer")
        model = AutoModel.from_pretrained(
            source,
            config=config,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            dtype=torch.float32,
        )
    except (OSError, ValueError) as error:
        found = " ".join(str(error).split())[:200]
        mend = (
            "check the path or id, and that it holds config.json, model.safetensors and a tokenizer"
        )
        raise ConfigError(
            explain(f"model.backbone {source}", "a pretrained model", found, mend)
        ) from error
    if pooling == "auto":
        pooling = sentence_pooling(_pooling_folder(source)) or pooling_of(config)
    _prepare_padding(tokenizer, source)
    return TextBackbone(model, tokenizer, max_tokens, pooling).eval()


def _pooling_folder(source: str) -> Path:
    """Return the folder that may say how to pool: of a hub id, where it is cached."""
    if Path(source).is_dir():
        return Path(source)
    from transformers.utils.hub import cached_file

    found = cached_file(
        source,
        SENTENCE_TRANSFORMERS,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return Path(found).parents[1] if found else Path(source)


def _prepare_padding(tokenizer: "PreTrainedTokenizerBase", source: str) -> None:
    """Let short texts be padded on the right, where no position shifts, by some token."""
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        mend = "give the tokenizer a pad_token in tokenizer_config.json"
        expected = "a tokenizer with a padding token, or one that ends texts"
        raise ConfigError(explain(f"model.backbone {source}", expected, "neither", mend))


def weights_digest(backbone: TextBackbone) -> str:
    """Return the sha256 of all weights and of how texts are cut."""
    digest = hashlib.sha256(f"{backbone.pooling}|{backbone.max_tokens}".encode())
    for name, tensor in sorted(backbone.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# Not inference_mode: what FSDP gathers in it could not be used for gradients afterwards.
@torch.no_grad()
def encode_texts(
    backbone: TextBackbone, texts: Sequence[str], share: tuple[int, int] = (0, 1)
) -> np.ndarray:
    """Return (B, W) float32 vectors in the order of the texts; an empty text gets a zero vector.

    Args:
        backbone: on any device.
        texts: in any order.
        share: rank and number of workers, each of which encodes every so-manieth batch; the
            vectors of the others' texts are zero.
    """
    vectors_BW = np.zeros((len(texts), backbone.width), np.float32)
    device = next(backbone.parameters()).device
    was_training = backbone.training
    backbone.eval()
    rank, world = share
    batches = list(_batches_of_similar_length(texts, backbone.max_tokens))
    for first in range(0, len(batches), world):
        # All workers make as many passes, the last one perhaps for nothing: under FSDP each pass
        # needs all of them.
        indices = batches[min(first + rank, len(batches) - 1)]
        tokens = backbone.tokenize([texts[index] for index in indices])
        encoded_BW = backbone(**{name: ids.to(device) for name, ids in tokens.items()})
        if first + rank < len(batches):
            vectors_BW[indices] = encoded_BW.cpu().numpy()
    backbone.train(was_training)
    return vectors_BW


def _batches_of_similar_length(texts: Sequence[str], max_tokens: int) -> Iterator[np.ndarray]:
    """Yield indices of non-empty texts, short ones first, so that little of a batch is padding."""
    characters = np.fromiter((len(text) for text in texts), np.int64, len(texts))
    order = np.argsort(characters, kind="stable")
    order = order[characters[order] > 0]
    # 3: below the characters a token has in most languages' word pieces, so the estimate errs to
    # more.
    tokens = np.minimum(characters[order] // 3 + 3, max_tokens)
    start = 0
    while start < len(order):
        stop = start + 1
        while (
            stop < len(order)
            and tokens[stop] * (stop + 1 - start) <= TOKENS_A_BATCH
            and stop - start < 512
        ):
            stop += 1
        yield order[start:stop]
        start = stop
