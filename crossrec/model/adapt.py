"""What a backbone learns from before any label: masked words, next words, and texts that belong.

    loss = LanguageLoss(backbone, place)             # or PairLoss(backbone)
    summed, count = loss(**tokens)

Tensor suffixes: B texts, T tokens, V vocabulary, N pairs of a worker, M pairs of all workers, W
width.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed.nn.functional as collectives
from torch import Tensor, distributed, nn
from torch.nn import functional

from crossrec.errors import ConfigError, explain
from crossrec.model.backbone import TextBackbone

if TYPE_CHECKING:
    from transformers import PretrainedConfig

MASKED_SHARE, LEFT_SHARE, RANDOM_SHARE = 0.15, 0.1, 0.1
"""Of all tokens, those to predict; of these, those left as they are and those made random ones
(Devlin et al. 2019, section 3.1)."""

TEMPERATURE = 0.05
"""Of the contrastive loss (Gao, Yao and Chen 2021, section 3.2)."""

IGNORED = -100
"""Label of a token that is not predicted."""


def language_kind(config: "PretrainedConfig") -> str:
    """Return "masked" or "causal": the language model that an architecture has.

    Raises:
        ConfigError: it has neither.
    """
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    is_decoder = getattr(config, "is_decoder", False)
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not is_decoder:
        return "masked"
    if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "causal"
    expected = "a backbone that has a language model, for model.backbone"
    mend = "use train.adapt=contrastive"
    raise ConfigError(explain("train.adapt mlm", expected, config.model_type, mend))


class LanguageLoss(nn.Module):
    """The backbone with a head over its vocabulary: masked tokens, or of a decoder the next ones.

    The head comes from the backbone's folder where it has one, else it is fresh; its last layer is
    the backbone's table of tokens where the architecture ties the two.
    """

    def __init__(self, backbone: TextBackbone, source: str, trust_remote_code: bool) -> None:
        super().__init__()
        from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

        config = backbone.model.config
        self.is_masked = language_kind(config) == "masked"
        kind: Any = AutoModelForMaskedLM if self.is_masked else AutoModelForCausalLM
        self.model = kind.from_pretrained(
            source,
            config=config,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            dtype=torch.float32,
        )
        setattr(self.model, self.model.base_model_prefix, backbone.model)
        self.model.tie_weights()
        self.tokenizer = backbone.tokenizer
        if self.is_masked and self.tokenizer.mask_token_id is None:
            mend = "give it a mask_token in tokenizer_config.json, or use train.adapt=contrastive"
            expected = "a tokenizer with a token that masks"
            raise ConfigError(explain("train.adapt mlm", expected, "none", mend))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, int]:
        """Return the cross entropy summed over predicted tokens, and how many these are.

        Args:
            input_ids: (B, T) int64.
            attention_mask: (B, T), 1 for real tokens.
        """
        if self.is_masked:
            special = torch.tensor(self.tokenizer.all_special_ids, device=input_ids.device)
            may_hide_BT = attention_mask.bool() & ~torch.isin(input_ids, special)
            mask, words = self.tokenizer.mask_token_id, self.model.config.vocab_size
            shown_BT, labels_BT = hide_tokens(input_ids, may_hide_BT, mask, words)
        else:
            shown_BT = input_ids
            # Right padding: what follows the last real token is not predicted.
            following_BT = functional.pad(input_ids[:, 1:], (0, 1), value=IGNORED)
            is_real_BT = functional.pad(attention_mask[:, 1:], (0, 1)).bool()
            labels_BT = following_BT.masked_fill(~is_real_BT, IGNORED)
        asked_BT = labels_BT != IGNORED
        logits_BTV = self.model(input_ids=shown_BT, attention_mask=attention_mask).logits
        summed = functional.cross_entropy(
            logits_BTV[asked_BT].float(), labels_BT[asked_BT], reduction="sum"
        )
        return summed, int(asked_BT.sum())


def hide_tokens(
    ids_BT: Tensor, may_hide_BT: Tensor, mask_id: int, vocabulary: int
) -> tuple[Tensor, Tensor]:
    """Choose tokens to predict, and hide most of them; drawn from torch's generator.

    Args:
        ids_BT: token ids.
        may_hide_BT: where a token may be chosen.
        mask_id: of the token that masks.
        vocabulary: ids that exist.

    Returns:
        Ids as the model sees them, and labels: the id where a token was chosen, else IGNORED.
    """
    shape, device = ids_BT.shape, ids_BT.device
    chosen_BT = (torch.rand(shape, device=device) < MASKED_SHARE) & may_hide_BT
    fate_BT = torch.rand(shape, device=device)
    random_BT = torch.randint(vocabulary, shape, device=device)
    is_random_BT = chosen_BT & (fate_BT < RANDOM_SHARE)
    is_masked_BT = chosen_BT & (fate_BT >= RANDOM_SHARE + LEFT_SHARE)
    shown_BT = torch.where(is_random_BT, random_BT, ids_BT).masked_fill(is_masked_BT, mask_id)
    return shown_BT, ids_BT.masked_fill(~chosen_BT, IGNORED)


class PairLoss(nn.Module):
    """Texts that belong together beside those of all other pairs, of all workers."""

    def __init__(self, backbone: TextBackbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(
        self, tokens: Mapping[str, Tensor], first_N: Tensor, second_M: Tensor
    ) -> tuple[Tensor, int]:
        """Return the loss summed over this worker's pairs, and how many these are.

        Args:
            tokens: of the first texts of all pairs, then of the second ones, 2N texts.
            first_N: which text each first one is.
            second_M: which the second ones of all workers are, those of worker 0 first.
        """
        first_NW, second_NW = self.backbone(**tokens).chunk(2)
        second_MW, begin = second_NW, 0
        if distributed.is_initialized() and distributed.get_world_size() > 1:
            second_MW = torch.cat(collectives.all_gather(second_NW))
            begin = distributed.get_rank() * len(second_NW)
        return contrastive_loss(first_NW, second_MW, first_N, second_M, begin), len(first_N)


def contrastive_loss(
    first_NW: Tensor, second_MW: Tensor, first_N: Tensor, second_M: Tensor, begin: int = 0
) -> Tensor:
    """Return the cross entropy, summed, of finding each first text's partner among all seconds.

    Source: SimCSE, Gao, Yao and Chen 2021, eq. 1, with -log(exp(cos(n, n) / t) / sum over m of
    exp(cos(n, m) / t)). Seconds that are the same text as either of a pair are no negatives of it.

    Args:
        first_NW: unit vectors.
        second_MW: unit vectors; the partner of first n is second begin + n.
        first_N: which text each first one is.
        second_M: which text each second one is.
        begin: place of the first partner.
    """
    partner_N = begin + torch.arange(len(first_NW), device=first_NW.device)
    is_same_NM = (second_M == first_N[:, None]) | (second_M == second_M[partner_N, None])
    is_same_NM[torch.arange(len(first_NW), device=first_NW.device), partner_N] = False
    logits_NM = (first_NW @ second_MW.T).float() / TEMPERATURE
    logits_NM = logits_NM.masked_fill(is_same_NM, -torch.inf)
    return functional.cross_entropy(logits_NM, partner_N, reduction="sum")
