"""From the hidden states of a text's tokens to one vector: how, as its model was trained for.

    kind = sentence_pooling(folder) or pooling_of(model.config)      # "mean", "cls" or "last"
    vectors_BW = pool(hidden_BTW, mask_BT, kind)

Tensor suffixes: B texts, T tokens, W width.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from crossrec.errors import ConfigError, explain

if TYPE_CHECKING:
    from transformers import PretrainedConfig

POOLING = ("mean", "cls", "last")

SENTENCE_TRANSFORMERS = "1_Pooling/config.json"
"""Where sentence-transformers says how a model's vectors are pooled."""


def sentence_pooling(folder: Path) -> str | None:
    """Return the pooling that a sentence-transformers folder names; None where it names none.

    Raises:
        ConfigError: it is one that crossrec does not have.
    """
    path = folder / SENTENCE_TRANSFORMERS
    if not path.is_file():
        return None
    said = json.loads(path.read_text())
    chosen = sorted(
        name for name, value in said.items() if name.startswith("pooling_mode") and value
    )
    kinds = {
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_cls_token": "cls",
        "pooling_mode_lasttoken": "last",
    }
    if len(chosen) == 1 and chosen[0] in kinds:
        return kinds[chosen[0]]
    mend = f"choose one of {', '.join(POOLING)} by model.pooling"
    raise ConfigError(explain(str(path), "one known pooling", ", ".join(chosen) or "none", mend))


def pooling_of(config: "PretrainedConfig") -> str:
    """Return the pooling for an architecture: the last token of decoders, which alone reads all.

    Raises:
        ConfigError: the model is an encoder with a decoder.
    """
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    if config.is_encoder_decoder:
        mend = "use an encoder, such as BERT, or a decoder, such as Qwen"
        found = f"{config.model_type}, an encoder with a decoder"
        raise ConfigError(explain("model.backbone", "an encoder or a decoder", found, mend))
    is_causal = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    is_masked = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    is_decoder = getattr(config, "is_decoder", False) or (is_causal and not is_masked)
    return "last" if is_decoder else "mean"


def pool(hidden_BTW: Tensor, mask_BT: Tensor, kind: str) -> Tensor:
    """Return (B, W): the mean over real tokens, the first token's state, or the last real one's.

    Args:
        hidden_BTW: hidden states; padding on the right.
        mask_BT: 1 for real tokens, int64.
        kind: of POOLING.
    """
    if kind == "cls":
        return hidden_BTW[:, 0]
    if kind == "last":
        last_B = mask_BT.sum(1).clamp(min=1) - 1
        return hidden_BTW[torch.arange(len(last_B), device=last_B.device), last_B]
    mask_BT1 = mask_BT.unsqueeze(-1).to(hidden_BTW.dtype)
    return (hidden_BTW * mask_BT1).sum(1) / mask_BT1.sum(1).clamp(min=1)
