"""What Prometheus is told, and that cluster/grafana.json asks for nothing else."""

import json
import re
import time
import urllib.request
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from crossrec import runmetrics
from crossrec.runlog import StageEvent
from crossrec.runmetrics import COUNTERS, GAUGES, RunMetrics
from crossrec.score import progress

ROOT = Path(__file__).parents[1]
DASHBOARD, README = ROOT / "cluster/grafana.json", ROOT / "README.md"
GRID = 24
"""Columns of a dashboard."""


class Metric:
    """One of Ray's that remembers, and takes only the labels that it was made with."""

    made: dict[str, "Metric"]

    def __init__(self, name: str, description: str = "", tag_keys: tuple[str, ...] = ()) -> None:
        self.name, self.tag_keys = name, tag_keys
        self.values: dict[tuple[str, ...], float] = {}
        self.made[name] = self

    def set(self, value: float, tags: dict[str, str] | None = None) -> None:
        assert set(tags or {}) == set(self.tag_keys)
        self.values[tuple((tags or {}).values())] = value

    def inc(self, value: float, tags: dict[str, str] | None = None) -> None:
        assert set(tags or {}) == set(self.tag_keys)
        key = tuple((tags or {}).values())
        self.values[key] = self.values.get(key, 0.0) + value


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, Metric]:
    """Metrics by name, of a Ray that does not run."""
    found: dict[str, Metric] = {}
    monkeypatch.setattr(Metric, "made", found, raising=False)
    for module in (runmetrics, progress):
        monkeypatch.setattr(module, "Counter", Metric)
    monkeypatch.setattr(runmetrics, "Gauge", Metric)
    return found


SAID: dict[str, Any] = {
    "command": "nightly",
    "status": "done",
    "rows": {"in": 1_000, "rejected": 10, "rejected_share": 0.01, "users": 40, "out": 80},
    "metrics": {"ndcg@10": 0.25, "best_baseline_ndcg@10": 0.2},
    "bytes": 5_000,
}


def test_stages_are_told_as_they_go(made: dict[str, Metric]) -> None:
    metrics = RunMetrics()
    metrics.on_stage(StageEvent("score", "began", {}))
    assert made["crossrec_stage_running"].values == {("score",): 1.0}
    metrics.on_stage(StageEvent("score", "failed", {"seconds": 17.5}))
    assert made["crossrec_stage_running"].values == {("score",): 0.0}
    assert made["crossrec_stage_seconds"].values == {("score",): 17.5}


def test_publication_is_the_last_success(made: dict[str, Metric]) -> None:
    stamp = "crossrec_last_success_timestamp_seconds"
    metrics = RunMetrics("1970-01-02T00:00:00+00:00")
    assert made[stamp].values == {(): 86_400.0}
    facts = {"created": "1970-01-03T00:00:00+00:00", "seconds": 1.0}
    metrics.on_stage(StageEvent("publish", "failed", facts))
    assert made[stamp].values == {(): 86_400.0}
    metrics.on_stage(StageEvent("publish", "done", facts))
    assert made[stamp].values == {(): 2 * 86_400.0}


def test_end_tells_what_the_summary_says(made: dict[str, Metric]) -> None:
    metrics = RunMetrics()
    metrics.on_end(SAID)
    assert made["crossrec_jobs"].values == {("nightly", "done"): 1.0}
    rows = {("read",): 1_000.0, ("rejected",): 10.0, ("users",): 40.0, ("lists",): 80.0}
    assert made["crossrec_rows"].values == rows
    assert made["crossrec_rejected_share"].values == {(): 0.01}
    assert made["crossrec_ndcg_at_10"].values == {("model",): 0.25, ("best_baseline",): 0.2}
    assert made["crossrec_run_bytes"].values == {(): 5_000.0}


def test_labels_have_few_values_whatever_is_run(made: dict[str, Metric]) -> None:
    metrics = RunMetrics()
    for number in range(50):
        metrics.on_stage(StageEvent(f"stage {number}", "began", {}))
        metrics.on_end(SAID | {"command": f"command {number}"})
    assert made["crossrec_stage_running"].values == {("other",): 1.0}
    assert made["crossrec_jobs"].values == {("other", "done"): 50.0}


def exposed(made: dict[str, Metric]) -> dict[str, set[str]]:
    """Return the labels of every metric by the name under which Ray exposes it."""
    RunMetrics()
    progress.Counters()
    counters = set(COUNTERS) | {name for name in made if name not in GAUGES}
    return {
        f"ray_{name}{'_total' if name in counters else ''}": set(metric.tag_keys)
        for name, metric in made.items()
    }


def test_dashboard_asks_for_every_metric_and_no_other(made: dict[str, Metric]) -> None:
    expressions = [t["expr"] for panel in dashboard()["panels"] for t in panel["targets"]]
    asked = {name for text in expressions for name in re.findall(r"\bray_\w+", text)}
    assert asked == set(exposed(made))


def test_readme_names_every_metric_and_no_other(made: dict[str, Metric]) -> None:
    text = README.read_text(encoding="utf-8")
    assert set(re.findall(r"\bray_crossrec_\w+", text)) == set(exposed(made))


def test_dashboard_groups_by_labels_that_there_are(made: dict[str, Metric]) -> None:
    labels = exposed(made)
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            (name,) = re.findall(r"\bray_\w+", target["expr"])
            by = {
                word
                for group in re.findall(r"by \(([^)]*)\)", target["expr"])
                for word in group.split(", ")
            }
            shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert shown <= by <= labels[name]


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return found


def test_dashboard_is_one_that_grafana_imports() -> None:
    found = dashboard()
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,40}", found["uid"])
    assert found["title"]
    assert found["schemaVersion"] >= 36  # since when a data source is a type and a uid
    assert "id" not in found, "ids of a Grafana of one's own refuse the import into another"
    variables = {variable["name"]: variable for variable in found["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    ids = [panel["id"] for panel in found["panels"]]
    assert len(ids) == len(set(ids))
    for panel in found["panels"]:
        assert panel["type"] in ("stat", "timeseries")
        assert panel["title"]
        assert panel["description"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["fieldConfig"]["defaults"]["unit"]
        references = [target["refId"] for target in panel["targets"]]
        assert references
        assert len(references) == len(set(references))
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"]
            assert target["expr"].count("(") == target["expr"].count(")")
            asked = set(re.findall(r"\$(\w+)", target["expr"]))
            assert asked <= set(variables) | {"__rate_interval"}


def test_panels_lie_beside_each_other() -> None:
    places = [panel["gridPos"] for panel in dashboard()["panels"]]
    assert all(place["x"] + place["w"] <= GRID for place in places)
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below


@pytest.mark.slow
def test_ray_exposes_what_the_dashboard_asks_for(ray_cluster: None) -> None:
    """Those of the job; the names of the scoring actors' have the same form."""
    import ray

    metrics = RunMetrics("2026-11-26T02:00:00+00:00")
    metrics.on_stage(StageEvent("score", "began", {}))
    metrics.on_stage(StageEvent("score", "done", {"seconds": 17.5}))
    metrics.on_end(SAID)
    progress.Counters().count(users=3, pairs=9, compute=0.5)
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    wanted = {
        *(f"ray_{name}" for name in GAUGES),
        *(f"ray_{name}_total" for name in COUNTERS),
        "ray_crossrec_score_users_total",
        "ray_crossrec_score_pairs_total",
        "ray_crossrec_score_seconds_total",
    }
    deadline = time.monotonic() + 60
    missing = wanted
    while missing and time.monotonic() < deadline:
        text = opener.open(url, timeout=10).read().decode()
        missing = {name for name in wanted if f"\n{name}{{" not in text}
        time.sleep(1)
    assert not missing
    assert re.search(r'\nray_crossrec_stage_seconds{[^}]*stage="score"[^}]*} 17\.5\n', text)
