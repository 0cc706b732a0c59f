import hashlib
from collections import defaultdict

import pytest

from crossrec.data.prepare import prepare
from crossrec.errors import ConfigError
from crossrec.evaluate.baselines import BASELINES
from crossrec.evaluate.pipeline import evaluate
from crossrec.nightly import nightly
from crossrec.schema import domain_folder
from crossrec.score.pipeline import score
from crossrec.train.launch import finetune
from tests.nights import (
    DEMO,
    ODD_DOMAIN,
    QUIET_DOMAIN,
    QUIET_ITEMS,
    SILENT_USERS,
    TOP_K,
    Night,
    change,
    modified,
)

MARGIN = 0.02
"""NDCG@10 that training must add on the hold-out."""


@pytest.fixture(scope="module")
def untrained(night: Night) -> Night:
    """The same night up to its figures, with a learning rate of 0."""
    train = {"learning_rate": 0.0, "weight_decay": 1.0, "epochs": 1}
    config = change(night.config, run_id="untrained", train=train)
    prepare(config, night.store)
    finetune(config, night.store)
    return Night(config, night.store, evaluate(config, night.store), night.events, night.items)


@pytest.mark.parametrize("domain", DEMO.domains)
def test_night_publishes_a_list_for_every_user(night: Night, domain: str) -> None:
    users = night.lists(domain)["user_id"].to_pylist()
    assert sorted(users) == sorted(night.events["user_id"].unique().to_pylist())


@pytest.mark.parametrize("domain", DEMO.domains)
def test_night_lists_the_best_unseen_items_of_the_domain(night: Night, domain: str) -> None:
    seen = defaultdict(set)
    events = night.events.select(["user_id", "domain", "item_id"]).to_pylist()
    for event in events:
        seen[event["user_id"]].add((event["domain"], event["item_id"]))
    items = night.items.to_pylist()
    of_domain = {item["item_id"] for item in items if item["domain"] == domain}
    for row in night.lists(domain).to_pylist():
        listed, scores = row["item_ids"], row["scores"]
        assert len(listed) == len(set(listed)) == len(scores) == TOP_K
        assert set(listed) <= of_domain
        assert not {(domain, item) for item in listed} & seen[row["user_id"]]
        assert scores == sorted(scores, reverse=True)


def test_night_publishes_defaults_of_every_domain(night: Night) -> None:
    assert night.manifest["scores"]["unit"] == "none"
    defaults = night.store.read_parquet(night.manifest["defaults"]["path"]).to_pylist()
    expected = dict.fromkeys(DEMO.domains, TOP_K) | {QUIET_DOMAIN: QUIET_ITEMS}
    assert {row["domain"]: len(row["item_ids"]) for row in defaults} == expected


def test_night_lists_all_items_of_a_domain_without_events(night: Night) -> None:
    lists = night.lists(QUIET_DOMAIN).to_pylist()
    assert len(lists) == len(night.events["user_id"].unique())
    assert all(set(row["item_ids"]) == {f"q{n}" for n in range(QUIET_ITEMS)} for row in lists)


def test_night_switches_readers_to_its_manifest(night: Night) -> None:
    current = night.store.read_json("current.json")
    manifest = night.store.read_bytes("runs/night/manifest.json")
    assert current["manifest"] == "runs/night/manifest.json"
    assert current["sha256"] == hashlib.sha256(manifest).hexdigest()


def test_night_judges_itself_beside_the_baselines(night: Night) -> None:
    systems = night.read_json("metrics.json")["systems"]
    popularity = {"popularity_all", "popularity_30d", "popularity_7d"}
    own = {"model", "without_sequence", "step0"}
    assert set(systems) == own | {"untrained_backbone"} | popularity | set(BASELINES)
    assert all(system["all"]["pairs"] for system in systems.values())


def test_night_writes_a_report(night: Night) -> None:
    assert night.summary["report"] == night.store.uri("runs/night/report.html")
    assert night.store.read_bytes("runs/night/report.html").lower().startswith(b"<!doctype html>")


def gain_of(night: Night) -> float:
    """Return the NDCG@10 on the hold-out that training added."""
    systems = night.read_json("metrics.json")["systems"]
    return float(systems["model"]["all"]["ndcg@10"] - systems["step0"]["all"]["ndcg@10"])


def test_training_beats_the_model_before_it(night: Night) -> None:
    assert gain_of(night) > MARGIN


@pytest.mark.slow
def test_training_without_gradients_gains_nothing(untrained: Night) -> None:
    assert gain_of(untrained) < MARGIN / 2


@pytest.mark.slow
def test_training_without_gradients_keeps_the_weights(untrained: Night) -> None:
    """The best are those of epoch 0: none after it is better."""
    checkpoint = untrained.checkpoints()[0]
    best, newest = (
        untrained.store.read_bytes(f"{checkpoint}/{name}.safetensors") for name in ("best", "model")
    )
    assert best == newest


def test_night_run_again_does_nothing_anew(night: Night) -> None:
    """What tells only of the rerun itself is written again: prepare.json, metrics and report."""
    of_rerun = {"prepare.json", "metrics.json", "sample.json", "gate.json", "report.html"}
    before = modified(night.store, "runs/night", of_rerun) | modified(night.store, "models")
    again = nightly(night.config, night.store)
    after = modified(night.store, "runs/night", of_rerun) | modified(night.store, "models")
    assert after == before
    assert again["ndcg@10"] == night.summary["ndcg@10"]


def test_run_id_of_another_model_is_refused(night: Night) -> None:
    before = modified(night.store, "models")
    with pytest.raises(ConfigError, match=r"run_id night: .*other settings.*give a new run_id"):
        nightly(change(night.config, model={"layers": 2}), night.store)
    assert modified(night.store, "models") == before


def test_run_id_of_other_lists_is_refused(night: Night) -> None:
    with pytest.raises(ConfigError, match=r"plan\.json: .*differs in top_k.*give a new run_id"):
        score(change(night.config, score={"top_k": TOP_K + 1}), night.store)


def test_unknown_domain_to_score_is_told(night: Night) -> None:
    with pytest.raises(ConfigError, match=r"score\.domains: .*shop.*found \['shoes'\]"):
        score(change(night.config, score={"domains": ["shop", "shoes"]}), night.store)


@pytest.mark.slow
def test_night_of_a_single_domain_publishes_it(odd_night: Night) -> None:
    assert odd_night.manifest["domains"] == [ODD_DOMAIN]
    assert all(domain_folder(ODD_DOMAIN) in file["path"] for file in odd_night.manifest["files"])


@pytest.mark.slow
def test_night_of_items_without_text_lists_them(odd_night: Night) -> None:
    rows = odd_night.lists(ODD_DOMAIN).to_pylist()
    by_user = {row["user_id"]: row["item_ids"] for row in rows}
    assert len(by_user["light 07"]) == TOP_K
    assert set(by_user["light 07"]) <= set(odd_night.items["item_id"].to_pylist())


@pytest.mark.slow
def test_night_lists_items_for_users_without_events(odd_night: Night) -> None:
    rows = odd_night.lists(ODD_DOMAIN).to_pylist()
    silent = [row["scores"] for row in rows if row["user_id"] in SILENT_USERS]
    (default,) = odd_night.store.read_parquet(odd_night.manifest["defaults"]["path"])[
        "scores"
    ].to_pylist()
    # Not the items: in a batch of another shape the last bit differs, which swaps near ties.
    assert silent == [pytest.approx(default)] * len(SILENT_USERS)
