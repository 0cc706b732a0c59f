"""What a backbone adapts to: item texts, and which of them follow each other in histories.

material = gather_material(store, prepared, known_before=18_000, with_pairs=True)
first, second = material.draw(step=0, seed=17, count=64)
"""

from dataclasses import dataclass

import numpy as np

from crossrec.data.histories import Prepared, read_catalogue
from crossrec.data.replay import Histories, before, sample_histories
from crossrec.storage import Store

Array = np.ndarray


@dataclass(frozen=True)
class Material:
    """What a step draws from.

    texts: each text once. pairs: (P, 2) places in it, of different texts that follow each other in
    a history.
    """

    texts: list[str]
    pairs: Array

    def draw(self, step: int, seed: int, count: int) -> tuple[Array, Array]:
        """Return the first and second text of a step's pairs, (count,) int64 each.

        Half are two of `pairs`, where there are any; in the others both are the same text.
        """
        rng = np.random.default_rng([seed, step])
        following = count // 2 if len(self.pairs) else 0
        drawn = rng.integers(max(len(self.pairs), 1), size=following)
        rest = count - following
        alone = rng.choice(len(self.texts), rest, replace=rest > len(self.texts))
        both = np.concatenate([self.pairs[drawn], np.stack([alone, alone], 1)]).astype(np.int64)
        return both[:, 0], both[:, 1]


def gather_material(
    store: Store, prepared: Prepared, known_before: int, with_pairs: bool
) -> Material:
    """Read the catalogue's texts and, where asked to, which follow each other before a day."""
    found = [
        read_catalogue(store, prepared, domain.name, ["text"])["text"].to_pylist()
        for domain in prepared.domains
    ]
    by_row = [text or "" for part in found for text in part]
    texts = sorted({text for text in by_row if text})
    if not with_pairs:
        return Material(texts, np.zeros((0, 2), np.int64))
    place = {text: number for number, text in enumerate(texts)}
    text_of_row = np.array([place.get(text, -1) for text in by_row], np.int64)
    known = before(sample_histories(store, prepared), known_before)
    return Material(texts, following_pairs(known, text_of_row))


def following_pairs(histories: Histories, text_of_row: Array) -> Array:
    """Return (P, 2) texts of events that follow each other in a history; never twice the same one.

    Args:
        histories: oldest event first.
        text_of_row: (I,) the text of each catalogue row, -1 for none.
    """
    texts, owners = text_of_row[histories.rows], histories.owners
    pairs = np.stack([texts[:-1], texts[1:]], 1)
    is_pair = (owners[:-1] == owners[1:]) & (pairs.min(1) >= 0) & (pairs[:, 0] != pairs[:, 1])
    found: Array = pairs[is_pair]
    return found
