"""Weights behind a URI: fetched once a node, checked, and the same bytes on every node.

    <cache>/<digest of the URI>.lock         held by the process that looks or fetches
    <cache>/<digest of the URI>/seen.json    what the store listed when they were last fetched
    <cache>/<digest of the URI>/<digest of the files>/...       the files

    store = Store("s3://lake/minilm")
    pin = pin_weights(store, "model.backbone s3://lake/minilm")     # the driver: what is there now
    folder = fetch_weights(store, pin)                              # any node: exactly that

Nothing in the cache is trusted: each process hashes the files that it is going to load, and what
is damaged is fetched anew.
"""

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crossrec.data.inputs import file_version, filesystem
from crossrec.errors import ConfigError, CrossrecError, explain
from crossrec.model.pooling import SENTENCE_TRANSFORMERS
from crossrec.runlog import log
from crossrec.storage import Store
from crossrec.storage_errors import explained

WEIGHT_FILES = frozenset({".safetensors", ".json", ".jinja", ".txt", ".model", ".py"})
"""Endings of what a model is loaded from: weights, config, tokenizer, code; never a pickle."""

UNUSED_S = 7 * 86_400
"""Weights in a node's cache that nobody has loaded for so long go when others come."""

Listed = dict[str, tuple[int, str]]
"""Bytes and version (ETag, or time of change; "" where the store gives none) of each file."""


@dataclass(frozen=True)
class Pin:
    """The weights at a URI as they were at a moment: name, bytes and sha256 of each file."""

    uri: str
    files: tuple[tuple[str, int, str], ...]

    @property
    def digest(self) -> str:
        """16 hex digits that change with any byte of the files."""
        return hashlib.sha256(json.dumps(self.files).encode()).hexdigest()[:16]

    def as_json(self) -> dict[str, Any]:
        """Return what `of_json` reads."""
        return asdict(self)

    @classmethod
    def of_json(cls, said: Mapping[str, Any]) -> "Pin":
        """Return the pin that was written down."""
        return cls(said["uri"], tuple((name, size, sha) for name, size, sha in said["files"]))


def node_cache() -> Path:
    """Return this user's cache folder on this node, which nobody else may write to."""
    folder = Path(tempfile.gettempdir()) / f"crossrec-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if found.st_uid != os.getuid() or found.st_mode & 0o022 or folder.is_symlink():
        mend = "remove it, or set TMPDIR to another folder"
        raise CrossrecError(explain(str(folder), "a folder of one's own", "another's", mend))
    return folder


def missing_part(names: Collection[str]) -> str | None:
    """Return what a folder with files of these names lacks to be one of a model's weights."""
    if "config.json" not in names:
        return "no config.json"
    if not any(name.endswith(".safetensors") for name in names):
        return "no file of safetensors"
    return None


def pin_weights(store: Store, where: str, cache: Path | None = None) -> Pin:
    """Return what lies at the store's root now, and have it on this node.

    Nothing is read again where sizes and versions are those of the last time.

    Args:
        store: at the folder of the weights.
        where: what an error names.
        cache: of the node, if not the usual one.

    Raises:
        ConfigError: there are no weights.
        CrossrecError: the files change while they are read.
        StorageError: the place cannot be reached.
    """
    with _locked(store, cache) as home:
        listed = _list(store)
        lacking = missing_part(listed) if listed else "no such folder"
        if lacking:
            mend = "check the path"
            raise ConfigError(explain(where, "a folder with weights", lacking, mend))
        seen = _seen(home)
        if (
            seen is not None
            and seen[0] == listed
            and all(version for _, version in listed.values())
        ):
            _mend(store, seen[1], home)
            return seen[1]
        fresh = home / f".{uuid.uuid4().hex}"
        try:
            for name in listed:
                _download(store, name, fresh / name)
            sizes = {name: (fresh / name).stat().st_size for name in listed}
            if _list(store) != listed or sizes != {
                name: size for name, (size, _) in listed.items()
            }:
                mend = "start again when they are whole"
                raise CrossrecError(explain(store.root, "weights", "files that change", mend))
            pin = Pin(
                store.root,
                tuple((name, sizes[name], _sha256(fresh / name)) for name in sorted(listed)),
            )
            for name in listed:
                _put(fresh / name, home / pin.digest / name)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        log.info("weights: fetched %s, %s files", store.root, len(pin.files))
        _write(home / "seen.json", json.dumps({"listed": listed, "pin": pin.as_json()}))
        _forget_unused(home.parent, home / pin.digest, UNUSED_S)
        return pin


def fetch_weights(store: Store, pin: Pin, cache: Path | None = None) -> Path:
    """Return a local folder with exactly the pinned files, fetching what is not there or damaged.

    Raises:
        ConfigError: what lies at the URI now is something else.
        StorageError: the place cannot be reached.
    """
    with _locked(store, cache) as home:
        _mend(store, pin, home)
        return home / pin.digest


def fetch_files(store: Store, pin: Pin, cache: Path, unused_s: float) -> Path:
    """Do what `fetch_weights` does in a cache of its own; what is unused for so long goes."""
    folder = fetch_weights(store, pin, cache)
    _forget_unused(cache, folder, unused_s)
    return folder


def _mend(store: Store, pin: Pin, home: Path) -> None:
    """Fetch what is missing of a pin, or is not what it should be."""
    folder = home / pin.digest
    folder.mkdir(exist_ok=True)
    os.utime(folder)  # in use: see `_forget_unused`
    for name, size, sha in pin.files:
        path = folder / name
        if path.is_file():
            if path.stat().st_size == size and _sha256(path) == sha:
                continue
            log.warning("weights: %s is damaged and is fetched anew", path)
        fresh = home / f".{uuid.uuid4().hex}"
        try:
            _download(store, name, fresh)
            if _sha256(fresh) != sha:
                mend = "put the weights back, or start a run with another run_id"
                expected = f"{name} as the run began with it, sha256 {sha[:16]}"
                raise ConfigError(explain(pin.uri, expected, "another", mend))
            _put(fresh, path)
        finally:
            fresh.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(store: Store, cache: Path | None) -> Iterator[Path]:
    """Yield the folder of a URI, held by one process of the node at a time.

    The lock ends with the process that holds it, however that ends.
    """
    home = (cache or node_cache()) / hashlib.sha256(store.root.encode()).hexdigest()[:16]
    home.mkdir(parents=True, exist_ok=True)
    handle = os.open(home.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield home
    finally:
        os.close(handle)


def _list(store: Store) -> Listed:
    """Return the files directly at the root that a model is loaded from, and how it pools."""
    root = store.full_path()
    with explained(store.root, store.options):
        try:
            found = filesystem(store).find(root, detail=True)
        except FileNotFoundError:
            found = {}
    inside = {path[len(root) :].strip("/"): info for path, info in sorted(found.items())}
    return {
        name: (int(info["size"]), file_version(info))
        for name, info in inside.items()
        if name == SENTENCE_TRANSFORMERS
        or ("/" not in name and Path(name).suffix in WEIGHT_FILES and not name.startswith("."))
    }


def _seen(home: Path) -> tuple[Listed, Pin] | None:
    try:
        said = json.loads((home / "seen.json").read_text())
        listed = {name: (size, version) for name, (size, version) in said["listed"].items()}
        return listed, Pin.of_json(said["pin"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # there is none, or a crash or a hand damaged it: fetched anew


def _download(store: Store, name: str, target: Path) -> None:
    """Copy a file of the store to a local path, a bit at a time."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with explained(store.uri(name), store.options):
        filesystem(store).get_file(store.full_path(name), str(target))


def _put(fresh: Path, target: Path) -> None:
    """Let a file appear whole; a process that has the old one open keeps it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(fresh, target)


def _write(path: Path, text: str) -> None:
    fresh = path.with_name(f".{uuid.uuid4().hex}")
    fresh.write_text(text)
    os.replace(fresh, path)


def _sha256(path: Path) -> str:
    found = path.stat()
    return _hash_file(str(path), found.st_size, found.st_mtime_ns, found.st_ino)


@functools.lru_cache(maxsize=1_024)
def _hash_file(path: str, size: int, mtime_ns: int, inode: int) -> str:
    """Return the sha256 of a file; once a process, unless the file changes."""
    with Path(path).open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def _forget_unused(cache: Path, kept: Path, unused_s: float) -> None:
    """Remove what nobody has loaded for long; who needs it again fetches it again."""
    now = time.time()
    for folder in cache.glob("*/*/"):
        with contextlib.suppress(FileNotFoundError):
            if folder != kept and now - folder.stat().st_mtime > unused_s:
                shutil.rmtree(folder, ignore_errors=True)
