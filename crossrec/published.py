"""The model behind the lists that readers follow, as a night finds it when it begins.

In: current.json, and what the run left that trained the model. Out: runs/<run_id>/published.json,
written once, so that a rerun compares with the same model, whatever has been published meanwhile.

    found = find_published(config, store)      # None before any publication
"""

from dataclasses import dataclass
from typing import Any

from crossrec.config import Config
from crossrec.current import read_current
from crossrec.runlog import log
from crossrec.storage import Store
from crossrec.storage_errors import MissingObject

RECORD = "published.json"


@dataclass(frozen=True)
class Published:
    """A published model.

    run_id: of the publication. trained_by: the run that trained its model, the same or an older
    one. model: folder of the model. selected: folder of the one beside it that has seen neither
    validation slice nor hold-out of its night. domains: that both know. night: day up to which the
    model has learned. users, items: of the publication's input.
    """

    run_id: str
    trained_by: str
    model: str
    selected: str
    domains: tuple[str, ...]
    night: int
    users: int
    items: int


def find_published(config: Config, store: Store) -> Published | None:
    """Return what was published when this run began; None for nothing that can be used."""
    path = f"runs/{config.run_id}/{RECORD}"
    if not store.exists(path):
        current = read_current(store)
        run_id = None if current is None else str(current["run_id"])
        store.write_json(path, {"run_id": None if run_id == config.run_id else run_id})
    run_id = store.read_json(path)["run_id"]
    if run_id is None:
        return None
    try:
        return _describe(store, run_id)
    except MissingObject as error:
        log.warning("the publication %s cannot be compared with: %s", run_id, error)
        return None


def _describe(store: Store, run_id: str) -> Published:
    model = str(store.read_json(f"runs/{run_id}/manifest.json")["model"])
    settings = store.read_json(f"{model}/config.json")
    prepared: dict[str, Any] = store.read_json(f"runs/{run_id}/prepare.json")
    trained_by = str(settings["facts"]["run_id"])
    selected = str(store.read_json(f"runs/{trained_by}/finetune.json")["selected"])
    store.read_json(f"{selected}/config.json")
    return Published(
        run_id,
        trained_by,
        model,
        selected,
        tuple(settings["domains"]),
        int(settings["facts"]["known_before_day"]),
        int(prepared["users"]),
        int(prepared["items"]),
    )
