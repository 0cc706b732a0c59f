"""Which files a run is made from: those that its first prepare found, until the run is forgotten.

In: the config. Out: runs/<run_id>/inputs.json with the settings that say what is read, the moment,
and each file's path, bytes and version (ETag, or time of the last change); written before any file
is read. A rerun goes on with these files alone: what came later waits for the next run, and a file
that is gone or changed ends the job, also where what was prepared from it is whole.

    pins = pin_inputs(config, store)
    pins.inputs["events"].files       # what the run reads
    check_pins(config, store)         # before a later stage goes on with a run that died
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from crossrec.config import Config
from crossrec.data.inputs import Input, InputFile, list_input
from crossrec.errors import ConfigError, InputError, explain
from crossrec.runlog import log
from crossrec.storage import Store
from crossrec.storage_errors import MissingObject

TABLES = ("events", "items", "users", "forget", "relations")

SETTINGS = ("text_columns", "as_of", "buckets", "available_from")
"""Keys of `data` that decide, beside the files, what prepare makes of them."""

MEND = "put it back, or give a new run_id"


@dataclass(frozen=True)
class Pins:
    """What a run reads, and the wall clock by which it says what lies in the future."""

    inputs: dict[str, Input]
    now: dt.datetime


def pin_inputs(config: Config, store: Store) -> Pins:
    """Find the input and pin it; where the run has its pins, return what they say.

    Raises:
        ConfigError: the run was pinned with other settings.
        InputError: a pinned file is gone or not what it was, or there is no file at all.
    """
    found = list_inputs(config)
    path = _path(config.run_id)
    try:
        pinned = store.read_json(path)
    except MissingObject:
        pinned = {
            "now": dt.datetime.now(dt.UTC).isoformat(),
            "settings": _settings(config, found),
            "files": [
                {"table": name, "path": file.uri, "bytes": file.bytes, "version": file.version}
                for name, source in found.items()
                for file in source.files
            ],
        }
        store.write_json(path, pinned)
    _check_settings(config, pinned["settings"], _settings(config, found))
    inputs = {
        name: _hold_to_pins(config, source, pinned["files"]) for name, source in found.items()
    }
    return Pins(inputs, dt.datetime.fromisoformat(pinned["now"]))


def check_pins(config: Config, store: Store) -> None:
    """Raise what `pin_inputs` does where the run's input is no longer what it was made from."""
    if store.exists(_path(config.run_id)):
        pin_inputs(config, store)


def unpin_inputs(store: Store, run_id: str) -> None:
    """Forget what was pinned: of an input that was refused nothing was made."""
    store.delete(_path(run_id))


def list_inputs(config: Config) -> dict[str, Input]:
    """Return the tables that the config names, as they are now, by name.

    Raises:
        ConfigError: events or items are not given.
        InputError: there is no file at a path.
    """
    paths = {name: getattr(config.data, name) for name in TABLES}
    for name in ("events", "items"):
        if paths[name] is None:
            mend = f"give data.{name}=..."
            raise ConfigError(explain(f"data.{name}", "a file or folder", "none", mend))
    options = config.storage.options
    return {name: list_input(name, path, options) for name, path in paths.items() if path}


def _settings(config: Config, found: Mapping[str, Input]) -> dict[str, Any]:
    places = {f"data.{name}": found[name].store.uri() if name in found else None for name in TABLES}
    settings = config.data.model_dump(mode="json", include=set(SETTINGS))
    objective = {"train.objective=mse": config.train.objective == "mse"}
    return places | {f"data.{name}": value for name, value in settings.items()} | objective


def _check_settings(config: Config, pinned: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    other = [
        f"{name} {pinned.get(name)}, now {now[name]}"
        for name in now
        if pinned.get(name) != now[name]
    ]
    if other:
        found = f"one begun with other settings ({'; '.join(other)})"
        raise ConfigError(
            explain(f"run_id {config.run_id}", "a run of this config", found, "give a new run_id")
        )


def _hold_to_pins(config: Config, source: Input, pinned: Sequence[Mapping[str, Any]]) -> Input:
    """Return the table with its pinned files alone, each as it was."""
    found = {file.uri: file for file in source.files}
    wanted = [file for file in pinned if file["table"] == source.table]
    for file in wanted:
        before, now = (file["bytes"], file["version"]), found.get(file["path"])
        if now is None or (now.bytes, now.version) != before:
            expected = f"the file that run {config.run_id} began with ({_said(*before)})"
            is_now = "none" if now is None else f"another ({_said(now.bytes, now.version)})"
            raise InputError(explain(file["path"], expected, is_now, MEND))
    files: tuple[InputFile, ...] = tuple(found.pop(file["path"]) for file in wanted)
    if found:
        rest, first = f"data.{source.table}: {len(found):,} files", min(found)
        log.info("%s came after run %s began and wait: %s ...", rest, config.run_id, first)
    return replace(source, files=files)


def _said(size: int, version: str) -> str:
    return f"{size:,} bytes, version {version or 'unknown'}"


def _path(run_id: str) -> str:
    return f"runs/{run_id}/inputs.json"
