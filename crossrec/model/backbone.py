"""A pretrained transformer that turns item text into vectors.

In: a folder of weights, or a hub id, and texts. Out: one L2-normalised float32 vector a text.

    backbone = load_backbone("/weights/minilm", max_tokens=64)
    vectors = encode_texts(backbone, ["Deep space photographs", "A chess primer"])   # (2, 384)

Tensor suffixes: B texts, T tokens, W width.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from crossrec.errors import ConfigError, explain

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOKENS_A_BATCH = 8_192
"""Padded tokens that one forward pass without gradients may hold (MiniLM: 90 MB of activations)."""


class TextBackbone(nn.Module):
    """Tokenizer, transformer and pooling in one: mean over tokens, then L2 norm."""

    def __init__(
        self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", max_tokens: int
    ) -> None:
        super().__init__()
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
        mask_BT1 = attention_mask.unsqueeze(-1).to(hidden_BTW.dtype)
        mean_BW = (hidden_BTW * mask_BT1).sum(1) / mask_BT1.sum(1).clamp(min=1)
        return nn.functional.normalize(mean_BW.float(), dim=-1)


def load_backbone(source: str, max_tokens: int, trust_remote_code: bool = False) -> TextBackbone:
    """Load a backbone from a local folder or by its hub id; weights are safetensors, never pickles.

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
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return TextBackbone(model.eval(), tokenizer, max_tokens)


def weights_digest(backbone: TextBackbone) -> str:
    """Return the sha256 of all weights and of how texts are cut."""
    digest = hashlib.sha256(f"mean|{backbone.max_tokens}".encode())
    for name, tensor in sorted(backbone.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@torch.inference_mode()
def encode_texts(backbone: TextBackbone, texts: Sequence[str]) -> np.ndarray:
    """Return (B, W) float32 vectors in the order of the texts; an empty text gets a zero vector."""
    vectors_BW = np.zeros((len(texts), backbone.width), np.float32)
    device = next(backbone.parameters()).device
    was_training = backbone.training
    backbone.eval()
    for indices in _batches_of_similar_length(texts, backbone.max_tokens):
        tokens = backbone.tokenize([texts[index] for index in indices])
        vectors_BW[indices] = (
            backbone(**{name: ids.to(device) for name, ids in tokens.items()}).cpu().numpy()
        )
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
