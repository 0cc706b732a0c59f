"""The report says what the metrics say, honestly, and lets no text of the data become markup."""

import copy
from datetime import date, timedelta
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest

from crossrec.evaluate.charts import weeks
from crossrec.evaluate.report import render_report
from crossrec.evaluate.verdict import best_baseline, headline, remarks

VOID = {"br", "input", "link", "meta"}
EVIL = "<script>alert(1)</script>\"'>&amp;</style><!-- "


class Page(HTMLParser):
    """Reads a page, fails where tags do not match, and keeps elements and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute twice in {tag}"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self, *tags: str) -> str:
        hidden = ("script", "style", "title")
        return " ".join(
            text for tag, text in self.texts if (tag in tags if tags else tag not in hidden)
        )


def figures(ndcg: float, pairs: int = 1660) -> dict[str, float]:
    return {"pairs": pairs, "hr@10": 2 * ndcg, "recall@10": ndcg, "ndcg@10": ndcg}


def system(shop: float, video: float, cold: float = 0.0) -> dict[str, Any]:
    """Figures of a system; all is the mean of two domains with equally many pairs."""
    return {
        "all": figures((shop + video) / 2),
        "cold_item": figures(cold, 193),
        "warm_item": figures((shop + video) / 2, 1541),
        "cold_in_domain": None,
        "domain": {"shop": figures(shop, 830), "video": figures(video, 830)},
    }


@pytest.fixture
def metrics() -> dict[str, Any]:
    curve = [
        {"phase": "fit", "epoch": 0, "loss": None, "ndcg@10": 0.03, "seconds": 9.0},
        {"phase": "fit", "epoch": 1, "loss": 6.5, "ndcg@10": 0.05, "seconds": 9.0},
        {"phase": "fit", "epoch": 2, "loss": 5.5, "ndcg@10": 0.07, "seconds": 9.0},
    ]
    domains = [
        {"name": "shop", "start": 0, "stop": 1200, "events": 90_000, "users": 5000},
        {"name": "video", "start": 1200, "stop": 4000, "events": 59_200, "users": 4000},
    ]
    source = {"table": "events", "path": "s3://b/p0.parquet", "bytes": 1_200_000, "version": "v"}
    return {
        "run_id": "2014-06-08",
        "k": 10,
        "holdout": {
            "start": "2014-05-26",
            "stop": "2014-06-09",
            "days": 14,
            "pairs": 1660,
            "users": 1204,
        },
        "systems": {
            "popularity_all": system(0.001, 0.002),
            "popularity_7d": system(0.05, 0.07),
            "model": system(0.08, 0.10, cold=0.02),
            "step0": system(0.03, 0.04, cold=0.01),
        },
        "training": {"curve": curve, "best_epoch": 2, "fusion": {"text": 0.42}},
        "model": {"id": "m1", "backbone": "pkg://minilm", "parameters": 22_713_216},
        "data": {
            "as_of": "2014-06-08T00:00:00+00:00",
            "domains": domains,
            "users": 7115,
            "users_without_accepted_events": 4,
            "events": 149_200,
            "items": 4000,
            "ignored_after_as_of": 112,
            "rejects": {"events": {"null user_id": 20, "item unknown": 30}, "items": {}},
            "inputs": [source | {"rows": 10_000}],
            "events_by_week": {
                "shop": {"2014-05-19": 700, "2014-06-02": 900},
                "video": {"2014-05-26": 400},
            },
        },
    }


@pytest.fixture
def sample() -> list[dict[str, Any]]:
    return [
        {
            "user_id": "anna",
            "history": [
                {"date": "2014-01-02", "domain": "shop", "item_id": "s1", "title": "Old atlas"},
                {"date": "2014-05-20", "domain": "video", "item_id": "v1", "title": "New film"},
            ],
            "lists": {
                "shop": [
                    {"item_id": "s7", "title": "Lamp", "score": 3.25, "is_next": False},
                    {"item_id": "s8", "title": "Star chart", "score": 2.5, "is_next": True},
                ],
                "video": [],
            },
            "next": [
                {"domain": "shop", "item_id": "s8", "title": "Star chart"},
                {"domain": "video", "item_id": "v9", "title": "Comets"},
            ],
        },
        {"user_id": "ben", "history": [], "lists": {}, "next": []},
    ]


def test_headline_of_a_better_model_names_the_best_baseline(metrics: dict[str, Any]) -> None:
    # (.08 + .10) / 2 = .09 against (.05 + .07) / 2 = .06
    assert headline(metrics) == (
        "On the last 14 days, crossrec's lists reach NDCG@10 .0900, "
        "1.5 times the best baseline (popularity, 7 days: .0600)."
    )


def test_headline_of_a_small_lead_is_in_percent(metrics: dict[str, Any]) -> None:
    metrics["systems"]["model"]["all"] = figures(0.0615)  # .0615 / .06 = 1.025
    assert ".0615, 2\u00a0% above the best baseline" in headline(metrics)


def test_headline_says_that_a_baseline_is_better(metrics: dict[str, Any]) -> None:
    metrics["systems"]["model"]["all"] = figures(0.045)  # 1 - .045 / .06 = 25 %
    assert headline(metrics) == (
        "On the last 14 days, a baseline is better than crossrec: popularity, 7 days reaches "
        "NDCG@10 .0600, crossrec .0450 (25\u00a0% less)."
    )


def test_headline_of_equal_figures_claims_no_lead(metrics: dict[str, Any]) -> None:
    metrics["systems"]["model"]["all"] = figures(0.06)
    assert "no more and no less than the best baseline" in headline(metrics)


def test_headline_says_that_baselines_found_nothing(metrics: dict[str, Any]) -> None:
    metrics["systems"] = {"model": system(0.08, 0.10), "popularity_7d": system(0.0, 0.0)}
    assert headline(metrics).endswith(".0900, while every baseline scores 0.")


def test_headline_without_baselines_says_so(metrics: dict[str, Any]) -> None:
    metrics["systems"] = {"model": system(0.08, 0.10), "step0": system(0.03, 0.04)}
    assert headline(metrics).endswith("; no baseline was judged beside them.")


def test_best_baseline_is_never_the_model_before_training(metrics: dict[str, Any]) -> None:
    metrics["systems"]["step0"] = system(0.5, 0.5)
    assert best_baseline(metrics) == "popularity_7d"


def test_remarks_name_the_domain_in_which_a_baseline_leads(metrics: dict[str, Any]) -> None:
    metrics["systems"]["popularity_7d"]["domain"]["video"] = figures(0.11, 830)
    assert (
        "crossrec leads in 1 of 2 domains, and not in video (.1000; popularity, 7 days .1100)."
        in remarks(metrics)
    )


def test_remarks_say_that_the_model_leads_nowhere(metrics: dict[str, Any]) -> None:
    metrics["systems"]["popularity_7d"] = system(0.2, 0.3)
    assert "crossrec leads in none of the 2 domains." in remarks(metrics)


def test_remarks_say_when_training_did_not_help(metrics: dict[str, Any]) -> None:
    metrics["systems"]["step0"]["all"] = figures(0.12)
    assert "Training did not help: before it, the same model had .1200." in remarks(metrics)


def test_remarks_caution_about_few_pairs(metrics: dict[str, Any]) -> None:
    assert not any("hint" in sentence for sentence in remarks(metrics))
    metrics["systems"]["model"]["all"] = figures(0.09, pairs=37)
    assert remarks(metrics)[-1] == ("Only 37 lists could be judged: take these figures as a hint.")


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
    assert links == ["#main", "#quality", "#slices", "#training", "#data", "#users"]
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
    metrics["systems"]["als"] = system(0.01, 0.02)
    text = Page(render_report(metrics, [])).text()
    for name in ("crossrec", "before training", "popularity, all time", "als"):
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
    labels = [str(a["aria-label"]) for a in Page(render_report(metrics, [])).all("svg")]
    assert (
        "shop: crossrec .0800, before training .0300, popularity, 7 days .0500, "
        "popularity, all time .0010" in labels
    )


def test_report_draws_the_learning_curve_and_its_choice(metrics: dict[str, Any]) -> None:
    labels = [str(a["aria-label"]) for a in Page(render_report(metrics, [])).all("svg")]
    assert "Loss, fit: from 6.5 in epoch 1 to 5.5 in 2" in labels
    assert (
        "Valid NDCG@10, fit: from 0.03 in epoch 0 to 0.07 in 2; epoch 2 was chosen, 0.07" in labels
    )


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
    label = [str(a["aria-label"]) for a in Page(render_report(metrics, [])).all("svg")][-2]
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
    assert [("✓ next" in row, "3.250" in row) for row in rows] == [(False, True), (True, False)]
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
    assert "crossrec and the baselines" not in text


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
