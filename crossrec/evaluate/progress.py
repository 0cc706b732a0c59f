"""The part of the report that shows how the model was trained, and what it is.

In: what metrics.json holds. Out: a section with the learning curves of every phase and a table of
what was chosen, or None if nothing is known of either.

>>> training_section({}) is None
True
>>> curve = [{"phase": "fit", "epoch": 1, "loss": 2.0}, {"phase": "fit", "epoch": 2, "loss": 1.5}]
>>> "Loss, before any label" in training_section({"training": {"adapt": curve[:1]}})
True
>>> "Loss, fit: from 2 in epoch 1 to 1.5 in 2" in training_section({"training": {"curve": curve}})
True
"""

from collections.abc import Mapping
from math import isfinite
from typing import Any

from crossrec.evaluate.charts import grid
from crossrec.evaluate.curves import line
from crossrec.evaluate.judged import Metrics
from crossrec.evaluate.markup import Markup, Rows, count, measure, none, render, table, tag

EARLIER = "earlier_ndcg@10"
"""In a point of the curve: on the slice that an earlier model, from which this one goes on, was
judged on."""

CURVES = ("adapt", "curve")
"""What of a training are points by round or epoch."""


def training_section(metrics: Metrics) -> Markup | None:
    """Return the learning curves of every phase, what was chosen, and what the model is."""
    training, model = metrics.get("training") or {}, metrics.get("model") or {}
    if not training and not model:
        return None
    measured = f"ndcg@{metrics.get('k', 10)}"
    titles = {
        measured: f"Valid {measured.upper()}",
        EARLIER: "NDCG@10 where it went on from",
        "loss": "Loss",
        "learning_rate": "Learning rate",
        "gradient_norm": "Gradient norm",
        "histories_per_s": "Histories a second",
        "tokens_per_s": "Tokens a second",
        "texts_per_s": "Texts a second",
    }
    curves: dict[tuple[str, str], list[tuple[int, float]]] = {}
    adapted = [{**point, "phase": "before any label"} for point in training.get("adapt") or []]
    for epoch in [*adapted, *(training.get("curve") or [])]:
        for name in titles:
            value = epoch.get(name)
            if value is not None and isfinite(value):
                key = (str(epoch.get("phase") or ""), name)
                curves.setdefault(key, []).append((epoch["epoch"], value))
    charts = [
        line(f"{titles[name]}{', ' if phase else ''}{phase}", points, _chosen(training, name))
        for (phase, name), points in curves.items()
    ]
    facts = _facts(model) + _facts({key: training[key] for key in training if key not in CURVES})
    rows = [Rows(None, facts)] if facts else []
    return render(
        [
            _said(training),
            _forgotten(training),
            grid(charts) if charts else none("No learning curve was kept."),
            table("The model", ["what", "value"], rows) if rows else None,
        ]
    )


def _said(training: Mapping[str, Any]) -> Markup | None:
    """Say it plainly where no epoch was better than none.

    >>> _said({"best_epoch": 0, "curve": [{"epoch": 0}, {"epoch": 1}]})
    '<p>Training did not help on the validation slice; the refit has 0 epochs.</p>'
    """
    if training.get("best_epoch") != 0:
        return None
    if all(not epoch.get("epoch") for epoch in training.get("curve") or []):
        return tag("p", "No epoch was trained: the model is as it was before training.")
    return tag("p", "Training did not help on the validation slice; the refit has 0 epochs.")


def _forgotten(training: Mapping[str, Any]) -> Markup | None:
    """Say what going on from an earlier model did to what that one was judged on.

    >>> curve = [{"epoch": 0, "earlier_ndcg@10": 0.2}, {"epoch": 1, "earlier_ndcg@10": 0.19}]
    >>> "from .2000 before tonight to .1900" in _forgotten({"best_epoch": 1, "curve": curve})
    True
    """
    found = {epoch["epoch"]: epoch.get(EARLIER) for epoch in training.get("curve") or []}
    before, after = found.get(0), found.get(training.get("best_epoch", 0))
    if before is None or after is None:
        return None
    said = (
        "On the days that the model it went on from was judged on, NDCG@10 went from "
        f"{measure(before)} before tonight to {measure(after)} in the chosen epoch."
    )
    return tag("p", said)


def _chosen(training: Mapping[str, Any], name: str) -> int | None:
    """Return the epoch to mark in a curve: valid figures choose, the loss does not."""
    return training.get("best_epoch") if "ndcg" in name else None


def _facts(values: Mapping[str, Any], before: str = "") -> list[list[object]]:
    """Return nested values as rows of name and value, long lists and nulls left out.

    >>> _facts({"best_epoch": 3, "fusion": {"moments": 16}, "note": None})
    [['best epoch', '3'], ['fusion, moments', '16']]
    """
    rows: list[list[object]] = []
    for key, value in values.items():
        name = before + str(key).replace("_", " ")
        if isinstance(value, Mapping):
            rows += _facts(value, f"{name}, ")
        elif isinstance(value, bool | str):
            rows.append([name, str(value)])
        elif isinstance(value, int):
            rows.append([name, count(value)])
        elif isinstance(value, float):
            rows.append([name, f"{value:.4g}"])
    return rows
