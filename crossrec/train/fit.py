"""How a fusion learns: on shortlists of hard candidates at past moments, by a smooth NDCG.

    fit(fusion, lists, learning_rate, seed)                 # all but the sequence
    fit_sequence(fusion, unseen, learning_rate, seed)       # from moments its model knows not
    earned = earn(fusion, unseen, learning_rate, seed)      # how much of that weight to keep
    fit_together(fusion, unseen, learning_rate, seed)       # all at once, where these are all

Likelihood spends itself on the long tail and gives the top of the list away. What happens to be
bought at a moment sways all of its lists at once, so the weights that read the state of items are
held near the mix: data of a few months has too few moments to tell a trend from a whim.

Tensor suffixes: B lists, S items, N chosen items, K list length.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from crossrec.model.fusion import Fusion, Shortlists, scores

SCALE = 20.0
"""Scores, which are of the size of cosines, count as apart where they differ by 1 / SCALE. On the
groceries of README 10, 20, 40 and 100 gave NDCG@10 .091, .093, .087 and .083; ListNet's softmax
.086."""

MOST_CHOSEN = 12
"""Chosen items of a list that count; the best ranked of more would hide the others anyway."""

RIDGE, NET_RIDGE = 1.0, 0.1
"""Penalty on the squared distance from the mix of the popularity weights, and on the squared
weights of the last layers that read the state of items. On demo data of 110 days they took NDCG@10
from .181 to .189, on groceries of 13 years they cost nothing."""

EPOCHS = 15
SEQUENCE_EPOCHS = 10
LISTS_A_STEP = 256
FEWEST_STEPS, FEWEST_A_STEP = 200, 32
"""Of few lists a step has fewer, down to the second: it moves a weight by the learning rate at
most, and in 60 steps none comes to where it is best. On the films of README, cut at six moments
with 785 to 1,404 lists to learn from, NDCG@10 without the sequence was .205, .207 and .206 of three
seeds with 256 a step, and .205, .223 and .216 so."""

K = 10


def loss(fusion: Fusion, lists: Shortlists) -> Tensor:
    """Return minus the mean smooth NDCG of what was chosen next, each list counting once.

    The rank of an item is 1 + the sum over the others of sigmoid(SCALE * (other - own score))
    (ApproxNDCG, Qin, Liu and Li 2010, eq. 12 and 17).
    """
    # Not -inf: the difference of two of them is no number.
    logits_BS = (scores(fusion, lists) * SCALE).clamp(min=-1e4)
    most = min(MOST_CHOSEN, logits_BS.shape[1])
    chosen_BN, places_BN = lists.is_next_BS.float().topk(most, dim=1)
    own_BN = logits_BS.gather(1, places_BN)
    ahead_BNS = torch.sigmoid(logits_BS.unsqueeze(1) - own_BN.unsqueeze(2))
    # The item itself is there too, with sigmoid(0).
    rank_BN = ahead_BNS.sum(2) + 0.5
    discounts_N = torch.log2(torch.arange(2, most + 2, device=rank_BN.device))
    ideal_N = (1 / discounts_N).cumsum(0)
    ideal_B = ideal_N[chosen_BN.sum(1).long().clamp(min=1) - 1]
    return -((chosen_BN / torch.log2(rank_BN + 1)).sum(1) / ideal_B).mean()


def penalty(fusion: Fusion) -> Tensor:
    """Return what holds the weights that read the state of items near the mix."""
    moved = fusion.popularity - fusion.mix_popularity
    last = [*fusion.item_bias.parameters(), *fusion.user_columns[-1].parameters()]
    summed: Tensor = RIDGE * moved.square().sum()
    return summed + NET_RIDGE * torch.stack([part.square().sum() for part in last]).sum()


def fit(fusion: Fusion, lists: Shortlists, learning_rate: float, seed: int) -> None:
    """Learn all but the sequence's weight, from lists that need no model.

    Args:
        fusion: at step 0, or anywhere.
        lists: every one with at least one item that was chosen.
        learning_rate: at the start; falls to 0 along a line.
        seed: of the order of lists.
    """
    learned = [p for name, p in fusion.named_parameters() if not name.startswith("sequence")]
    fusion.fit_scale(lists.users_BF)
    _descend(fusion, lists, learned, learning_rate, seed, (EPOCHS, _lists_a_step(lists)))


def fit_sequence(fusion: Fusion, lists: Shortlists, learning_rate: float, seed: int) -> None:
    """Learn what the sequence and the others beside it count, from moments its model knows not."""
    learned = [p for name, p in fusion.named_parameters() if name.startswith("sequence")]
    _descend(fusion, lists, learned, learning_rate, seed, (SEQUENCE_EPOCHS, LISTS_A_STEP))


def fit_together(fusion: Fusion, lists: Shortlists, learning_rate: float, seed: int) -> None:
    """Do what `fit` does, the sequence's weight learned along with all others.

    Where all parts have the same lists to learn from: after the others have learned from them they
    teach the sequence next to nothing. Leave-one-out on the films of README: NDCG@10 .128 one after
    the other, .153 together.
    """
    fusion.fit_scale(lists.users_BF)
    learned = list(fusion.parameters())
    _descend(fusion, lists, learned, learning_rate, seed, (EPOCHS, _lists_a_step(lists)))


def _lists_a_step(lists: Shortlists) -> int:
    """Return how many lists a step takes, so that there are FEWEST_STEPS."""
    return min(max(len(lists) * EPOCHS // FEWEST_STEPS, FEWEST_A_STEP), LISTS_A_STEP)


def _descend(
    fusion: Fusion,
    lists: Shortlists,
    learned: Sequence[nn.Parameter],
    learning_rate: float,
    seed: int,
    turns: tuple[int, int],
) -> None:
    """Descend; turns: epochs, and lists a step."""
    epochs, size = turns
    optimizer = torch.optim.Adam(learned, learning_rate)
    order = torch.Generator().manual_seed(seed)
    steps = epochs * -(-len(lists) // size)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, max(steps, 1))
    for _ in range(epochs):
        for index in torch.randperm(len(lists), generator=order).split(size):
            optimizer.zero_grad()
            (loss(fusion, lists.take(index)) + penalty(fusion)).backward()
            optimizer.step()
            schedule.step()


@dataclass(frozen=True)
class Earned:
    """What the sequence adds for users whom its weight has not learned from.

    gain: NDCG@K of shortlists with it minus without. error: standard error of that, users drawn at
    random. share: of the learned weight that is kept.
    """

    gain: float
    error: float

    @property
    def share(self) -> float:
        """1 - (error / gain)^2, at least 0.

        The share at which the expected error of the shrunken gain is least, with what was measured
        in place of what is true (positive-part shrinkage, James and Stein 1961).
        """
        if self.gain <= 0:
            return 0.0
        return max(0.0, 1 - (self.error / self.gain) ** 2)


def earn(fusion: Fusion, lists: Shortlists, learning_rate: float, seed: int) -> Earned:
    """Measure what `fit_sequence` gains: each half of the users by what the other half taught.

    Args:
        fusion: without a sequence; it stays as it is.
        lists: of moments that the sequence's model knows not.
        learning_rate: as for `fit`.
        seed: of the halves, and of the order of lists.
    """

    def learn(half: Shortlists) -> tuple[Fusion, Fusion]:
        learned = copy.deepcopy(fusion)
        fit_sequence(learned, half, learning_rate, seed)
        return fusion, learned

    return _measure_halves(lists, seed, learn)


def earn_together(step0: Fusion, lists: Shortlists, learning_rate: float, seed: int) -> Earned:
    """Measure what `fit_together` gains over `fit`, as `earn` does; from step 0, which stays."""

    def learn(half: Shortlists) -> tuple[Fusion, Fusion]:
        without, learned = copy.deepcopy(step0), copy.deepcopy(step0)
        fit(without, half, learning_rate, seed)
        fit_together(learned, half, learning_rate, seed)
        return without, learned

    return _measure_halves(lists, seed, learn)


def _measure_halves(
    lists: Shortlists, seed: int, learn: Callable[[Shortlists], tuple[Fusion, Fusion]]
) -> Earned:
    """Measure what the second of two fusions gains over the first for users who taught neither."""
    users, whose_B = lists.whose_B.unique(return_inverse=True)
    order = torch.randperm(len(users), generator=torch.Generator().manual_seed(seed))
    is_first_B = (order < len(users) // 2)[whose_B]
    gain_B = torch.zeros(len(lists))
    for half_B in (is_first_B, ~is_first_B):
        without, learned = learn(lists.take(half_B))
        others = lists.take(~half_B)
        gain_B[~half_B] = ndcg(learned, others) - ndcg(without, others)
    return measure(gain_B, whose_B)


def measure(gain_B: Tensor, whose_B: Tensor) -> Earned:
    """Return mean and standard error of gains; a user's lists stand or fall together."""
    spread_U = torch.zeros(int(whose_B.max()) + 1)
    spread_U.index_add_(0, whose_B, gain_B - gain_B.mean())
    error = spread_U.square().sum().sqrt() / len(gain_B)
    return Earned(gain_B.mean().item(), error.item())


@torch.no_grad()
def keep_share(fusion: Fusion, without: Fusion, share: float) -> None:
    """Take what the sequence changes in a fusion, its weight among it, down to a share of it."""
    for part, plain in zip(fusion.parameters(), without.parameters(), strict=True):
        part.lerp_(plain, 1 - share)


@torch.no_grad()
def ndcg(fusion: Fusion, lists: Shortlists) -> Tensor:
    """Return NDCG@K (B,) of what was chosen next."""
    return ndcg_of(scores(fusion, lists), lists.is_next_BS)


def ndcg_of(scores_BS: Tensor, is_next_BS: Tensor) -> Tensor:
    """Return NDCG@K (B,) by scores, of what was chosen next."""
    top_BK = scores_BS.topk(min(K, is_next_BS.shape[1]), dim=1).indices
    hit_BK = is_next_BS.gather(1, top_BK).float()
    gain_K = 1 / torch.log2(torch.arange(2, hit_BK.shape[1] + 2))
    most_B = is_next_BS.sum(1).clamp(1, hit_BK.shape[1])
    return (hit_BK * gain_K).sum(1) / gain_K.cumsum(0)[most_B - 1]
