"""The report shows what scores promise under the objectives that promise something."""

from typing import Any

import numpy as np
import pytest

from crossrec.evaluate.calibration import Pairs, describe_calibration
from crossrec.evaluate.report import render_report
from tests.evaluate.pages import Page, small_calibration, small_metrics, small_ratings

TITLE = "What scores promise"


@pytest.fixture
def metrics() -> dict[str, Any]:
    return small_metrics()


def test_scores_without_a_unit_promise_nothing(metrics: dict[str, Any]) -> None:
    assert TITLE not in render_report(metrics, [])
    # Under leave-one-out no days are predicted.
    assert TITLE not in render_report(metrics | {"calibration": None}, [])


def test_predicted_ratings_stand_beside_their_baselines(metrics: dict[str, Any]) -> None:
    page = render_report(metrics | {"ratings": small_ratings()}, [])
    assert Page(page).text("h2").count(TITLE) == 1
    assert not [label for label in Page(page).labels() if "came true" in label]
    whole = page[page.index("All domains, 1,234 rated events") : page.index("shop, 1,000")]
    rows = [row.split("</tr>")[0] for row in whole.split('<th scope="row">')[1:]]
    assert len(rows) == 3
    assert "<b>crossrec</b>" in rows[0]
    assert [part.split("<")[0] for part in rows[0].split('<td class="n">')[1:]] == [
        "0.7312",
        "0.5501",
    ]
    assert "video, 234 rated events" in page


def test_a_holdout_without_ratings_is_said_to_have_none(metrics: dict[str, Any]) -> None:
    page = render_report(metrics | {"ratings": {"all": None, "domain": {}}}, [])
    assert "No event of the hold-out carries a rating." in page


def test_probabilities_are_drawn_beside_what_came_true(metrics: dict[str, Any]) -> None:
    page = Page(render_report(metrics | {"calibration": small_calibration()}, []))
    labels = [label for label in page.labels() if "came true" in label]
    assert [label.split(":")[0] for label in labels] == ["All domains", "shop", "video"]
    assert labels[1] == (
        "shop: said 0.2 %: came true 0 % of 2,000 pairs; said 10 %: came true 5 % of 2,000 pairs"
    )
    marks = [
        a for tag in ("circle", "rect") for a in page.all(tag) if "mark" in str(a.get("class"))
    ]
    # Two bins in each of three charts; that of which nothing came true is hollow.
    assert [a["class"] for a in marks].count("mark model") == 5
    assert [a["class"] for a in marks].count("mark") == 1
    assert "Predicted ratings" not in page.text()


def test_judged_lists_stand_beside_all_users(metrics: dict[str, Any]) -> None:
    page = render_report(metrics | {"calibration": small_calibration()}, [])
    table = page[page.index("Said and come true") :].split("</table>")[0]
    everybody, judged = table.split("Judged lists")
    row = everybody[everybody.index('<th scope="row">shop</th>') :].split("</tr>")[0]
    cells = [part.split("<")[0] for part in row.split('<td class="n">')[1:]]
    # (.002 + .1) / 2, .05 / 2, and the errors .002 and .05 of the bins, half each
    assert cells == ["4,000", "5.1 %", "2.5 %", "2.6 %"]
    row = judged[judged.index('<th scope="row">shop</th>') :].split("</tr>")[0]
    assert '<td class="n">2,000</td>' in row


def test_points_lie_where_their_probabilities_are(metrics: dict[str, Any]) -> None:
    scores = np.array([0.001] * 1000 + [0.1] * 1000, np.float32)
    outcomes = np.array([1] + [0] * 999 + [1] * 100 + [0] * 900, bool)
    pairs = Pairs(scores, outcomes, np.ones(2000, bool))
    found = {"days": 7, "top_k": 50, "users": 9, **describe_calibration({"shop": pairs})}
    page = Page(render_report(metrics | {"calibration": found}, []))
    marks = [a for a in page.all("circle") if a["class"] == "mark model"]
    # The axes go from one in a thousand to one in ten: both points are corners on the diagonal.
    diagonal = [a for a in page.all("path") if a["class"] == "series"][-1]["d"]
    ends = [f"{float(str(a['cx'])):g} {float(str(a['cy'])):g}" for a in marks]
    assert diagonal == f"M{ends[0]}L{ends[1]}"


def test_a_single_domain_is_drawn_once(metrics: dict[str, Any]) -> None:
    found = small_calibration()
    for part in ("known_users", "judged_lists"):
        del found[part]["domain"]["video"]
    page = Page(render_report(metrics | {"calibration": found}, []))
    assert [label.split(":")[0] for label in page.labels() if "came true" in label] == ["shop"]


def test_nothing_written_is_said_to_be_nothing(metrics: dict[str, Any]) -> None:
    nothing: dict[str, Any] = {"all": None, "domain": {}}
    found = {"days": 14, "top_k": 50, "users": 0, "known_users": nothing, "judged_lists": nothing}
    assert "No list was written" in render_report(metrics | {"calibration": found}, [])
