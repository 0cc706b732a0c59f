"""A night that explains its lists, from scoring to the report."""

import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from crossrec.config import Config
from crossrec.data.histories import open_prepared, read_catalogue, read_histories
from crossrec.data.prepare import prepare
from crossrec.errors import ConfigError
from crossrec.evaluate.pipeline import evaluate
from crossrec.publish import publish
from crossrec.readers import read_scores
from crossrec.score.pipeline import score
from crossrec.storage import Store
from tests.nights import DOMAINS, Night, change

pytestmark = pytest.mark.slow

N = 2


@pytest.fixture(scope="module")
def explained(night: Night, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Config]:
    """A copy of the store in which another run, of the same model, has explained its lists."""
    root = tmp_path_factory.mktemp("explained") / "store"
    shutil.copytree(night.store.full_path(""), root)
    store = Store(str(root))
    model = night.manifest["model"].removeprefix("models/")
    settings = {"model": model, "explain": N}
    config = change(night.config, run_id="why", storage={"root": store.root}, score=settings)
    prepare(config, store)
    score(config, store)
    publish(config, store)
    return store, config


def had(store: Store) -> dict[str, set[tuple[str, str]]]:
    """What each user has had, by (domain, item_id)."""
    prepared = open_prepared(store, store.read_json("runs/why/prepare.json")["prepared"])
    keys: list[tuple[str, str]] = []
    for domain in prepared.domains:
        ids = read_catalogue(store, prepared, domain.name, ["item_id"])["item_id"].to_pylist()
        keys += [(domain.name, item) for item in ids]
    return {
        row["user_id"]: {keys[item] for item in row["rows"]}
        for bucket in range(prepared.buckets)
        for row in read_histories(store, prepared, bucket).to_pylist()
    }


def test_lists_are_those_without_reasons_and_reasons_are_of_the_history(
    night: Night, explained: tuple[Store, Config]
) -> None:
    store, own, across = explained[0], had(explained[0]), 0
    for domain in DOMAINS:
        found = read_scores(store.root, domain=domain).read_all().sort_by("user_id")
        plain = night.lists(domain).sort_by("user_id")
        assert found.select(plain.column_names).equals(pa.table(plain))
        for row in found.select(["user_id", "because"]).to_pylist():
            for reasons in row["because"]:
                named = [(reason["domain"], reason["item_id"]) for reason in reasons]
                assert len(named) <= N
                assert set(named) <= own[row["user_id"]]
                across += any(of_domain != domain for of_domain, _ in named)
    assert across > 0


def test_a_rerun_writes_the_same_bytes(explained: tuple[Store, Config]) -> None:
    store, config = explained
    before = store.read_json("runs/why/done/bucket-00003.json")["files"]
    store.delete("runs/why/done/bucket-00003.json")
    assert score(config, store)["rescored_buckets"] == 1
    assert store.read_json("runs/why/done/bucket-00003.json")["files"] == before


@pytest.mark.parametrize("other", [0, 3])
def test_another_number_of_reasons_is_another_plan(
    explained: tuple[Store, Config], other: int
) -> None:
    store, config = explained
    with pytest.raises(ConfigError, match=r"another plan \(differs in explain\)"):
        score(change(config, score={"explain": other}), store)


def test_an_incremental_night_takes_reasons_over_and_keeps_their_number(
    explained: tuple[Store, Config],
) -> None:
    store, config = explained
    monday = change(config, run_id="monday", score={"mode": "incremental"})
    prepare(monday, store)
    score(monday, store)
    publish(monday, store)
    found, before = (store.read_json(f"runs/{run}/manifest.json") for run in ("monday", "why"))
    assert found["explain"] == N
    assert found["scored_users"] == 0
    paths = [[file["path"] for file in manifest["files"]] for manifest in (found, before)]
    assert paths[0] == paths[1]
    tuesday = change(monday, run_id="tuesday", score={"explain": 0})
    prepare(tuesday, store)
    with pytest.raises(ConfigError, match=r"others \(explain\)"):
        score(tuesday, store)


def test_the_report_names_reasons_and_how_true_they_are(
    night: Night, explained: tuple[Store, Config]
) -> None:
    store, config = explained
    store.write_json("runs/why/finetune.json", night.read_json("finetune.json"))
    found = evaluate(config, store)["explanations"]
    assert found["reasons"] == N
    assert found["rank_correlation"] > 0.9
    assert found["sufficiency"]["reasons"] >= found["sufficiency"]["random"]
    page = store.read_bytes("runs/why/report.html").decode()
    assert "Why items are shown" in page
    assert "because of" in page
    listed = store.read_json("runs/why/sample.json")[0]["lists"]
    reasons = [reason for items in listed.values() for row in items for reason in row["because"]]
    assert reasons
    assert all(reason["title"] for reason in reasons)
    assert Path(store.full_path("runs/why/metrics.json")).exists()
