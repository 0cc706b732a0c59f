"""What is left of a model's quality on shifted data: figures by hand, and those of a night."""

from collections.abc import Sequence

import polars as pl
import pytest

from crossrec.evaluate.pipeline import evaluate
from crossrec.study.pipeline import study
from crossrec.study.robustness import describe_shift
from crossrec.study.summary import Judged
from tests.nights import Night, change, modified

PAIRS = [("anna", "film"), ("anna", "shop"), ("ben", "shop")]


def judged(name: str, ndcg: Sequence[float], pairs: int = 3) -> Judged:
    keys = dict(zip(("user_id", "domain"), zip(*PAIRS, strict=True), strict=True))
    return Judged(name, pl.DataFrame(keys | {"ndcg@10": list(ndcg)}).head(pairs))


def test_loss_and_lead_are_of_the_pairs_that_both_have() -> None:
    after = {
        "model": judged("model", [0.4, 0.1, 0.9], pairs=2),
        "popularity_7d": judged("popularity_7d", [0.1, 0.2, 0.0]),
        "popularity_30d": judged("popularity_30d", [0.3, 0.1, 0.9]),
    }
    found = describe_shift(judged("model", [0.6, 0.3, 0.7]), after)
    whole = found["all"]
    assert (whole["pairs"], whole["before"], whole["after"]) == (2, 0.45, 0.25)
    assert (whole["window"], whole["popularity"]) == ("popularity_30d", 0.2)
    assert whole["lost"]["difference"] == pytest.approx(0.2)
    assert whole["lead"]["difference"] == pytest.approx(0.05)
    # In the shop alone another window is best, and the model is behind it.
    assert found["domains"]["shop"]["window"] == "popularity_7d"
    assert found["domains"]["shop"]["lead"]["high"] == pytest.approx(-0.1)
    nothing = {name: Judged(name, found.pairs.clear()) for name, found in after.items()}
    assert describe_shift(judged("model", [0.6, 0.3, 0.7]), nothing)["all"] is None


@pytest.mark.slow
def test_a_domain_with_100_events_is_judged_on_what_users_really_did(night: Night) -> None:
    config = change(night.config, evaluate={"shifts": ["scarce"]})
    metrics = study(config, night.store, evaluate(config, night.store))
    assert list(metrics["study"]) == ["shifts"]
    (shift,) = metrics["study"]["shifts"]
    model = metrics["systems"]["model"]
    assert shift["all"]["pairs"] == model["all"]["pairs"]
    assert shift["all"]["before"] == model["all"]["ndcg@10"]
    domain = shift["domain"]
    part = shift["domains"][domain]
    assert part["before"] == model["domain"][domain]["ndcg@10"]
    # Most of what is known of the domain is gone; what users then did is not.
    assert part["lost"]["low"] > 0
    summaries = [name for name in modified(night.store, "runs/night/study") if "/input/s" in name]
    (path,) = summaries
    shifted = night.store.read_json(path.split(f"{night.store.root}/")[1])
    whole = {entry["name"]: entry["events"] for entry in metrics["data"]["domains"]}
    left = {entry["name"]: entry["events"] for entry in shifted["domains"]}
    assert {name: n for name, n in left.items() if name != domain} == {
        name: n for name, n in whole.items() if name != domain
    }
    # And the judged days' own.
    assert 100 < left[domain] < whole[domain] / 2
    before = modified(night.store, "runs/night/study")
    study(config, night.store, evaluate(config, night.store))
    assert modified(night.store, "runs/night/study") == before
