import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from crossrec.config import Config
from crossrec.data.histories import (
    DomainRange,
    Prepared,
    activity_path,
    catalogue_path,
)
from crossrec.errors import ConfigError
from crossrec.schema import ACTIVITY, CATALOGUE, US_PER_DAY
from crossrec.storage import Store
from crossrec.train.span import check_span, time_cuts

LAST = 16_229
"""2014-06-08, of which the last event is."""


def check(
    folder: Path, days: list[int], train: dict[str, Any] | None = None, protocol: str = "time"
) -> None:
    """Check 1,000 events of the first of so many days before LAST, one of each other."""
    store = Store(str(folder))
    shop = DomainRange("shop", 0, 1, 0)
    prepared = Prepared("prepared/x", "x", (shop,), 1, 0, 0, 1, LAST * US_PER_DAY)
    cells = [
        {"row": 0, "day": LAST - day, "events": 1 if index else 1_000}
        for index, day in enumerate(days)
    ]
    table = pa.Table.from_pylist(cells, schema=ACTIVITY)
    store.write_parquet(activity_path(prepared.folder, 0), table)
    item = {"domain": "shop", "item_id": "a", "text": ""}
    path = catalogue_path(prepared.folder, "shop")
    store.write_parquet(path, pa.Table.from_pylist([item], schema=CATALOGUE))
    said = {"storage": {"root": str(folder)}, "evaluate": {"protocol": protocol}}
    config = Config.model_validate(said | {"train": train or {}})
    check_span(config, store, prepared, time_cuts(config, prepared))


def test_data_that_reaches_back_needs_no_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check(tmp_path, [28, 27, 0])
    assert not caplog.records


def test_data_of_fewer_days_than_are_set_aside_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "crossrec"):
        check(tmp_path, [19, 0])
    (said,) = caplog.messages
    assert "train.valid_days=14 and evaluate.holdout_days=14 set aside the last 28 days" in said
    assert "only events of 20 days (2014-05-20 to 2014-06-08): 0 of 1,001 events" in said
    assert "make them shorter" in said


def test_a_few_stray_events_of_long_ago_are_not_enough(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "crossrec"):
        check(tmp_path, [19, 4_000, 0])
    assert "1 of 1,002 events are left to train on" in caplog.text


def test_leave_one_out_sets_no_days_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "crossrec"):
        check(tmp_path, [0, 0], protocol="leave_one_out")
    assert not caplog.records


def test_probabilities_that_can_be_fitted_on_nothing_are_refused(tmp_path: Path) -> None:
    asked = {"probabilities": True}
    check(tmp_path, [14, 0], asked)
    expected = (
        r"train\.probabilities: expected events from before the last 14 days "
        r"\(evaluate\.holdout_days\).*found events of 14 days \(2014-05-26 to 2014-06-08\)"
    )
    with pytest.raises(ConfigError, match=expected):
        check(tmp_path, [13, 0], asked)
    check(tmp_path, [13, 0], {"objective": "gbce"})
