"""What keeps a night's model from taking the published one's place; no Ray."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from crossrec.config import GateConfig
from crossrec.data.histories import DomainRange, Prepared
from crossrec.data.replay import Activity
from crossrec.gate import Check, check_counts, check_data, check_model, decide
from crossrec.published import Published
from crossrec.schema import US_PER_DAY

NIGHT = 1_000
DOMAINS = (DomainRange("shop", 0, 2, 0), DomainRange("video", 2, 4, 0))
PREPARED = Prepared("prepared/x", "x", DOMAINS, 32, 0, 0, 4, (NIGHT - 1) * US_PER_DAY)
PUBLISHED = Published(
    "earlier", "earlier", "models/old", "runs/earlier/s", ("shop", "video"), 990, 100, 4
)
LIMITS = GateConfig()


def failed(checks: Sequence[Check]) -> set[str]:
    return {check.name for check in checks if not check.is_passed}


def activity(shop: Sequence[int], video: Sequence[int]) -> Activity:
    """Return events by day, the last one being the day before the night; row 1 and row 3."""
    cells = [
        (row, NIGHT - len(counts) + number, count)
        for row, counts in ((1, shop), (3, video))
        for number, count in enumerate(counts)
        if count
    ]
    rows, days, events = (np.array(part, np.int32) for part in zip(*cells, strict=True))
    return Activity(rows, days, events, 4)


Ends = tuple[float, float]


def metrics(
    own: float, before: float | None, interval: tuple[float, float] | None
) -> dict[str, Any]:
    systems = {"model": own} | ({} if before is None else {"published": before})
    compared = {}
    if interval is not None and before is not None:
        compared["published"] = {
            "difference": own - before,
            "low": interval[0],
            "high": interval[1],
        }
    return {
        "k": 10,
        "systems": {
            name: {"all": {"pairs": 900, "ndcg@10": value}} for name, value in systems.items()
        },
        "comparison": compared,
    }


@pytest.mark.parametrize(
    ("own", "before", "interval", "expected"),
    [
        (0.10, 0.10, (-0.01, 0.01), set()),
        (0.091, 0.10, (-0.02, 0.001), set()),
        (0.091, 0.10, (-0.02, -0.001), {"lead"}),
        (0.089, 0.10, (-0.03, 0.001), {"ndcg_loss"}),
        (0.05, 0.10, (-0.06, -0.04), {"ndcg_loss", "lead"}),
        (0.05, None, None, set()),
        (0.0, 0.0, None, set()),
    ],
)
def test_a_model_must_not_lose_much_nor_beyond_chance(
    own: float, before: float | None, interval: Ends | None, expected: set[str]
) -> None:
    assert failed(check_model(LIMITS, metrics(own, before, interval))) == expected


STEADY = [10] * 35


@pytest.mark.parametrize(
    ("shop", "video", "expected"),
    [
        (STEADY, STEADY, set()),
        # Half of an ordinary week is 70 events of both.
        ([10] * 28 + [5] * 7, [10] * 28 + [5] * 7, set()),
        ([10] * 28 + [5] * 7, [10] * 28 + [5] * 6 + [4], {"volume"}),
        ([10] * 34 + [0], STEADY, set()),
        ([10] * 34 + [0], [10] * 34 + [0], {"missing_days"}),
        # Shares of a half each become .2 and .8: moved by .3.
        ([10] * 28 + [4] * 7, [10] * 28 + [16] * 7, {"drift"}),
        ([10] * 28 + [0] * 7, [10] * 28 + [0] * 7, {"volume", "missing_days"}),
        # Six of ten events of the newest days are of a domain that there was not: no drift.
        (STEADY, [0] * 30 + [15] * 5, set()),
        (STEADY, [0] * 20 + [15] * 15, set()),
        # A day without events is nothing new here.
        ([0, 10] * 17 + [0], [0, 10] * 17 + [0], set()),
    ],
)
def test_the_newest_week_must_be_like_those_before(
    shop: list[int], video: list[int], expected: set[str]
) -> None:
    assert failed(check_data(LIMITS, activity(shop, video), PREPARED)) == expected


def test_a_domain_whose_events_have_ended_drifts_for_some_weeks_alone() -> None:
    """A feed that broke looks just like that."""
    alarms = [
        days
        for days in range(1, 60)
        if failed(
            check_data(LIMITS, activity([10] * 60, [10] * (60 - days) + [0] * days), PREPARED)
        )
    ]
    # Of shares of a half each, two days of the newest week are 20 of 90 events: moved by .28. In
    # the end nine days of the four weeks before are 90 of 370: by .24.
    assert alarms == list(range(5, 26))


def test_data_of_a_few_days_is_held_against_nothing() -> None:
    checks = check_data(LIMITS, activity([100] + [0] * 9, [1] * 10), PREPARED)
    assert [check.found for check in checks] == [None] * 3
    assert not failed(checks)


def summary(
    rejected: int = 0,
    users: int = 100,
    items: int = 4,
    domains: tuple[str, ...] = PUBLISHED.domains,
    harmless: int = 0,
) -> dict[str, Any]:
    events = {"null item_id": rejected, "retired domain": harmless, "duplicate": harmless // 2}
    return {
        "inputs": [{"table": "events", "rows": 1_000}, {"table": "items", "rows": 4}],
        "rejects": {"events": events, "items": {"null item_id": 3}},
        "users": users,
        "items": items,
        "domains": [{"name": name} for name in domains],
    }


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (summary(), set()),
        (summary(rejected=50), set()),
        (summary(rejected=51), {"rejected"}),
        (summary(rejected=50, harmless=500), set()),
        (summary(rejected=51, harmless=500), {"rejected"}),
        (summary(domains=("books", "shop", "video")), set()),
        (summary(domains=("shop",)), {"lost_domains"}),
        (summary(users=200, items=8), set()),
        (summary(users=201), {"users_growth"}),
        (summary(users=79), {"users_shrinkage"}),
        (summary(items=3), {"items_shrinkage"}),
    ],
)
def test_what_comes_and_goes_must_stay_within_bounds(
    said: dict[str, Any], expected: set[str]
) -> None:
    assert failed(check_counts(LIMITS, said, PUBLISHED)) == expected


def test_without_a_publication_only_rejects_are_counted() -> None:
    assert [check.name for check in check_counts(LIMITS, summary(), None)] == ["rejected"]


GOOD, BAD = Check("drift", 0.1, 0.25), Check("drift", 0.3, 0.25)


def test_where_all_is_well_the_new_model_is_published() -> None:
    found = decide([GOOD], PUBLISHED, PREPARED, rests=False)
    assert (found["decision"], found["keeps"], found["alert"]) == ("publish", None, False)


def test_where_something_is_wrong_the_published_model_stays() -> None:
    found = decide([GOOD, BAD], PUBLISHED, PREPARED, rests=False)
    assert (found["decision"], found["keeps"]) == ("keep", "models/old")
    assert found["alert"]
    assert found["reasons"] == [
        "the change of the domains' shares of the events is 0.3, expected is at most 0.25"
    ]
    assert [check["is_passed"] for check in found["checks"]] == [True, False]


@pytest.mark.parametrize(
    ("published", "rests"),
    [(None, False), (PUBLISHED, True), (replace(PUBLISHED, domains=("shop",)), False)],
)
def test_a_night_whose_model_cannot_be_replaced_publishes_and_alerts(
    published: Published | None, rests: bool
) -> None:
    found = decide([BAD], published, PREPARED, rests)
    assert (found["decision"], found["keeps"]) == ("publish", None)
    assert found["alert"]
