"""Said probabilities held against what came true."""

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from crossrec.data.histories import Prepared
from crossrec.evaluate.calibration import Pairs, calibrate, describe_calibration, read_pairs
from crossrec.evaluate.truth import holdout_truth, load_known_items
from crossrec.schema import SCORES, domain_folder
from crossrec.score.bucket import ScoreJob
from crossrec.storage import Store
from tests.evaluate.holdout import write_prepared

START, STOP = 10, 14


def test_bins_hold_equally_many_pairs_and_say_what_came_true() -> None:
    scores = np.array([0.01, 0.02, 0.03, 0.1, 0.2, 0.3])
    found = calibrate(scores, np.array([0, 0, 1, 0, 1, 1], bool), bins=2)
    assert found is not None
    assert [part["pairs"] for part in found["bins"]] == [3, 3]
    assert [part["predicted"] for part in found["bins"]] == [0.02, 0.2]
    assert [part["observed"] for part in found["bins"]] == [round(1 / 3, 6), round(2 / 3, 6)]
    assert [(part["low"], part["high"]) for part in found["bins"]] == [(0.01, 0.03), (0.1, 0.3)]
    assert found["predicted"] == 0.11
    assert found["observed"] == 3 / 6
    assert found["ece"] == round(0.5 * (1 / 3 - 0.02) + 0.5 * (2 / 3 - 0.2), 6)


def test_errors_of_opposite_bins_do_not_cancel() -> None:
    scores = np.array([0.4] * 10 + [0.6] * 10)
    outcomes = np.array([1] * 6 + [0] * 4 + [1] * 4 + [0] * 6, bool)
    found = calibrate(scores, outcomes, bins=2)
    assert found is not None
    assert found["predicted"] == found["observed"] == 0.5
    assert found["ece"] == 0.2


def test_equal_probabilities_share_a_bin_whatever_their_order() -> None:
    scores = np.array([0.5, 0.1, 0.5, 0.5, 0.9, 0.5])
    outcomes = np.array([1, 0, 0, 1, 1, 0], bool)
    found = calibrate(scores, outcomes, bins=6)
    assert found is not None
    assert [(part["low"], part["pairs"]) for part in found["bins"]] == [
        (0.1, 1),
        (0.5, 4),
        (0.9, 1),
    ]
    turned = np.array([5, 3, 0, 4, 2, 1])
    assert calibrate(scores[turned], outcomes[turned], bins=6) == found


@pytest.mark.parametrize("size", [1, 3])
def test_fewer_pairs_than_bins_are_a_bin_each(size: int) -> None:
    found = calibrate(np.linspace(0.1, 0.2, size), np.zeros(size, bool))
    assert found is not None
    assert [part["pairs"] for part in found["bins"]] == [1] * size


def test_nothing_is_said_of_no_pairs() -> None:
    assert calibrate(np.zeros(0), np.zeros(0, bool)) is None


def test_error_is_small_where_outcomes_are_drawn_as_said_and_large_where_not() -> None:
    draw = np.random.default_rng(5)
    scores = draw.beta(0.5, 20, 100_000)
    right = calibrate(scores, draw.random(len(scores)) < scores)
    wrong = calibrate(scores, draw.random(len(scores)) < scores / 2)
    assert right is not None
    assert wrong is not None
    assert right["ece"] < 0.1 * right["predicted"]
    assert wrong["ece"] == pytest.approx(wrong["predicted"] / 2, rel=0.1)


def test_all_users_and_judged_lists_are_told_apart() -> None:
    scores = np.array([0.2, 0.4, 0.6, 0.8], np.float32)
    active = np.array([True, True, False, False])
    film = Pairs(scores, np.array([1, 0, 0, 0], bool), active)
    shop = Pairs(scores[:2], np.array([0, 0], bool), np.zeros(2, bool))
    found = describe_calibration({"film": film, "shop": shop})
    assert found["known_users"]["all"]["pairs"] == 6
    assert found["known_users"]["all"]["observed"] == round(1 / 6, 6)
    assert found["known_users"]["domain"]["film"]["observed"] == 1 / 4
    assert found["judged_lists"]["all"]["pairs"] == 2
    assert found["judged_lists"]["domain"]["film"]["predicted"] == 0.3
    # No judged list is of the shop.
    assert list(found["judged_lists"]["domain"]) == ["film"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture
def prepared(store: Store) -> Prepared:
    """Domains with the same item ids; Anna does something new, Ben nothing, Carl is new himself."""
    items = {"film": ["x", "y"], "a/b": ["x", "y"]}
    users = {"anna": [(0, 1), (3, 11)], "ben": [(0, 2)], "carl": [(0, 12)]}
    return write_prepared(store, items, [users])


def test_pairs_are_those_of_the_named_users_and_of_the_lists_own_domain(
    store: Store, prepared: Prepared
) -> None:
    job = ScoreJob(
        store, prepared, "m", "i", START, {"model": "c"}, ("film", "a/b"), 50, done="c/done"
    )
    files = []
    for domain in job.domains:
        rows = [
            {"user_id": "anna", "item_ids": ["y", "x"], "scores": [0.5, 0.25]},
            {"user_id": "ben", "item_ids": ["y"], "scores": [0.125]},
            {"user_id": "carl", "item_ids": ["x"], "scores": [0.75]},
            {"user_id": "dora", "item_ids": [], "scores": []},
        ]
        files.append({"path": f"c/{domain_folder(domain)}/bucket-00000.parquet"})
        store.write_parquet(files[-1]["path"], pa.Table.from_pylist(rows, SCORES))
    store.write_json(job.record_path(0), {"files": files})
    known_items = load_known_items(store, prepared, START)
    truth = holdout_truth(store, prepared, known_items, range(1), START, STOP)
    users = pl.Series("user_id", ["anna", "ben", "dora"])
    found = read_pairs(job, range(1), truth, users)
    for domain in job.domains:
        assert found[domain].scores_S.tolist() == [0.5, 0.25, 0.125]
        assert found[domain].judged_S.tolist() == [True, True, False]
    # Row 3 is y of the second domain by name, a/b first: film's.
    first, second = (found[domain.name].outcomes_S.tolist() for domain in prepared.domains)
    assert (first, second) == ([False, False, False], [True, False, False])
