"""Stage 4 with what it has to say in the run's report.

    summary = score_and_tell(config, store)

The report is written by evaluate, before the night's own items are known, and again by the gate;
what the check of texts found comes into it here.
"""

from typing import Any

from crossrec.config import Config
from crossrec.data.texts import TOLD
from crossrec.evaluate.pipeline import write_report
from crossrec.score.pipeline import score
from crossrec.storage import Store


def score_and_tell(config: Config, store: Store) -> dict[str, Any]:
    """Score on an initialised Ray; where texts were looked at, write metrics and report with it."""
    scored = score(config, store)
    run = f"runs/{config.run_id}"
    told, metrics = f"{run}/candidates/{TOLD}", f"{run}/metrics.json"
    if store.exists(told) and store.exists(metrics):
        write_report(store.read_json(metrics) | {"texts": store.read_json(told)}, store)
    return scored
