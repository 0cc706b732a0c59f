"""What an incremental night stands on: the last full night, and the lists that readers follow now.

    full night  -> model, catalogue, items' state, candidates, settings: all stay as they are
    publication -> its lists are taken over for users whose history is the same

In: the config and current.json. Out: runs/<run_id>/increment.json, written once, so that a rerun
stands on the same.

    increment = find_increment(config, store)      # None where score.mode is full
"""

from dataclasses import dataclass
from typing import Any

from crossrec.config import Config
from crossrec.current import read_current
from crossrec.errors import ConfigError, explain
from crossrec.storage import Store
from crossrec.storage_errors import MissingObject

RECORD = "increment.json"

MEND = "run a night with score.mode=full"


@dataclass(frozen=True)
class Increment:
    """Two runs, by run_id: the last full night, and the publication that was current at the start.

    plan: the full night's plan.json. prepared: folder of the publication's input.
    """

    full: str
    previous: str
    plan: dict[str, Any]
    prepared: str

    @property
    def items(self) -> str:
        """Folder of the item side of all scores."""
        return f"runs/{self.full}/items"

    @property
    def candidates(self) -> str:
        """Folder of what lists may hold."""
        return f"runs/{self.full}/candidates"

    @property
    def defaults(self) -> str:
        """The lists for users whom the input does not know."""
        return f"runs/{self.full}/defaults.parquet"


def find_increment(config: Config, store: Store) -> Increment | None:
    """Return what this run stands on; None for a full night.

    Raises:
        ConfigError: nothing is published yet, what it stands on is gone, or `data.buckets` is not
            that of the full night.
    """
    if config.score.mode == "full":
        return None
    path = f"runs/{config.run_id}/{RECORD}"
    if not store.exists(path):
        store.write_json(path, _stand(config, store))
    told = store.read_json(path)
    full, previous = told["full"], told["previous"]
    try:
        plans = [store.read_json(f"runs/{run}/plan.json") for run in (full, previous)]
    except MissingObject as error:
        expected = f"the runs {full} and {previous}"
        raise ConfigError(explain("score.mode", expected, str(error), MEND)) from error
    buckets = plans[0]["buckets"]
    if config.data.buckets not in (None, buckets):
        expected = f"{buckets}, as in the full night {full}"
        found, mend = str(config.data.buckets), f"leave it out, or {MEND}"
        raise ConfigError(explain("data.buckets", expected, found, mend))
    return Increment(full, previous, plans[0], plans[1]["prepared"])


def _stand(config: Config, store: Store) -> dict[str, str]:
    current = read_current(store)
    if current is None:
        expected = "a published full night before an incremental one"
        raise ConfigError(explain("score.mode=incremental", expected, "none", MEND))
    previous = str(current["run_id"])
    if previous == config.run_id:
        expected = "a run_id of its own for an incremental night"
        found = f"{previous}, which is published"
        raise ConfigError(explain("run_id", expected, found, "give a new run_id"))
    manifest = store.read_json(current["manifest"])
    return {"full": str(manifest.get("full", previous)), "previous": previous}
