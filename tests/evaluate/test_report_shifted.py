"""The report shows what is left of the model's quality where data go wrong."""

from typing import Any

import pytest

from crossrec.evaluate.report import render_report
from tests.evaluate.pages import Page, small_metrics, whole_metrics


def section(metrics: dict[str, Any]) -> str:
    page = render_report(metrics, [])
    return page[page.index('<section id="shifts"') :].split("</section>")[0]


def test_each_shift_stands_before_after_and_beside_popularity() -> None:
    found = section(whole_metrics())
    assert "wrong events: before .0813, after .0761, popularity .0642; 100 events: before" in found
    assert "Of the shifts, 1 of 2 ahead of the best popularity for certain." in found
    # .0433 in food, where popularity has .05 and the interval is .004 to either side.
    assert "Behind it for certain: 100 events in food." in found
    assert "100 events left in food; training 66 s" in found
    assert "wrong events +.0119 (95 % interval +.0079 to +.0159)" in found


@pytest.mark.parametrize("missing", ["all", "domains", "lead", "lost", "after", "seconds"])
def test_figures_may_be_missing(missing: str) -> None:
    metrics = whole_metrics()
    for shift in metrics["study"]["shifts"]:
        shift[missing] = None
        for part in (shift["all"] or {}, *(shift["domains"] or {}).values()):
            part[missing] = None
    assert "None" not in Page(render_report(metrics, [])).text()


def test_without_shifts_there_is_no_section() -> None:
    assert 'id="shifts"' not in render_report(small_metrics(), [])
