"""The report says what the metrics say, and lets no text of the data become markup."""

import copy
from datetime import date, timedelta
from itertools import pairwise
from typing import Any

import pytest

from crossrec.evaluate.curves import weeks
from crossrec.evaluate.report import render_report
from tests.evaluate.pages import Page, compared, small_metrics, small_sample, system

EVIL = "<script>alert(1)</script>\"'>&amp;</style><!-- "


@pytest.fixture
def metrics() -> dict[str, Any]:
    return small_metrics()


@pytest.fixture
def sample() -> list[dict[str, Any]]:
    return small_sample()


def test_report_is_well_formed_with_every_id_once(
    metrics: dict[str, Any], sample: list[dict[str, Any]]
) -> None:
    ids = [a["id"] for _, a in Page(render_report(metrics, sample)).elements if "id" in a]
    assert len(ids) == len(set(ids))


def test_report_needs_no_other_file(metrics: dict[str, Any], sample: list[dict[str, Any]]) -> None:
    page = Page(render_report(metrics, sample))
    targets = [a[name] for _, a in page.elements for name in ("src", "href") if name in a]
    assert all(target and target.startswith(("#", "data:")) for target in targets)
    style = page.text("style")
    assert "url(" not in style
    assert "@import" not in style


def test_report_links_lead_to_its_parts(
    metrics: dict[str, Any], sample: list[dict[str, Any]]
) -> None:
    page = Page(render_report(metrics, sample))
    ids = {a.get("id") for _, a in page.elements}
    links = [str(a["href"]) for a in page.all("a")]
    assert links == [
        f"#{name}"
        for name in (
            "main",
            "quality",
            "transfer",
            "slices",
            "study",
            "training",
            "data",
            "users",
        )
    ]
    assert {link.removeprefix("#") for link in links} <= ids


def test_report_speaks_to_screen_readers(
    metrics: dict[str, Any], sample: list[dict[str, Any]]
) -> None:
    page = Page(render_report(metrics, sample))
    assert page.all("html")[0]["lang"] == "en"
    assert all(a.get("role") == "img" and a.get("aria-label") for a in page.all("svg"))
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(a.get("scope") in ("col", "row", "rowgroup") for a in page.all("th"))
    levels = [int(name[1]) for name, _ in page.elements if name in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_report_names_systems_as_people_do(metrics: dict[str, Any]) -> None:
    metrics["systems"] |= {"als": system(0.01, 0.02), "mine": system(0.01, 0.02)}
    text = Page(render_report(metrics, [])).text()
    for name in ("crossrec", "before training", "popularity, all time", "ALS", "mine"):
        assert name in text
    assert "popularity_all" not in text


def test_report_shows_exact_figures_and_ratios(metrics: dict[str, Any]) -> None:
    page = render_report(metrics, [])
    row = page[page.index('<th scope="row">popularity, 7 days</th>') :].split("</tr>")[0]
    # NDCG .06, HR twice that, Recall as NDCG, and .09 / .06
    assert [part.split("<")[0] for part in row.split('<td class="n">')[1:]] == [
        ".0600",
        ".1200",
        ".0600",
        "1.50 times",
    ]


def test_report_draws_the_model_beside_the_baselines_by_domain(metrics: dict[str, Any]) -> None:
    labels = Page(render_report(metrics, [])).labels()
    assert "shop: crossrec .0800, popularity, 7 days .0500, popularity, all time .0010" in labels
    assert (
        "All lists: The model, and parts of it: crossrec .0900, before training .0350; "
        "Baselines: popularity, 7 days .0600, popularity, all time .0015" in labels
    )


def test_report_shows_the_lead_in_each_domain_beside_its_figures(metrics: dict[str, Any]) -> None:
    assert "+.0300" not in render_report(metrics, [])
    metrics["comparison_by_domain"] = {"shop": {"popularity_7d": compared(0.03, 0.01, 0.05)}}
    assert "+.0300 (+.0100 to +.0500)" in render_report(metrics, [])


def test_report_draws_the_learning_curve_and_its_choice(metrics: dict[str, Any]) -> None:
    labels = Page(render_report(metrics, [])).labels()
    assert "Loss, fit: from 6.5 in epoch 1 to 5.5 in 2" in labels
    assert (
        "Valid NDCG@10, fit: from 0.03 in epoch 0 to 0.07 in 2; epoch 2 was chosen, 0.07" in labels
    )


def test_report_shows_what_a_continued_training_forgot(metrics: dict[str, Any]) -> None:
    assert "went on from" not in render_report(metrics, [])
    for point, ndcg in zip(metrics["training"]["curve"], (0.08, 0.07, 0.075), strict=True):
        point["earlier_ndcg@10"] = ndcg
    page = Page(render_report(metrics, []))
    assert "went from .0800 before tonight to .0750 in the chosen epoch" in page.text("p")
    assert any(label.startswith("NDCG@10 where it went on from") for label in page.labels())


def test_report_leaves_out_values_that_cannot_be_drawn(metrics: dict[str, Any]) -> None:
    metrics["training"]["curve"][1]["loss"] = float("nan")
    page = render_report(metrics, [])
    assert "Loss, fit: from 5.5 in epoch 2 to 5.5 in 2" in page
    assert "nan" not in Page(page).text("text")


def test_report_counts_rejected_rows_by_reason(metrics: dict[str, Any]) -> None:
    page = render_report(metrics, [])
    assert "50 rows were refused" in page  # 20 + 30
    row = page[page.index("item unknown") :].split("</tr>")[0]
    assert '<td class="n">0.3 %</td>' in row  # 30 of 10,000
    metrics["data"]["rejects"] = {"events": {}, "items": {}}
    assert "No row of the input was refused." in render_report(metrics, [])


def test_report_names_the_slice_that_has_nothing_to_judge(metrics: dict[str, Any]) -> None:
    assert "Nothing to judge for users new to the domain." in render_report(metrics, [])


def test_weeks_say_how_many_had_no_events(metrics: dict[str, Any]) -> None:
    label = Page(render_report(metrics, [])).labels()[-2]
    # shop has events in the first and third week of three
    assert label == (
        "shop: events by week from 2014-05-19 to 2014-06-02, most in the week of 2014-06-02, 900; "
        "1 week without events"
    )


def test_weeks_draws_one_path_however_many_weeks() -> None:
    events = {date(2000, 1, 3) + timedelta(weeks=n): n for n in range(1, 1001)}
    assert weeks("shop", events).count("<path") == 1


def test_users_have_history_newest_first_and_marked_lists(
    metrics: dict[str, Any], sample: list[dict[str, Any]]
) -> None:
    page = render_report(metrics, sample)
    anna = page[page.index('<article id="user-0"') : page.index('<article id="user-1"')]
    history = anna[anna.index("Before, the last 2") : anna.index("What crossrec would show")]
    assert history.index("2014-05-20") < history.index("2014-01-02")
    lists = anna[anna.index("What crossrec would show") :]
    rows = [row for row in lists.split("<tr>") if 'scope="row"' in row]
    assert [("✓ chosen next" in row, "3.250" in row) for row in rows] == [
        (False, True),
        (True, False),
    ]
    assert "✓ rank 2" in anna  # Star chart stands second in shop
    assert "not shown" in anna  # Comets stand nowhere
    assert "anna · 1 of 2 found" in page


def test_report_without_a_title_shows_the_id(
    metrics: dict[str, Any], sample: list[dict[str, Any]]
) -> None:
    sample[0]["lists"]["shop"][0]["title"] = ""
    assert "<code>s7</code>" in render_report(metrics, sample)


def _poison(value: Any) -> Any:
    """Return the value with EVIL added to every text, keys of domains and phases included."""
    if isinstance(value, dict):
        return {(k + EVIL if k in ("shop", "video") else k): _poison(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_poison(part) for part in value]
    return value + EVIL if isinstance(value, str) else value


def test_report_lets_no_text_become_markup(
    metrics: dict[str, Any], sample: list[dict[str, Any]]
) -> None:
    clean, dates = Page(render_report(metrics, sample)), metrics["holdout"]
    evil = _poison(copy.deepcopy(metrics)) | {"holdout": dates}
    evil["systems"][EVIL] = system(0.01, 0.02)
    evil["data"]["rejects"] = {EVIL: {EVIL: 1}}
    poisoned = render_report(evil, _poison(sample))
    page = Page(poisoned)
    assert len(page.all("script")) == len(clean.all("script")) == 1
    assert len(page.all("style")) == len(clean.all("style")) == 1
    assert "<!-- " not in poisoned
    assert f"Star chart{EVIL}" in page.text()


@pytest.mark.parametrize("missing", ["holdout", "systems", "training", "model", "data"])
@pytest.mark.parametrize("is_null", [True, False])
def test_report_is_written_without_a_part(
    metrics: dict[str, Any], sample: list[dict[str, Any]], missing: str, is_null: bool
) -> None:
    if is_null:
        metrics[missing] = None
    else:
        del metrics[missing]
    text = Page(render_report(metrics, sample)).text()
    assert "anna" in text
    assert "None" not in text


def test_report_of_nothing_says_that_nothing_was_judged(metrics: dict[str, Any]) -> None:
    empty = dict.fromkeys(("all", "cold_item", "warm_item", "cold_in_domain"))
    metrics["systems"] = {"model": empty | {"domain": {}}, "popularity_7d": empty | {"domain": {}}}
    metrics["holdout"] |= {"pairs": 0, "users": 0}
    text = Page(render_report(metrics, [])).text()
    assert "Nothing could be judged: on the last 14 days, no list was put to the test." in text
    assert "No sample of users was written." in text
    assert "Beside the baselines" not in text


def test_report_of_a_single_domain_draws_it_once(metrics: dict[str, Any]) -> None:
    for judged in metrics["systems"].values():
        del judged["domain"]["video"]
    page = render_report(metrics, [])
    assert "Exact figures by domain" not in page
    assert "leads in" not in page
    assert "ahead of every baseline" not in page
    assert page.count('aria-label="All lists: ') == 1


def test_report_says_that_no_curve_was_kept(metrics: dict[str, Any]) -> None:
    metrics["training"] = {"curve": []}
    assert "No learning curve was kept." in render_report(metrics, [])


def test_report_says_the_same_twice(metrics: dict[str, Any], sample: list[dict[str, Any]]) -> None:
    assert render_report(metrics, sample) == render_report(metrics, sample)


def test_reasons_stand_beside_the_items_that_they_explain() -> None:
    sample = small_sample()
    reasons = [{"domain": "video", "item_id": "v1", "title": "<New film>"}]
    sample[0]["lists"]["shop"][0]["because"] = reasons
    sample[0]["lists"]["shop"][1]["because"] = []
    page = render_report(small_metrics(), sample)
    assert page.count("because of") == 1
    assert "because of &lt;New film&gt; (video)" in page


def test_faithfulness_of_reasons_is_shown_where_it_was_measured() -> None:
    shares = {"reasons": 0.9123, "random": 0.25}
    found: dict[str, float | None] = {
        "reasons": 3,
        "users": 40,
        "items": 1200,
        "first_reason": 0.875,
    }
    found |= {"rank_correlation": 0.9912, "rank_correlation_of_all": None}
    metrics = small_metrics() | {
        "explanations": found | {"sufficiency": shares, "necessity": shares}
    }
    page = render_report(metrics, [])
    assert all(said in page for said in ("Why items are shown", ".9912", ".8750", ".9123", "1,200"))
    assert "Why items are shown" not in render_report(small_metrics(), [])
