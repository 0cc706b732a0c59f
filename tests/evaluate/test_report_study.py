"""The report shows the longer study, bands, exposure and costs, and stands what is missing."""

import copy
from typing import Any

import pytest

from crossrec.evaluate.report import render_report
from tests.evaluate.pages import Page, compared, small_metrics, whole_metrics


@pytest.fixture
def metrics() -> dict[str, Any]:
    return whole_metrics()


def row(page: str, section: str, name: str) -> list[str]:
    """Return the cells of the first row of that name in a section of the page."""
    part = page[page.index(f'<section id="{section}"') :].split("</section>")[0]
    cells = part[part.index(f'<th scope="row">{name}</th>') :].split("</tr>")[0].split("<td")[1:]
    return [cell.split(">", 1)[1].split("<")[0] for cell in cells]


def test_exact_figures_have_mrr_and_the_interval_of_the_lead(metrics: dict[str, Any]) -> None:
    page = render_report(metrics, [])
    # .0813 - .0642 = .0171, and the interval that whole_metrics makes: 0.7 of it less .003, ...
    found = row(page, "quality", "popularity, 30 days")
    assert found[0] == ".0642"
    assert found[3] == ".0514"  # MRR
    assert found[-1] == "+.0171 (+.0090 to +.0252)"


def test_leads_are_drawn_for_baselines_with_their_intervals(metrics: dict[str, Any]) -> None:
    metrics["comparison"]["als"] = compared(0.001, -0.001, 0.003)
    metrics["comparison"]["item_knn"] = compared(-0.004, -0.006, -0.002)
    page = render_report(metrics, [])
    [label] = [said for said in Page(page).labels() if said.startswith("crossrec's lead")]
    assert "ALS +.0010 (95 % interval −.0010 to +.0030, could be chance)" in label
    assert "item-kNN −.0040 (95 % interval −.0060 to −.0020)" in label
    assert "without the sequence" not in label
    # 8 baselines: one could be chance, one is ahead of crossrec, six are behind it
    part = page[page.index('<section id="quality"') :].split("</section>")[0]
    kinds = [part.count(f'class="lead {kind}"') for kind in ("ahead", "chance", "behind")]
    assert kinds == [6, 1, 1]


def test_other_lengths_of_the_list_are_in_a_table(metrics: dict[str, Any]) -> None:
    page = render_report(metrics, [])
    lengths = page[page.index("All lists, by their length") :].split("</table>")[0]
    assert [f"first {k}" in lengths for k in (5, 10, 20, 50)] == [True] * 4
    assert '<th scope="row">ALS, all domains</th>' in lengths


def test_transfer_says_what_the_other_domains_add(metrics: dict[str, Any]) -> None:
    text = Page(render_report(metrics, [])).text().replace("\u00a0", " ")
    assert (
        "To food, the other domains add nothing certain: .0017 (95 % interval −.0004 to +.0038)."
        in text
    )
    assert "To kitchen, the other domains add .0041 (95 % interval .0011 to .0071)." in text
    metrics["study"]["transfer"]["food"]["all"] |= compared(-0.002, -0.003, -0.001)
    text = Page(render_report(metrics, [])).text().replace("\u00a0", " ")
    assert "From food, the other domains take .0020 (95 % interval .0010 to .0030)." in text


def test_transfer_among_many_domains_is_counted(metrics: dict[str, Any]) -> None:
    found = metrics["study"]["transfer"]
    lost = {"all": found["food"]["all"] | compared(-0.002, -0.003, -0.001)}
    metrics["study"]["transfer"] = found | {"a": found["kitchen"], "b": lost, "c": found["food"]}
    assert (
        "What the 5 domains do for each other: they add something certain to 2 (kitchen, a), "
        "take something from 1 (b), and do nothing certain for 2." in render_report(metrics, [])
    )


def test_transfer_is_drawn_by_events_in_the_domain(metrics: dict[str, Any]) -> None:
    labels = Page(render_report(metrics, [])).labels()
    assert (
        "kitchen: all users, 830 lists: all domains .1044, this domain alone .1003, "
        "best popularity .0802; new to the domain, 47 lists: all domains .0711, "
        "this domain alone .0498, best popularity .0398; 1–4 events, 294 lists: "
        "all domains .0993, this domain alone .0951, best popularity .0761" in labels
    )
    assert any(
        said.startswith("kitchen: all users +.0041 (95 % interval +.0011 to +.0071); new to")
        for said in labels
    )


def test_bands_stand_in_order_beside_the_best_baseline_of_each(metrics: dict[str, Any]) -> None:
    for judged in metrics["systems"].values():  # a JSON file may have any order
        tens = judged["item_popularity_decile"]
        judged["item_popularity_decile"] = {name: tens[name] for name in sorted(tens)}
    metrics["systems"]["als"]["history_length"]["50+"]["ndcg@10"] = 0.3
    page = render_report(metrics, [])
    [label] = [said for said in Page(page).labels() if said.startswith("By how popular")]
    crossrec = label.removeprefix("By how popular the item was. crossrec: ").split("; ")[0]
    assert [told.split()[0] for told in crossrec.split(", ")] == [str(n) for n in range(1, 11)]
    assert row(page, "slices", "50+")[2:] == [".3000", "ALS"]
    # .0813 * .75 and .0642 * .75 as `whole_system` makes them
    assert row(page, "slices", "1-4")[1:] == [".0732", ".0578", "popularity, 30 days"]


def test_slices_caution_where_lists_are_few(metrics: dict[str, Any]) -> None:
    assert "too few to tell" not in render_report(metrics, [])
    for judged in metrics["systems"].values():
        judged["cold_in_domain"]["pairs"] = 8
    assert "8 lists, too few to tell" in render_report(metrics, [])


def test_ablation_shows_what_each_part_adds(metrics: dict[str, Any]) -> None:
    page = render_report(metrics, [])
    assert row(page, "study", "without ids") == [".0806", "+.0007 (−.0013 to +.0027)", "2 min 11 s"]
    assert "NDCG@10: crossrec .0813; crossrec without: text .0741, ids .0806, time .0212, " in page


def test_seeds_have_mean_and_deviation(metrics: dict[str, Any]) -> None:
    text = Page(render_report(metrics, [])).text()
    assert "Over 3 seeds (17, 18, 19): NDCG@10 .0813 ± .0008; HR@10 .1715 ± .0016." in text


def test_before_and_after_has_the_time_of_each(metrics: dict[str, Any]) -> None:
    page = render_report(metrics, [])
    own = [".0829", "+.0016 (−.0002 to +.0034)", "22,713,216", "81,000", "40 min 11 s"]
    assert row(page, "study", "fine-tuned backbone: all") == own
    assert "NDCG@10: untrained backbone .0644, frozen backbone, trained head .0813, " in page


def test_without_a_study_the_report_says_how_to_get_one() -> None:
    page = render_report(small_metrics(), [])
    for section in ("transfer", "study"):
        part = page[page.index(f'<section id="{section}"') :].split("</section>")[0]
        assert "Not measured in this run" in part
        assert "evaluate.study=true" in part


@pytest.mark.parametrize("name", ["seeds", "ablation", "transfer", "backbone"])
@pytest.mark.parametrize("value", [None, {}])
def test_report_is_written_without_a_part_of_the_study(
    metrics: dict[str, Any], name: str, value: object
) -> None:
    metrics["study"][name] = value
    text = Page(render_report(metrics, [])).text()
    assert text.count("Not measured in this run") == 1
    assert "None" not in text


def test_report_is_written_whatever_figure_is_missing(metrics: dict[str, Any]) -> None:
    def drop(value: Any, wanted: str) -> None:
        """Set every entry of that name to null, at any depth."""
        for key in value if isinstance(value, dict) else range(len(value)):
            if key == wanted:
                value[key] = None
            elif isinstance(value[key], dict | list):
                drop(value[key], wanted)

    names = ("all", "domain", "lists", "low", "popularity", "pairs", "seconds", "comparison")
    for name in (*names, "baselines", "history_length", "mean", "values", "together", "ndcg@10"):
        partial = copy.deepcopy(metrics)
        drop({key: partial[key] for key in partial if key != "data"}, name)
        partial = {key: value for key, value in partial.items() if key != name}
        assert "None" not in Page(render_report(partial, [])).text(), name


def test_exposure_stands_by_domain_and_system(metrics: dict[str, Any]) -> None:
    page = render_report(metrics, [])
    # coverage .04 + 3 * .0094, Gini .99 - 2 * .0027, novelty 9 + 60 * .0094: see `whole_system`
    assert row(page, "shown", "untrained backbone") == ["6.8 %", ".98", "9.6"]
    assert row(page, "shown", "popularity, 30 days") == ["4 %", ".86", "9.0"]


def test_costs_have_the_seconds_of_each_baseline(metrics: dict[str, Any]) -> None:
    page = render_report(metrics, [])
    costs = page[page.index("Time to learn") :]
    assert row(f'<section id="shown"{costs}', "shown", "ALS") == ["24 s", ".0171"]
    assert row(f'<section id="shown"{costs}', "shown", "item-kNN") == ["1.9 s", ".0134"]


def test_training_that_did_not_help_is_said_plainly(metrics: dict[str, Any]) -> None:
    said = "Training did not help on the validation slice; the refit has 0 epochs."
    assert said not in render_report(metrics, [])
    metrics["training"]["best_epoch"] = 0
    assert said in render_report(metrics, [])


def test_leave_one_out_is_said_in_the_head(metrics: dict[str, Any]) -> None:
    assert "judged from here" in render_report(metrics, [])
    metrics["protocol"] = "leave_one_out"
    text = Page(render_report(metrics, [])).text()
    assert "judged on the last event of every user (leave-one-out)" in text
    assert "judged on what users did from" not in text
    assert "judged from here" not in text  # each user has a cut of their own
