"""Three weeks of nights on one Ray, a day of new events each; what can go wrong does, once.

Every day `jobs/nightly.py` is run as an operator runs it: one config, `run_id` the date, a model
trained once in seven days. `pytest -s` shows a line a night.
"""

import datetime as dt
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from crossrec.data.demo import LAST_DAY, Demo, make_demo
from crossrec.readers import read_scores
from crossrec.storage import Store
from tests.nights import DEMO, USERS, small_config
from tests.test_jobs import ROOT, run_job

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3_600)]

DAYS = 21
"""One of which has no night."""

EVERY, KEPT = 7, 3
"""Days of data after which a model is trained anew; publications that stay."""

EPOCHS = 3

LATE, ARRIVED = 4, 6
"""The day whose events are not there, and that on which they come."""
KILLED, MISSED, NEW, BAD = 7, 10, 13, 16
"""Days: the driver is killed in training, nothing runs, a domain opens, a file is cut short."""

NEW_DOMAIN = "social"

TRAINED = (0, KILLED, NEW, DAYS - 1)
"""A model is trained after seven days of data, and where there is another domain."""

HOLE = LATE + 1
"""The night that finds a day without events in the newest week, and tells."""

FILES = ("prepare", "finetune", "metrics", "gate", "manifest", "summary")

POPULARITY = ("popularity_all", "popularity_30d", "popularity_7d")


class Lake:
    """A demo as it arrives: a file of events a day, a catalogue a night."""

    def __init__(self, folder: Path, demo: Demo) -> None:
        self.folder, self.demo = folder, demo
        day = demo.events["timestamp"].cast(pa.date32()).to_numpy().astype("datetime64[D]")
        self.first = LAST_DAY - dt.timedelta(days=DAYS - 1)
        number = (day - np.datetime64(self.first)).astype(int)
        is_new = np.array(demo.events["domain"].to_pylist()) == NEW_DOMAIN
        keep = ~is_new | (number >= NEW)
        self.events, self.number = demo.events.filter(pa.array(keep)), number[keep]
        (folder / "events").mkdir(parents=True)
        (folder / "items").mkdir()
        self._write("before", self.number < 0)

    def name(self, day: int) -> str:
        """Return the date of a day."""
        return (self.first + dt.timedelta(days=day)).isoformat()

    def arrive(self, day: int) -> Path:
        """Write the events of a day."""
        return self._write(self.name(day), self.number == day)

    def offer(self, day: int) -> Path:
        """Write the catalogue of a night: what can be had by then."""
        known = self.demo.known_items
        since = DEMO.days - DAYS + day
        is_there = known.added <= since
        if day < NEW:
            is_there &= known.domain != DEMO.domains.index(NEW_DOMAIN)
        path = self.folder / "items" / f"{self.name(day)}.parquet"
        pq.write_table(self.demo.items.filter(pa.array(is_there)), path)
        return path

    def read(self) -> pl.DataFrame:
        """Return all events that have arrived."""
        return pl.read_parquet(self.folder / "events")

    def _write(self, name: str, rows: np.ndarray) -> Path:
        path = self.folder / "events" / f"{name}.parquet"
        pq.write_table(self.events.filter(pa.array(rows)), path)
        return path


@dataclass(frozen=True)
class Ran:
    """A night as it ended.

    events, users: that had arrived. current: run that readers follow. lists: by domain. sizes:
    bytes of the store's folders. runs: in the store. said: files of the run.
    """

    run_id: str
    statuses: tuple[int, ...]
    seconds: float
    events: int
    users: int
    current: str
    lists: dict[str, int]
    sizes: dict[str, int]
    runs: list[str]
    said: dict[str, Any]

    def ndcg(self, *systems: str) -> float:
        """Return the best NDCG@10 of some systems on the night's hold-out."""
        judged = self.said["metrics"]["systems"]
        return max(float(judged[name]["all"]["ndcg@10"]) for name in systems)


@dataclass(frozen=True)
class Weeks:
    """Three weeks: nights by day."""

    store: Store
    lake: Lake
    nights: dict[int, Ran]


@pytest.fixture(scope="module")
def weeks(
    joined: Mapping[str, str], tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory
) -> Weeks:
    folder = tmp_path_factory.mktemp("weeks")
    lake, store = Lake(folder / "lake", make_demo(USERS, 17, DEMO)), Store(str(folder / "store"))
    config = small_config(
        store,
        tiny_backbone,
        {"events": str(lake.folder / "events"), "items": "of the night"},
        train={"epochs": EPOCHS},
        nightly={"finetune_every": EVERY},
        publish={"keep_runs": KEPT},
    )
    path = folder / "night.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in config.public().items() if k != "run_id"}))
    nights = {}
    for day in range(DAYS):
        if day != LATE:
            lake.arrive(day)
        if day == ARRIVED:
            lake.arrive(LATE)
        if day == MISSED:
            continue
        command = (str(path), f"run_id={lake.name(day)}", f"data.items={lake.offer(day)}")
        nights[day] = run_night(store, lake, day, command, joined)
        print(describe(nights[day]))
    return Weeks(store, lake, nights)


def run_night(
    store: Store, lake: Lake, day: int, command: tuple[str, ...], joined: Mapping[str, str]
) -> Ran:
    """Run the night of a day, twice where the first attempt is to fail."""
    began = time.monotonic()
    statuses = []
    if day == BAD:
        path = lake.arrive(day)
        whole, published = path.read_bytes(), store.read_bytes("current.json")
        path.write_bytes(whole[: len(whole) // 2])
        statuses.append(run_job(*command, variables=joined).returncode)
        path.write_bytes(whole)
        assert store.read_bytes("current.json") == published
    if day == KILLED:
        statuses.append(kill_in_training(store, lake.name(day), command, joined))
    ended = run_job(*command, variables=joined)
    statuses.append(ended.returncode)
    assert ended.returncode in (0, 3), ended.stderr[-3_000:]
    events = lake.read()
    return Ran(
        lake.name(day),
        tuple(statuses),
        time.monotonic() - began,
        len(events),
        events["user_id"].n_unique(),
        store.read_json("current.json")["run_id"],
        Counter(read_scores(store.root).read_all()["domain"].to_pylist()),
        {name: store.size(name) for name in store.list("") if name != "current.json"},
        store.list("runs"),
        {name: store.read_json(f"runs/{lake.name(day)}/{name}.json") for name in FILES},
    )


def kill_in_training(
    store: Store, run_id: str, command: tuple[str, ...], joined: Mapping[str, str]
) -> int:
    """Kill a night's driver once an epoch is stored; return its status."""
    arguments = [sys.executable, "jobs/nightly.py", *command]
    driver = subprocess.Popen(arguments, cwd=ROOT, env={**os.environ, **joined})
    folder = Path(store.full_path(f"runs/{run_id}/train"))
    while not list(folder.rglob("progress.json")):
        assert driver.poll() is None, "it ended before it was killed"
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    return driver.wait()


def describe(night: Ran) -> str:
    size = sum(night.sizes.values())
    return (
        f"{night.run_id} status {night.statuses} {night.seconds:5.1f} s, NDCG@10 "
        f"{night.ndcg('model'):.4f} beside {night.ndcg(*POPULARITY):.4f}, "
        f"{size / 1e6:.1f} MB {night.sizes}, {len(night.runs)} runs, "
        f"{night.said['gate']['reasons']}"
    )


def test_every_night_ends_as_it_should(weeks: Weeks) -> None:
    expected: dict[int, tuple[int, ...]] = {day: (0,) for day in range(DAYS) if day != MISSED}
    expected |= {HOLE: (3,), BAD: (2, 0), KILLED: (-signal.SIGKILL, 0)}
    assert {day: night.statuses for day, night in weeks.nights.items()} == expected
    assert len(expected) == 20
    for night in weeks.nights.values():
        assert night.current == night.run_id
        assert night.said["summary"]["status"] == "done"


def test_every_night_knows_all_that_has_arrived(weeks: Weeks) -> None:
    """Late events and those of two days at once among them; a list for every user and domain."""
    for day, night in weeks.nights.items():
        prepared = night.said["prepare"]
        assert (prepared["events"], prepared["users"]) == (night.events, night.users)
        assert prepared["rejects"] == {"events": {}, "items": {}}
        domains = [name for name in DEMO.domains if day >= NEW or name != NEW_DOMAIN]
        assert night.lists == dict.fromkeys(domains, night.users)
    events = {day: night.events for day, night in weeks.nights.items()}
    assert events[LATE] == events[LATE - 1], "nothing came"


def test_a_model_is_trained_once_a_week_and_for_a_new_domain(weeks: Weeks) -> None:
    found = {day: night.said["finetune"] for day, night in weeks.nights.items()}
    assert tuple(day for day, said in found.items() if "rests_on" not in said) == TRAINED


def test_a_night_that_is_run_again_is_one_night(weeks: Weeks) -> None:
    attempts = {
        day: night.said["summary"]["attempts"]["nightly"] for day, night in weeks.nights.items()
    }
    assert {day for day, count in attempts.items() if count == 2} == {KILLED, BAD}
    # The killed one had trained, and went on with it.
    assert weeks.nights[KILLED].said["summary"]["stages"]["finetune"]["attempts"] == 2


def test_models_stay_ahead_of_popularity(weeks: Weeks) -> None:
    """Those that are six days old too, and in the first days of a domain."""
    for night in weeks.nights.values():
        assert night.ndcg("model") > 1.5 * night.ndcg(*POPULARITY), night.run_id


def test_storage_is_bounded_by_retention(weeks: Weeks) -> None:
    """So many publications stay, and the run that trained the model of one of them."""
    nights = weeks.nights.values()
    assert max(len(night.runs) for night in nights) == KEPT + 1
    largest = max(night.said["summary"]["bytes"] for night in nights)
    assert max(sum(night.sizes.values()) for night in nights) < (KEPT + 2) * largest
