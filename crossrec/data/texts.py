"""Items whose text is no honest description: found among those that nobody has touched yet.

In: the texts of a domain, which items are new, and how many users each text attracts. Out: rows of
the domain by what is wrong. Which thresholds are usual in a domain, its other items say.

    faults_of(texts, is_new)[COPIED]            # rows, ascending
    too_attractive(shares, is_new)
    is_on_trial(user_ids)                       # who gets such items all the same

An item that somebody has chosen stands for itself, whatever its text says. The others are not shown
to everybody before that: of TRIAL users one gets them where their score says so, always the same.
"""

from collections import Counter
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crossrec.data.hashing import GOLDEN, Array, hash_strings, mix

FINDINGS = "texts.parquet"
"""Beside the candidates: domain, item_id, row within the domain, reason, and share of users."""

TOLD = "texts.json"
"""Beside it, what the report shows: counts by domain and reason, and examples."""

EMPTY, COPIED, REPEATED, LONG = "empty text", "copied text", "repeated words", "long text"
ATTRACTS = "attracts too many users"

USUAL = 0.01
"""What more of the items with events than this have is usual in the domain, and no fault: there are
catalogues without texts, and such with one text for all sizes of a shirt. So of honest new items
about as few are held back for one reason. At .05, on the kitchenware of README, 5 in 100 new items
were: their title is null, and so is that of 3 in 100 of the others."""

MOST_COPIES = 10
"""New items that may have one text where no item with events has it: sizes and colours."""

FEWEST_WORDS, MOST_REPEATED = 10, 1 / 3
"""Of so many words at least no one makes up more; the commonest word of a language, about 6 %."""

LONG_WORDS, LONG_TIMES = 100, 10
"""A text is long that has both more words than this, and so many times the domain's median."""

LOOKED_AT = 5_000
"""Texts of items with events whose words are counted, to see what is usual."""

LEAST_SHARE, ATTRACTIVE_TIMES = 0.1, 2
"""Of users for whom an item is among the best by its text: what is both more than this and so many
times that of any item with events is more than an honest text attracts."""

FEWEST_ITEMS = 200
"""In a smaller domain the best ten are much of all that there is."""

TRIAL = 50
"""Of so many users one is shown such items, so that they can earn events."""


def faults_of(texts: pa.Array, is_new: Array) -> dict[str, Array]:
    """Return the rows of new items by what is wrong with their text; an item may have several.

    Args:
        texts: (I,) strings of a domain's items.
        is_new: (I,) bool, which have no event yet.
    """
    is_empty = ~pc.match_substring_regex(texts, r"[\p{L}\p{N}]").to_numpy(False)
    words = (pc.count_substring(texts, " ").to_numpy(False) + 1) * ~is_empty
    median = float(np.median(words[~is_empty])) if (~is_empty).any() else 0.0
    looked_at = np.flatnonzero(~is_new & (words >= FEWEST_WORDS))
    looked_at = looked_at[:: max(1, len(looked_at) // LOOKED_AT)]
    new = np.flatnonzero(is_new & (words >= FEWEST_WORDS))
    repeated = np.zeros(len(words), bool)
    for rows in (new, looked_at):
        repeated[rows] = list(map(_repeats, texts.take(pa.array(rows)).to_pylist()))
    faults = {
        EMPTY: (is_empty, ~is_new),
        COPIED: (_copied(texts, is_new) & ~is_empty, ~is_new),
        REPEATED: (repeated, np.isin(np.arange(len(words)), looked_at)),
        LONG: ((words > LONG_WORDS) & (words > LONG_TIMES * median), ~is_new),
    }
    return {
        reason: np.flatnonzero(is_faulty & is_new)
        for reason, (is_faulty, among) in faults.items()
        if is_faulty[among].sum() <= USUAL * max(among.sum(), 1)
    }


def _copied(texts: pa.Array, is_new: Array) -> Array:
    """Return which items have the text of another with events, or of very many."""
    codes = pc.utf8_lower(texts).dictionary_encode().indices.to_numpy(False)
    with_events = np.bincount(codes[~is_new], minlength=int(codes.max(initial=0)) + 1)
    others = with_events[codes] - ~is_new
    copied: Array = (others > 0) | (np.bincount(codes)[codes] > MOST_COPIES)
    return copied


def _repeats(text: str) -> bool:
    words = text.lower().split()
    return max(Counter(words).values(), default=0) > MOST_REPEATED * len(words)


def too_attractive(shares: Array, is_new: Array) -> Array:
    """Return the rows of new items that attract more users than an honest text does.

    Where no item of the domain has events yet, there is nothing to hold them against.

    Args:
        shares: (I,) of users for whom an item is among the best by its text.
        is_new: (I,) bool.
    """
    if len(shares) < FEWEST_ITEMS or is_new.all():
        return np.zeros(0, np.int64)
    most = max(LEAST_SHARE, ATTRACTIVE_TIMES * float(shares[~is_new].max()))
    return np.flatnonzero(is_new & (shares > most))


def is_on_trial(user_ids: pa.Array) -> Array:
    """Return which users are shown items that were found, (U,) bool; nobody without an id.

    >>> int(is_on_trial(pa.array(["", *(f"user {number}" for number in range(5_000))])).sum())
    87
    """
    ids = user_ids.cast(pa.large_string())
    # Other bits than those that make buckets.
    chosen = mix(hash_strings(ids) + GOLDEN) % np.uint64(TRIAL) == 0
    found: Array = chosen & (pc.binary_length(ids).to_numpy(False) > 0)
    return found


def count_faults(reasons: Iterable[str]) -> dict[str, int]:
    """Return how many findings there are of each reason."""
    return dict(sorted(Counter(reasons).items()))
