"""Swapping an object on a store that knows no conditions: who swaps claims it first.

    swap_by_claims(store, "current.json", old=b"...", new=b"...")     # False: it was not `old`

A claim is an object of its own under <path>.claims/, so that no two overwrite each other. Who
finds a claim beside its own takes its own back and waits; who finds none looks at the object,
writes it, and takes the claim back. Of two at once at least the later sees the other, where the
store lists what has just been written (S3, GCS and MinIO do; Swift does unless its container
servers are behind). Nobody needs a clock in common: a claim that stays the same for DEAD_S, on the
clock of who waits for it, was left by a process that died, and is removed; and who holds one
for longer than half of that before it writes begins anew.
"""

import random
import time
import uuid
from typing import TYPE_CHECKING

from crossrec.errors import StorageError, explain
from crossrec.storage_errors import MissingObject

if TYPE_CHECKING:
    from crossrec.storage import Store

DEAD_S = 60.0
"""A claim is held for a few requests; after so long its holder is dead."""

PAUSE_S = 0.2
"""Between two looks at others' claims, on average; random, so that two do not collide for ever."""

GIVE_UP_S = 600.0
"""Others' claims that come and go for so long are no publications."""


def swap_by_claims(store: "Store", path: str, old: bytes | None, new: bytes) -> bool:
    """Replace an object that holds `old` (None: is not there); return whether it now is `new`.

    Raises:
        StorageError: others' claims never end.
    """
    claims = f"{path}.claims"
    mine = uuid.uuid4().hex
    began = time.monotonic()
    first_seen: dict[str, float] = {}
    while time.monotonic() - began < GIVE_UP_S:
        claimed = time.monotonic()
        store.write_bytes(f"{claims}/{mine}", b"claim")
        try:
            others = [name for name in store.list(claims) if name != mine]
            if not others:
                found = _read(store, path)
                if found != old:
                    return found == new
                if time.monotonic() - claimed < DEAD_S / 2:
                    store.write_bytes(path, new)
                    return True
        finally:
            store.delete(f"{claims}/{mine}")
        now = time.monotonic()
        first_seen = {name: first_seen.get(name, now) for name in others}
        for name, seen in first_seen.items():
            if now - seen > DEAD_S:
                store.delete(f"{claims}/{name}")
        time.sleep(PAUSE_S * random.uniform(0.5, 1.5))
    where, mend = store.uri(claims), "see who writes there, remove what it left, and run again"
    raise StorageError(explain(where, "claims that end", "some that do not", mend))


def _read(store: "Store", path: str) -> bytes | None:
    try:
        return store.read_bytes(path)
    except MissingObject:
        return None
