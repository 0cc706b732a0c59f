"""Nights whose model does not, or need not, take the published one's place."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from crossrec.nightly import nightly
from crossrec.storage import Store
from tests.nights import Night, change
from tests.test_jobs import run_job

pytestmark = pytest.mark.slow

WORSE, RESTED = "worse", "rested"


@dataclass(frozen=True)
class Nights:
    """The published night's model; a night with a worse one, through its job; one that rests."""

    model: str
    worse: Night
    status: int
    rested: Night


@pytest.fixture(scope="module")
def nights(
    night: Night, joined: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Nights:
    folder = tmp_path_factory.mktemp("gate")
    shutil.copytree(night.store.full_path(""), folder / "store")
    store = Store(str(folder / "store"))
    storage = {"root": store.root}
    # Without ids nobody finds the hidden scenes of the demo.
    config = change(
        night.config,
        run_id=WORSE,
        storage=storage,
        model={"leave_out": ("ids", "time")},
        train={"epochs": 1},
    )
    path = folder / "night.yaml"
    path.write_text(yaml.safe_dump(config.public()))
    ended = run_job(str(path), variables=joined)
    worse = Night(config, store, {}, night.events, night.items)
    config = change(night.config, run_id=RESTED, storage=storage, nightly={"finetune_every": 7})
    rested = Night(config, store, nightly(config, store), night.events, night.items)
    return Nights(night.manifest["model"], worse, ended.returncode, rested)


def test_a_worse_model_ends_with_status_3(nights: Nights) -> None:
    assert nights.status == 3
    found = nights.worse.read_json("gate.json")
    assert (found["decision"], found["published"]) == ("keep", "night")
    failed = {check["name"] for check in found["checks"] if not check["is_passed"]}
    assert failed == {"ndcg_loss", "lead"}


def test_lists_of_a_worse_night_are_made_with_the_published_model(nights: Nights) -> None:
    store, before = nights.worse.store, nights.worse.store.read_json("runs/night/manifest.json")
    assert store.read_json("runs/worse/manifest.json")["model"] == nights.model == before["model"]
    # The input is the same, so are the lists.
    digests = [
        {(file["domain"], file["sha256"]) for file in manifest["files"]}
        for manifest in (before, nights.worse.manifest)
    ]
    assert digests[0] == digests[1]


def test_the_report_says_which_model_serves(nights: Nights) -> None:
    folder = Path(nights.worse.store.full_path("runs/worse"))
    assert "The published model stays" in (folder / "report.html").read_text()
    metrics = nights.worse.read_json("metrics.json")
    assert (
        metrics["systems"]["published"]["all"]["ndcg@10"]
        > 1.1 * (metrics["systems"]["model"]["all"]["ndcg@10"])
    )


def test_a_young_model_is_gone_on_with(nights: Nights) -> None:
    assert nights.rested.manifest["model"] == nights.model
    folder = nights.rested.store.full_path(f"runs/{RESTED}")
    assert not (Path(folder) / "train").exists()
    assert not nights.rested.summary["alert"]
    # It is judged as if it were the night's own.
    own, trained = (
        nights.rested.store.read_json(f"runs/{run}/metrics.json")["systems"]["model"]["all"]
        for run in (RESTED, "night")
    )
    assert own == trained
    assert nights.rested.store.read_json("current.json")["run_id"] == RESTED
