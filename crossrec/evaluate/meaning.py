"""The part of the report that shows whether scores that have a unit keep what it promises.

In: `ratings` or `calibration` of metrics.json, which are there under the objectives whose scores
are ratings or probabilities. Out: a section, or None under the others.

>>> meaning_section({}) is None
True
>>> errors = {"model": 0.7, "biases": 0.75, "domain_mean": 1.0}
>>> ratings = {"all": {"events": 9, "rmse": errors, "mae": errors}, "domain": {}}
>>> "All domains, 9 rated events" in meaning_section({"ratings": ratings})
True
"""

from collections.abc import Mapping, Sequence
from typing import Any

from crossrec.evaluate.charts import grid
from crossrec.evaluate.judged import Metrics
from crossrec.evaluate.markup import (
    Markup,
    Rows,
    count,
    folded,
    none,
    note,
    render,
    share,
    table,
    tag,
)
from crossrec.evaluate.reliability import reliability

MOST_DOMAINS = 10
"""Domains drawn beside the chart of all; the tables have every one."""

PREDICTORS = {
    "model": "crossrec",
    "biases": "user's and item's mean",
    "domain_mean": "domain's mean",
}

FIGURES = ("pairs", "predicted", "observed", "ece", "bins")
BIN = ("low", "high", "predicted", "observed", "pairs")
"""What a place, and a bin of it, must have to be shown."""


def meaning_section(metrics: Metrics) -> Markup | None:
    """Return the errors of predicted ratings, or how well probabilities are calibrated."""
    if metrics.get("ratings"):
        return _ratings(metrics["ratings"])
    if metrics.get("calibration"):
        return _calibration(metrics["calibration"])
    return None


def _places(
    found: Mapping[str, Any] | None, names: Sequence[str]
) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the figures of all domains together, then of each; the only domain stands alone.

    Those without one of the names are left out.
    """
    domains = list(((found or {}).get("domain") or {}).items())
    whole = [("All domains", (found or {}).get("all"))] if len(domains) != 1 else []
    return [(place, figures) for place, figures in whole + domains if _has(figures, names)]


def _has(figures: Mapping[str, Any] | None, names: Sequence[str]) -> bool:
    return all((figures or {}).get(name) is not None for name in names)


def _ratings(ratings: Mapping[str, Any]) -> Markup:
    places = _places(ratings, ("events", "rmse", "mae"))
    if not places:
        return none("No event of the hold-out carries a rating.")
    explained = (
        "Scores are predicted ratings. Here they are beside those that users gave in the "
        "hold-out, in the ratings' own unit: the root of the mean squared error and the mean "
        "absolute error, lower is better. Users choose what they rate; of other items this says "
        "nothing."
    )
    groups = []
    for name, figures in places:
        rows = [
            [
                tag("b", title) if key == "model" else title,
                *(
                    f"{figures[error][key]:.4f}" if _has(figures[error], [key]) else "–"
                    for error in ("rmse", "mae")
                ),
            ]
            for key, title in PREDICTORS.items()
        ]
        events = figures["events"]
        groups.append(
            Rows(f"{name}, {count(events)} rated event{'' if events == 1 else 's'}", rows)
        )
    caption = "Predicted ratings beside given ones"
    return render([note(explained), table(caption, ["predicted by", ">RMSE", ">MAE"], groups)])


def _calibration(calibration: Mapping[str, Any]) -> Markup:
    places = _places(calibration.get("known_users"), FIGURES)
    if not places:
        return none("No list was written whose probabilities could be held against the hold-out.")
    days, k, users = (calibration.get(name) or 0 for name in ("days", "top_k", "users"))
    explained = (
        f"Scores are probabilities that the user has an event with the item in the next {days} "
        f"day{'' if days == 1 else 's'}. Here is how often that was so, for the {k} best items of "
        f"each of {count(users)} users known before the judged days, whatever they did in them. "
        "Bins hold about as many pairs of user and item each; on the dashed line as much "
        "came true as was said, and of a hollow square nothing did. Both axes grow tenfold from "
        "line to line."
    )
    largest = sorted(places, key=lambda place: -place[1]["pairs"])[: MOST_DOMAINS + 1]
    charts = [
        reliability(name, bins, f"off by {share(figures['ece'], 1.0)}")
        for name, figures in places
        if (name, figures) in largest and (bins := _whole_bins(figures))
    ]
    return render(
        [
            note(explained),
            grid(charts),
            _summary(calibration),
            folded("Every bin", _bins(calibration)),
        ]
    )


def _whole_bins(figures: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [found for found in figures["bins"] if _has(found, BIN)]


def _summary(calibration: Mapping[str, Any]) -> Markup:
    """Return mean probability, frequency and error, of all users and of the judged lists."""
    groups = []
    for part, title in (
        ("known_users", "All known users"),
        ("judged_lists", "Judged lists: users who then did something new"),
    ):
        rows = [
            [
                name,
                count(figures["pairs"]),
                *(share(figures[key], 1.0) for key in ("predicted", "observed", "ece")),
            ]
            for name, figures in _places(calibration.get(part), FIGURES)
        ]
        groups.append(Rows(title, rows))
    explained = (
        "Off by: the expected calibration error, how far a bin's mean probability is from its "
        "frequency, the mean over pairs. That a list's user did something new is known only "
        "afterwards: of those, more comes true than was said of everybody."
    )
    head = ["domain", ">pairs", ">said", ">came true", ">off by"]
    return render([table("Said and come true", head, groups), note(explained)])


def _bins(calibration: Mapping[str, Any]) -> Markup:
    groups = []
    for name, figures in _places(calibration.get("known_users"), FIGURES):
        rows = [
            [
                f"{share(found['low'], 1.0)} to {share(found['high'], 1.0)}",
                share(found["predicted"], 1.0),
                share(found["observed"], 1.0),
                count(found["pairs"]),
            ]
            for found in _whole_bins(figures)
        ]
        groups.append(Rows(name, rows))
    head = ["probability", ">said, mean", ">came true", ">pairs"]
    return table("All known users, by probability", head, groups)
