"""What the sequence encoder says of users without each one of their events, in one more pass.

    hidden_BPW = hidden_without(recommender, vectors_BLW, batch, lengths_B)

The encoder is causal, so its hidden state before the newest event has never seen that event. For
an older one the newest position alone reads the history again, without the event; what the
positions between them said with it stays. That is exact for the two newest events, costs one pass
for all of them, and no more than their order has to come out right; leaving each out of the whole
encoder would take as many passes as a history has events.

Tensor suffixes: B users, L positions (0 is "no event yet"), P the position that is left out (0: no
event is), H heads, W width, V width of a head.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from crossrec.model.recommender import HistoryBatch, Recommender, causal_mask, gap_bucket


def hidden_without(
    recommender: Recommender, vectors_BLW: Tensor, batch: HistoryBatch, lengths_B: Tensor
) -> Tensor:
    """Return hidden states (B, P, W) after each history without the event at each position.

    Args:
        recommender: in evaluation mode.
        vectors_BLW: learned vectors of the events.
        batch: the histories, as in `Recommender.encode`.
        lengths_B: events of each history, at least 1; what is left out beyond says nothing.
    """
    others_BLW = recommender.embed(vectors_BLW, batch)
    own_BPW = _own_input(recommender, others_BLW, batch, lengths_B)
    places_L = torch.arange(others_BLW.shape[1], device=lengths_B.device)
    newest_B1 = lengths_B.unsqueeze(1)
    # Who reads again comes after all that it reads: the newest event, or the one before it.
    reader_BP = newest_B1 - (places_L == newest_B1).long()
    is_left_out_PL = (places_L.unsqueeze(1) == places_L) & (places_L > 0)
    reads_BPL = (places_L < reader_BP.unsqueeze(2)) & ~is_left_out_PL
    layers = recommender.encoder.layers
    for number, layer in enumerate(layers):
        assert isinstance(layer, nn.TransformerEncoderLayer)
        own_BPW = _read_again(layer, own_BPW, others_BLW, reads_BPL)
        if number + 1 < len(layers):
            mask_LL = causal_mask(others_BLW)
            others_BLW = layer(others_BLW, src_mask=mask_LL, is_causal=True)
    assert recommender.encoder.norm is not None
    hidden_BPW: Tensor = recommender.encoder.norm(own_BPW)
    return hidden_BPW


def _own_input(
    recommender: Recommender, others_BLW: Tensor, batch: HistoryBatch, lengths_B: Tensor
) -> Tensor:
    """Return what the newest event starts from, (B, P, W).

    Without another event it is one place earlier; without the one before it, its gap is another.
    Where it is left out itself, the one before it is the newest.
    """
    users_B = torch.arange(len(lengths_B), device=lengths_B.device)
    before_B = (lengths_B - 2).clamp(min=0)
    days_B, days_before_B = batch.days_BL[users_B, lengths_B], batch.days_BL[users_B, before_B]
    gap_B = days_B - batch.days_BL[users_B, lengths_B - 1]
    longer_B = torch.where(lengths_B > 2, days_B - days_before_B, 0)
    of_gap_BW = recommender.gap(gap_bucket(longer_B)) - recommender.gap(gap_bucket(gap_B))
    newest_BW = others_BLW[users_B, lengths_B]
    place_LW = recommender.position
    earlier_BW = newest_BW + place_LW[lengths_B - 1] - place_LW[lengths_B]
    own_BPW = earlier_BW.unsqueeze(1).repeat(1, others_BLW.shape[1], 1)
    own_BPW[users_B, lengths_B - 1] += of_gap_BW
    own_BPW[users_B, lengths_B] = others_BLW[users_B, lengths_B - 1]
    own_BPW[:, 0] = newest_BW
    return own_BPW


def _read_again(
    layer: nn.TransformerEncoderLayer, own_BPW: Tensor, others_BLW: Tensor, reads_BPL: Tensor
) -> Tensor:
    """Run the newest position through a layer: it reads itself and some of the others."""
    attention = layer.self_attn

    def heads(part_BNW: Tensor) -> Tensor:
        split: Tensor = part_BNW.unflatten(-1, (attention.num_heads, -1))
        return split.transpose(1, 2)

    weights, biases = attention.in_proj_weight, attention.in_proj_bias
    width = own_BPW.shape[-1]
    own = functional.linear(layer.norm1(own_BPW), weights, biases)
    query_BHPV, own_key_BHPV, own_value_BHPV = map(heads, own.split(width, -1))
    others = functional.linear(layer.norm1(others_BLW), weights[width:], biases[width:])
    key_BHLV, value_BHLV = map(heads, others.split(width, -1))
    query_BHPV = query_BHPV * query_BHPV.shape[-1] ** -0.5
    logits_BHPL = query_BHPV @ key_BHLV.transpose(2, 3)
    logits_BHPL.masked_fill_(~reads_BPL.unsqueeze(1), -torch.inf)
    own_BHP1 = (query_BHPV * own_key_BHPV).sum(-1, keepdim=True)
    shares = torch.cat([logits_BHPL, own_BHP1], -1).softmax(-1)
    read_BHPV = shares[..., :-1] @ value_BHLV + shares[..., -1:] * own_value_BHPV
    own_BPW = own_BPW + attention.out_proj(read_BHPV.transpose(1, 2).flatten(2))
    more_BPW: Tensor = layer.linear2(layer.activation(layer.linear1(layer.norm2(own_BPW))))
    return own_BPW + more_BPW
