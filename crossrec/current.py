"""The one switch that readers follow, current.json, and how it is thrown without losing another's.

    data, current = read_pointer(store)        # what it says now, and its bytes
    ...                                        # hours may pass
    switch(store, data, pointer)               # refused if another publication came in between

In: the store. Out: current.json, {"run_id", "manifest", "sha256" of the manifest}.
"""

import json
from typing import Any

from crossrec.errors import CrossrecError, UserError, explain
from crossrec.storage import Store
from crossrec.storage_errors import MissingObject

CURRENT = "current.json"

MARK = "removing.json"
"""In a run's folder while it is removed: names the models and prepared folders that go with it."""


def read_current(store: Store) -> dict[str, Any] | None:
    """Return what readers follow: run_id, manifest and its sha256; None before any publication."""
    return read_pointer(store)[1]


def read_pointer(store: Store) -> tuple[bytes | None, dict[str, Any] | None]:
    """Return the bytes of current.json and what they say; None and None where there is none."""
    try:
        data = store.read_bytes(CURRENT)
    except MissingObject:
        return None, None
    mend = "remove it and run publish again"
    try:
        current = json.loads(data)
    except ValueError as error:
        raise CrossrecError(explain(store.uri(CURRENT), "JSON", str(error), mend)) from error
    if not isinstance(current, dict) or not {"run_id", "manifest"} <= set(current):
        raise CrossrecError(explain(store.uri(CURRENT), "run_id and manifest", "neither", mend))
    return data, current


def published_model(store: Store) -> str | None:
    """Return the folder of the model whose lists readers follow; None before any publication."""
    current = read_current(store)
    return None if current is None else str(store.read_json(current["manifest"])["model"])


def switch(store: Store, before: bytes | None, pointer: dict[str, Any]) -> None:
    """Let readers follow the pointer, if current.json still is what it was.

    Args:
        store: of the publications.
        before: bytes of current.json when this publication began; None for none.
        pointer: run_id, manifest and sha256.

    Raises:
        UserError: another publication came in between; readers stay with it.
        CrossrecError: another job is removing the run; readers stay with what was before.
    """
    where, run_id = store.uri(CURRENT), pointer["run_id"]
    data = _to_bytes(pointer)
    if not store.swap_bytes(CURRENT, before, data):
        expected = f"what it said when this began ({_said(before)})"
        mend = f"readers stay with that; run publish again to put {run_id} in its place"
        raise UserError(explain(where, expected, _said(read_pointer(store)[0]), mend))
    # A removal writes its mark and then looks at current.json; here it is the other way round, so
    # that one of the two sees the other.
    if store.exists(f"runs/{run_id}/{MARK}"):
        if before is not None:
            store.swap_bytes(CURRENT, data, before)
        raise CrossrecError(
            explain(where, f"a run {run_id} that stays", "its removal", "publish it again")
        )


def _to_bytes(pointer: dict[str, Any]) -> bytes:
    return f"{json.dumps(pointer, indent=2, ensure_ascii=False, sort_keys=True)}\n".encode()


def _said(data: bytes | None) -> str:
    return "no publication" if data is None else f"run {json.loads(data)['run_id']}"
