"""A stable hash of strings: the same in every process, on every machine and in every version.

Buckets of users depend on it, so its values must never change; a test holds some of them.

    hash_strings(pa.array(["ada", "bob"], pa.large_string())) % np.uint64(32)
"""

import numpy as np
import pyarrow as pa

Array = np.ndarray

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_MASKS = np.array([(1 << 8 * length) - 1 for length in range(9)], np.uint64)
"""Keeps the first 0..8 bytes of a little-endian word."""


def mix(values: Array) -> Array:
    """Scramble uint64 values, one to one.

    Source: the finaliser of SplitMix64; Steele, Lea, Flood, "Fast splittable pseudorandom number
    generators", 2014.
    """
    values = (values ^ (values >> np.uint64(30))) * _MULTIPLIERS[0]
    values = (values ^ (values >> np.uint64(27))) * _MULTIPLIERS[1]
    mixed: Array = values ^ (values >> np.uint64(31))
    return mixed


def hash_strings(strings: pa.LargeStringArray) -> Array:
    """Return a hash of each string's UTF-8 bytes, (N,) uint64; that of a null means nothing.

    A hash starts as the length in bytes and takes in one little-endian word of 8 bytes after the
    other, the last one filled up with zeros: hash = mix((hash xor word) + GOLDEN).
    """
    if not len(strings):
        return np.zeros(0, np.uint64)
    _, offset_bytes, data = strings.buffers()
    offsets = np.frombuffer(offset_bytes, np.int64)[strings.offset :][: len(strings) + 1]
    text = np.frombuffer(data or b"", np.uint8)[offsets[0] : offsets[-1]]
    padded = np.concatenate([text, np.zeros(8, np.uint8)])
    words = np.ndarray(len(padded) - 7, "<u8", padded, strides=(1,))
    starts, lengths = offsets[:-1] - offsets[0], np.diff(offsets)
    hashes = lengths.astype(np.uint64)
    longer, read = np.flatnonzero(lengths > 0), 0
    while len(longer):
        left = np.minimum(lengths[longer] - read, 8)
        word = words[starts[longer] + read] & _MASKS[left]
        hashes[longer] = mix((hashes[longer] ^ word) + GOLDEN)
        read += 8
        longer = longer[lengths[longer] > read]
    return hashes


def buckets_of(user_ids: pa.LargeStringArray, buckets: int) -> Array:
    """Return the bucket of each user, (N,) int32."""
    return (hash_strings(user_ids) % np.uint64(buckets)).astype(np.int32)
