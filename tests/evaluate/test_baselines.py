"""Baselines on a prepared input, as lists that the judge reads."""

from pathlib import Path

import pytest
import torch

from crossrec.data.histories import Prepared
from crossrec.evaluate.baselines import BASELINES, BaselineJob, run_baselines, run_system
from crossrec.schema import SCORES
from crossrec.storage import Store
from tests.evaluate.holdout import Buckets, write_prepared
from tests.nights import modified
from tests.small import Event

ITEMS = {"film": ["f0", "f1", "f2"], "a/b": ["s0", "s1"]}
F0, F1, F2, S0, S1 = range(5)
"""Catalogue rows."""

START, STOP = 10, 14

FRIENDS: dict[str, list[Event]] = {
    f"friend {number}": [(F0, 1), (F1, 2), (S0, 3), (S1, 4)] for number in range(4)
}
"""Known users, who are in the hold-out of no day."""

ANNA = [(F0, 5), (F2, 11)]
BEN = [(S0, 5), (F1, 12)]
CARL = [(F1, 11), (S0, 12)]
DORA = [(F0, 9)]
BUCKETS: Buckets = [{"anna": ANNA, "dora": DORA, **FRIENDS}, {"ben": BEN, "carl": CARL}]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture
def prepared(store: Store) -> Prepared:
    return write_prepared(store, ITEMS, BUCKETS)


def job_of(store: Store, prepared: Prepared, folder: str = "run") -> BaselineJob:
    return BaselineJob(store, prepared, START, STOP, range(prepared.buckets), 50, 17, folder)


def lists_of(store: Store, paths: list[str]) -> dict[tuple[str, str], list[str]]:
    """Return the lists by (folder of the domain, user)."""
    found = {}
    for path in paths:
        table = store.read_parquet(path)
        assert table.schema == SCORES
        for row in table.to_pylist():
            assert len(row["scores"]) == len(row["item_ids"])
            found[path.split("/")[-2], row["user_id"]] = row["item_ids"]
    return found


def run(job: BaselineJob, system: str) -> dict[tuple[str, str], list[str]]:
    threads = torch.get_num_threads()
    record = run_system(job, system, threads=1)
    assert torch.get_num_threads() == threads
    return lists_of(job.store, [file["path"] for file in record["files"]])


@pytest.mark.parametrize("system", list(BASELINES))
def test_every_judged_user_has_a_row_in_every_domain(
    store: Store, prepared: Prepared, system: str
) -> None:
    # Carl is new, Dora and the friends do nothing in these days: nobody judges their lists.
    assert set(run(job_of(store, prepared), system)) == {
        (folder, user) for folder in ("domain=film", "domain=a%2Fb") for user in ("anna", "ben")
    }


@pytest.mark.parametrize("system", ["item_knn", "als"])
def test_a_single_domain_baseline_knows_its_domain_alone(
    store: Store, prepared: Prepared, system: str
) -> None:
    found = run(job_of(store, prepared), system)
    assert found == {
        ("domain=film", "anna"): ["f1"],  # f2 had no event before day 10
        ("domain=a%2Fb", "anna"): [],
        ("domain=film", "ben"): [],
        ("domain=a%2Fb", "ben"): ["s1"],
    }


@pytest.mark.parametrize("system", ["item_knn_all_domains", "als_all_domains"])
def test_a_baseline_of_all_domains_knows_what_goes_together_across_them(
    store: Store, prepared: Prepared, system: str
) -> None:
    found = run(job_of(store, prepared), system)
    assert found["domain=film", "anna"] == ["f1"]
    assert set(found["domain=a%2Fb", "anna"]) == {"s0", "s1"}
    assert set(found["domain=film", "ben"]) == {"f0", "f1"}


@pytest.mark.parametrize("system", list(BASELINES))
def test_what_happens_from_the_first_judged_day_on_changes_nothing(
    store: Store, prepared: Prepared, system: str
) -> None:
    later = [(F2, day) for day in range(START, STOP)]
    buckets = [
        {user: [*events, *later] if user in FRIENDS else events for user, events in users.items()}
        for users in BUCKETS
    ]
    changed = write_prepared(store, ITEMS, buckets, "changed")
    expected = run(job_of(store, prepared), system)
    found = run(job_of(store, changed, "other"), system)
    assert {key: found[key] for key in expected} == expected


def test_a_record_says_what_was_written(store: Store, prepared: Prepared) -> None:
    job = job_of(store, prepared)
    record = run_system(job, "item_knn", threads=1)
    assert record == store.read_json("run/item_knn/record.json")
    assert record["seconds"] > 0
    assert [(file["path"], file["rows"]) for file in record["files"]] == [
        (f"run/item_knn/domain={domain}/bucket-0000{bucket}.parquet", 1)
        for domain in ("film", "a%2Fb")
        for bucket in (0, 1)
    ]


def test_run_baselines_does_what_is_missing(
    ray_cluster: None, store: Store, prepared: Prepared
) -> None:
    job = job_of(store, prepared)
    records = run_baselines(job)
    assert list(records) == list(BASELINES)
    written = modified(store, "run")
    store.delete(job.record_path("als"))
    assert set(run_baselines(job)) == set(BASELINES)
    again = modified(store, "run")
    # The same bytes; those of the system without a record are new, and those of no other.
    changed = {path for path in written if again[path] != written[path]}
    assert changed
    assert {Path(path).relative_to(store.full_path("run")).parts[0] for path in changed} == {"als"}
    paths = [path for path in written if path.endswith(".parquet")]
    assert all(again[path][1] == written[path][1] for path in paths)
