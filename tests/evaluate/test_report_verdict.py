"""The verdict says what the figures say: who leads, by how much, and if that could be chance."""

from typing import Any

import pytest

from crossrec.evaluate.judged import best_baseline
from crossrec.evaluate.verdict import headline, remarks
from tests.evaluate.pages import compared, figures, small_metrics, system, whole_metrics


@pytest.fixture
def metrics() -> dict[str, Any]:
    return small_metrics()


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


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


def test_remarks_say_in_which_domain_a_lead_could_be_chance(metrics: dict[str, Any]) -> None:
    metrics["comparison_by_domain"] = {
        "shop": {"popularity_7d": compared(0.03, -0.01, 0.07)},
        "video": {"popularity_7d": compared(0.03, 0.01, 0.05)},
    }
    said = "crossrec is ahead of every baseline in both domains; in shop that could be chance."
    assert said in remarks(metrics)


def test_remarks_caution_about_few_pairs(metrics: dict[str, Any]) -> None:
    assert not any("hint" in sentence for sentence in remarks(metrics))
    metrics["systems"]["model"]["all"] = figures(0.09, pairs=37)
    assert remarks(metrics)[-1] == ("Only 37 lists could be judged: take these figures as a hint.")


def test_headline_with_intervals_above_zero_is_sure_of_every_baseline(
    metrics: dict[str, Any],
) -> None:
    metrics["comparison"] = {
        "popularity_7d": compared(0.03, 0.0217, 0.0372),
        "popularity_all": compared(0.0885, 0.08, 0.097),
        "step0": compared(0.055, -0.01, 0.1),  # a part of the model, and no baseline
    }
    assert plain(headline(metrics)) == (
        "On the last 14 days, crossrec is better than every baseline: NDCG@10 .0900, 1.5 times the "
        "closest (popularity, 7 days), which is behind by .0300 (95 % interval .0217 to .0372)."
    )


def test_headline_says_that_a_lead_could_be_chance(metrics: dict[str, Any]) -> None:
    metrics["comparison"] = {"popularity_7d": compared(0.03, -0.001, 0.061)}
    assert plain(headline(metrics)).endswith(
        "1.5 times the best baseline (popularity, 7 days: .0600), but that could be chance: "
        "the lead is .0300 (95 % interval −.0010 to +.0610)."
    )


def test_headline_names_the_lesser_baseline_that_is_not_surely_beaten(
    metrics: dict[str, Any],
) -> None:
    metrics["comparison"] = {
        "popularity_7d": compared(0.03, 0.02, 0.04),
        "popularity_all": compared(0.0885, -0.01, 0.2),
    }
    said = plain(headline(metrics))
    assert "better than every baseline" not in said
    assert said.endswith("; over popularity, all time the lead could be chance.")


def test_headline_says_how_sure_a_baseline_is_ahead(metrics: dict[str, Any]) -> None:
    metrics["systems"]["model"]["all"] = figures(0.045)
    metrics["comparison"] = {"popularity_7d": compared(-0.015, -0.02, -0.01)}
    assert plain(headline(metrics)).endswith(
        "crossrec .0450 (25 % less); the difference is −.0150 (95 % interval −.0200 to −.0100)."
    )
    metrics["comparison"] = {"popularity_7d": compared(-0.015, -0.04, 0.01)}
    assert plain(headline(metrics)) == (
        "On the last 14 days, crossrec is not ahead of every baseline: popularity, 7 days reaches "
        "NDCG@10 .0600, crossrec .0450; the difference of −.0150 (95 % interval −.0400 to +.0100) "
        "could be chance."
    )


def test_headline_of_leave_one_out_names_what_was_judged(metrics: dict[str, Any]) -> None:
    metrics["protocol"] = "leave_one_out"
    assert headline(metrics).startswith("On the last event of every user, crossrec's lists reach")


def test_remarks_say_that_the_sequence_did_not_help(metrics: dict[str, Any]) -> None:
    metrics["systems"]["without_sequence"] = system(0.09, 0.11)
    assert "Its sequence part did not help: without it, the model has .1000." in remarks(metrics)
    metrics["comparison"] = {"without_sequence": compared(-0.01, -0.03, 0.01)}
    assert any(said.endswith("a difference that could be chance.") for said in remarks(metrics))


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        (
            (0.01, 0.02),
            "is ahead of the untrained backbone by .0150 (95 % interval .0100 to .0200)",
        ),
        (
            (-0.02, -0.01),
            "is behind the untrained backbone by .0150 (95 % interval .0100 to .0200)",
        ),
        ((-0.02, 0.01), "is neither surely ahead of the untrained backbone nor behind"),
    ],
)
def test_remarks_compare_new_items_with_the_untrained_backbone(
    interval: tuple[float, float], expected: str
) -> None:
    metrics = whole_metrics()
    middle = sum(interval) / 2
    metrics["comparison_cold_item"]["untrained_backbone"] = compared(middle, *interval)
    assert any(expected in plain(said) for said in remarks(metrics))


def test_headline_of_all_baselines_calls_each_by_its_name() -> None:
    metrics = whole_metrics()
    metrics["comparison"] = {
        name: compared(0.01, -0.01, 0.03) if "als" in name else found
        for name, found in metrics["comparison"].items()
    }
    assert plain(headline(metrics)).endswith(
        "; over ALS and ALS, all domains the lead could be chance."
    )
