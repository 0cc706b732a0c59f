"""What Prometheus is told of a run, by the job itself; `score.progress` counts what actors do.

    metrics = RunMetrics(published_at(store))
    with watching(metrics.on_stage): ...
    metrics.on_end(summary.said)

In: the stages as they go, and the run's summary. Out: ray_crossrec_... on the metrics port of the
node where the job runs. Ray serves a gauge until 20 s after its job ended, and counters (ending in
_total) as long as the node is up. No label has more values than there are stages or commands: a
run's name is none of them.
"""

import datetime as dt
from typing import Any

from ray.util.metrics import Counter, Gauge

from crossrec.runlog import StageEvent

OTHER = "other"

COMMANDS = ("nightly", "prepare", "finetune", "evaluate", "gate", "score", "publish", "tune")
STAGES = ("prepare", "finetune", "evaluate", "gate", "score", "publish", "study", "tune")

ROWS = {"in": "read", "rejected": "rejected", "users": "users", "items": "items", "out": "lists"}
"""From the summary's `rows` to the label `kind`."""

GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "crossrec_stage_seconds": ("Seconds that the stage took when it last ended.", ("stage",)),
    "crossrec_stage_running": ("1 while the stage is at work.", ("stage",)),
    "crossrec_rows": ("Rows and lists of the run, by kind.", ("kind",)),
    "crossrec_rejected_share": ("What data.max_reject_share is held against.", ()),
    "crossrec_ndcg_at_10": ("NDCG@10 on the hold-out, of model and best baseline.", ("system",)),
    "crossrec_run_bytes": ("Bytes of the run's folder.", ()),
    "crossrec_last_success_timestamp_seconds": ("When what readers follow was published.", ()),
}
COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "crossrec_jobs": ("Jobs that ended, by command and status.", ("command", "status")),
}
"""Name, description, labels; Ray puts ray_ before, and _total behind a counter."""


class RunMetrics:
    """The metrics of one job; Ray must run."""

    def __init__(self, published_at: str | None = None) -> None:
        self._gauges = {name: Gauge(name, *facts) for name, facts in GAUGES.items()}
        self._counters = {name: Counter(name, *facts) for name, facts in COUNTERS.items()}
        # From the start: an age that grows all night long is seen by any scrape.
        self._set("crossrec_last_success_timestamp_seconds", _to_seconds(published_at))

    def on_stage(self, event: StageEvent) -> None:
        """Tell that a stage began or ended."""
        labels = {"stage": event.name if event.name in STAGES else OTHER}
        is_running = event.state == "began"
        self._set("crossrec_stage_running", float(is_running), **labels)
        if not is_running:
            self._set("crossrec_stage_seconds", event.facts["seconds"], **labels)
        if event.name == "publish" and event.state == "done":
            published = _to_seconds(event.facts.get("created"))
            self._set("crossrec_last_success_timestamp_seconds", published)

    def on_end(self, said: dict[str, Any]) -> None:
        """Tell what the run's summary says."""
        command = said["command"] if said["command"] in COMMANDS else OTHER
        labels = {"command": command, "status": said["status"]}
        self._counters["crossrec_jobs"].inc(1.0, labels)
        rows, metrics = said.get("rows", {}), said.get("metrics", {})
        for name, kind in ROWS.items():
            self._set("crossrec_rows", rows.get(name), kind=kind)
        self._set("crossrec_rejected_share", rows.get("rejected_share"))
        self._set("crossrec_ndcg_at_10", metrics.get("ndcg@10"), system="model")
        best = metrics.get("best_baseline_ndcg@10")
        self._set("crossrec_ndcg_at_10", best, system="best_baseline")
        self._set("crossrec_run_bytes", said.get("bytes"))

    def _set(self, name: str, value: float | None, **labels: str) -> None:
        if value is not None:
            self._gauges[name].set(float(value), labels)


def _to_seconds(moment: object) -> float | None:
    """Return seconds since 1970; None for what is no moment."""
    try:
        return dt.datetime.fromisoformat(str(moment)).timestamp()
    except ValueError:
        return None
