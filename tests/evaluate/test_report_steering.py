"""The part of the report on what steering costs."""

from typing import Any

from crossrec.evaluate.report import render_report
from tests.evaluate.pages import Page, compared


def setting(control: float, diversity: float, ndcg: float, shown: float) -> dict[str, Any]:
    lists = {"coverage@10": shown, "gini@10": 1 - shown, "novelty@10": 9.0, "distance@10": 0.5}
    dials = {"popularity_control": control, "diversity": diversity}
    return dials | {"ndcg@10": ndcg, "hr@10": 2 * ndcg, "domain": {"a<b": lists}} | lists


def page_of(*settings: dict[str, Any]) -> str:
    published = {"popularity_control": 0.5, "diversity": 0.0}
    steering = {"k": 10, "published": published, "settings": list(settings)}
    return render_report({"run_id": "r", "k": 10, "steering": steering}, [])


def test_report_draws_what_popularity_control_costs() -> None:
    half = setting(0.5, 0, 0.15, 0.6) | {"cost": compared(0.05, 0.04, 0.06)}
    page = Page(page_of(setting(0, 0, 0.2, 0.4), half))
    assert page.labels() == [
        "Popularity control: NDCG@10 against coverage. 0: .2000 at .4000; 0.5: .1500 at .6000",
        "Popularity control: NDCG@10 against Gini. 0: .2000 at .6000; 0.5: .1500 at .4000",
    ]
    assert "lists are made with popularity control 0.5, diversity 0" in page.text("p")
    assert "+.0500 (+.0400 to +.0600)" in page.text("td")
    assert "a<b" in page.text("th")


def test_report_of_a_single_setting_has_no_curve() -> None:
    assert Page(page_of(setting(0, 0, 0.2, 0.4), setting(0.5, 0.5, 0.2, 0.4))).labels() == []


def test_report_of_lists_that_show_nothing_is_written() -> None:
    nothing = {f"{name}@10": None for name in ("ndcg", "hr", "coverage", "gini", "distance")}
    bare = setting(0, 0, 0.2, 0.4) | nothing
    other = bare | {"popularity_control": 1.0, "cost": None}
    assert "None" not in Page(page_of(bare, other)).text()
