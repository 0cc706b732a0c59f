"""Checksums of a model folder: written when it is whole, held against it before it is used.

models/<model_id>/checksums.json    sha256 of every other file, by its path within the folder

digest = write_checksums(store, "models/2026-06-30-1f2e3d4c")
assert check_model(store, "models/2026-06-30-1f2e3d4c") == digest
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor

from crossrec.errors import UserError, explain
from crossrec.storage import Store
from crossrec.storage_errors import MissingObject

CHECKSUMS = "checksums.json"

FOLDERS = ("backbone", "image_backbone")
"""Within a model's; the second is there where items are images too."""

THREADS = 4
"""Files read at once; each is held as a whole."""

MEND = "restore it, or fine-tune again under a new run_id"


def write_checksums(store: Store, folder: str) -> str:
    """Write the sha256 of every file of a finished model folder; return what `check_model` does."""
    names = [name for name in store.list(folder) if name not in (CHECKSUMS, *FOLDERS)]
    for inner in FOLDERS:
        names += [f"{inner}/{name}" for name in store.list(f"{folder}/{inner}")]
    sums = _hash_all(store, folder, names)
    store.write_json(f"{folder}/{CHECKSUMS}", dict(zip(names, sums, strict=True)))
    return _digest(store, folder)


def check_model(store: Store, folder: str) -> str:
    """Hold a model folder against its checksums; return 64 hex digits that stand for all of it.

    Raises:
        UserError: a file is missing or not what it was when the model was finished.
    """
    try:
        expected: dict[str, str] = store.read_json(f"{folder}/{CHECKSUMS}")
    except MissingObject as error:
        found = f"no {CHECKSUMS}"
        raise UserError(explain(store.uri(folder), "a whole model", found, MEND)) from error
    try:
        found_sums = _hash_all(store, folder, list(expected))
    except MissingObject as error:
        where = f"the model {store.uri(folder)}"
        raise UserError(explain(where, "all of its files", str(error), MEND)) from error
    for (name, digest), found in zip(expected.items(), found_sums, strict=True):
        if digest != found:
            where = store.uri(f"{folder}/{name}")
            raise UserError(explain(where, f"sha256 {digest}", found, MEND))
    return _digest(store, folder)


def _hash_all(store: Store, folder: str, names: list[str]) -> list[str]:
    def sha256(name: str) -> str:
        return hashlib.sha256(store.read_bytes(f"{folder}/{name}")).hexdigest()

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(sha256, names))


def _digest(store: Store, folder: str) -> str:
    return hashlib.sha256(store.read_bytes(f"{folder}/{CHECKSUMS}")).hexdigest()
