"""What a sequence encoder says after a history's newest event, without what it says before.

    hidden_BW = encode_newest(recommender, items.vectors_IW, batch, lengths_B)

The same as `recommender.encode(...)` at those positions, but users of similar length go together,
so that hardly any padding is read, and the last layer asks for one position of each user.

Tensor suffixes: B users, L positions, H heads, W width, V width of a head.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from crossrec.model.recommender import HistoryBatch, Recommender

USERS_A_PASS = 64
"""On a CPU, what a layer holds of so many users stays in the caches of its cores."""


def encode_newest(
    recommender: Recommender, vectors_IW: Tensor, batch: HistoryBatch, lengths_B: Tensor
) -> Tensor:
    """Return the hidden states (B, W) after each user's newest event.

    Args:
        recommender: in evaluation mode.
        vectors_IW: of the whole catalogue.
        batch: B histories.
        lengths_B: events in each: the position of the newest.
    """
    if not len(lengths_B):
        return vectors_IW.new_zeros(0, vectors_IW.shape[1])
    order_B = lengths_B.argsort(stable=True)
    size = USERS_A_PASS if vectors_IW.device.type == "cpu" else len(order_B)
    found = []
    for chosen_B in order_B.split(size):
        newest_B = lengths_B[chosen_B]
        part = _take(batch, chosen_B, int(newest_B[-1]) + 1)
        read_BLW = recommender.embed(vectors_IW[part.rows_BL.clamp(min=0)], part)
        found.append(_encode(recommender.encoder, read_BLW, newest_B))
    return torch.cat(found)[order_B.argsort()]


def _take(batch: HistoryBatch, chosen_B: Tensor, length: int) -> HistoryBatch:
    """Return some users' first `length` positions."""
    ratings_BL = batch.ratings_BL
    return HistoryBatch(
        batch.rows_BL[chosen_B, :length],
        batch.domains_BL[chosen_B, :length],
        batch.days_BL[chosen_B, :length],
        None if ratings_BL is None else ratings_BL[chosen_B, :length],
    )


def _encode(encoder: nn.TransformerEncoder, read_BLW: Tensor, newest_B: Tensor) -> Tensor:
    *earlier, last = encoder.layers
    for layer in earlier:
        read_BLW = _causal_layer(layer, read_BLW)
    hidden_BW = _newest_of_layer(last, read_BLW, newest_B)
    return hidden_BW if encoder.norm is None else encoder.norm(hidden_BW)


def _causal_layer(layer: nn.TransformerEncoderLayer, read_BLW: Tensor) -> Tensor:
    """Return what a layer (normed first) makes of every position."""
    asked, keys, values = (
        _by_head(layer, part) for part in _project(layer, layer.norm1(read_BLW), 0, 3)
    )
    found_BHLV = functional.scaled_dot_product_attention(asked, keys, values, is_causal=True)
    return _feed_forward(layer, read_BLW + layer.self_attn.out_proj(_side_by_side(found_BHLV)))


def _newest_of_layer(
    layer: nn.TransformerEncoderLayer, read_BLW: Tensor, newest_B: Tensor
) -> Tensor:
    """Return what a layer makes of one position of each user, (B, W)."""
    positions_L = torch.arange(read_BLW.shape[1], device=read_BLW.device)
    own_B1W = read_BLW[torch.arange(len(newest_B), device=newest_B.device), newest_B].unsqueeze(1)
    (asked_B1W,) = _project(layer, layer.norm1(own_B1W), 0, 1)
    keys_BLW, values_BLW = _project(layer, layer.norm1(read_BLW), 1, 3)
    is_known_B11L = (positions_L <= newest_B.unsqueeze(1))[:, None, None]
    found_BH1V = functional.scaled_dot_product_attention(
        _by_head(layer, asked_B1W),
        _by_head(layer, keys_BLW),
        _by_head(layer, values_BLW),
        attn_mask=is_known_B11L,
    )
    hidden_B1W = own_B1W + layer.self_attn.out_proj(_side_by_side(found_BH1V))
    return _feed_forward(layer, hidden_B1W).squeeze(1)


def _project(
    layer: nn.TransformerEncoderLayer, normed_BLW: Tensor, first: int, stop: int
) -> tuple[Tensor, ...]:
    """Return queries (0), keys (1) and values (2) from `first` to `stop` - 1, (B, L, W) each."""
    attention, width = layer.self_attn, normed_BLW.shape[-1]
    rows = slice(first * width, stop * width)
    weight, bias = attention.in_proj_weight[rows], attention.in_proj_bias[rows]
    return functional.linear(normed_BLW, weight, bias).chunk(stop - first, -1)


def _by_head(layer: nn.TransformerEncoderLayer, part_BLW: Tensor) -> Tensor:
    """Return (B, H, L, V)."""
    split: Tensor = part_BLW.unflatten(-1, (layer.self_attn.num_heads, -1))
    return split.transpose(1, 2)


def _side_by_side(found_BHLV: Tensor) -> Tensor:
    """Return (B, L, W)."""
    return found_BHLV.transpose(1, 2).flatten(2)


def _feed_forward(layer: nn.TransformerEncoderLayer, hidden_BLW: Tensor) -> Tensor:
    inner = functional.gelu(layer.linear1(layer.norm2(hidden_BLW)))
    output: Tensor = layer.linear2(inner)
    return hidden_BLW + output
