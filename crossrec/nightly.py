"""The night: prepare, finetune, evaluate, gate, score and publish, one after the other.

Each stage finds what is done already, so that the same command continues a night that died.
"""

from typing import Any

from crossrec.config import Config
from crossrec.data.histories import open_prepared
from crossrec.data.pins import list_inputs, pin_inputs
from crossrec.data.prepare import prepare
from crossrec.data.rulecheck import check_rules
from crossrec.evaluate.groupcolumns import check_groups
from crossrec.evaluate.pipeline import evaluate
from crossrec.gate import gate
from crossrec.increment import Increment, find_increment
from crossrec.model.source import BackboneSource
from crossrec.publish import publish
from crossrec.schema import US_PER_DAY
from crossrec.score.pipeline import score
from crossrec.score.plan import listed_domains
from crossrec.scored import score_and_tell
from crossrec.storage import Store
from crossrec.study.pipeline import study
from crossrec.train.adapt import check_adapt
from crossrec.train.launch import finetune
from crossrec.train.rest import rest
from crossrec.train.tracking import check_tracking


def nightly(config: Config, store: Store) -> dict[str, Any]:
    """Run all stages on an initialised Ray; return what a program wants to know of the night."""
    increment = find_increment(config, store)
    if increment:
        return _refresh(config, store, increment)
    inputs = list_inputs(config)
    check_rules(config, inputs)
    check_groups(config, inputs)
    BackboneSource(store, config.model).check()
    check_adapt(config, store)
    check_tracking(config.train.tracking)
    summary = prepare(config, store)
    # Before hours of training.
    prepared = open_prepared(store, summary["prepared"])
    listed_domains(config, prepared)
    check_rules(config, pin_inputs(config, store).inputs, prepared.as_of_us // US_PER_DAY + 1)
    rest(config, store)
    finetuned = finetune(config, store)
    metrics = evaluate(config, store)
    passed = gate(config, store)
    scored = score_and_tell(config, store)
    published = publish(config, store)
    if config.evaluate.has_study:
        # Last: nobody's lists wait for it. With what gate and score wrote into the metrics.
        written = store.read_json(f"runs/{config.run_id}/metrics.json")
        metrics = study(config, store, metrics | written)
    stages = {
        "prepare": summary,
        "finetune": finetuned,
        "evaluate": metrics,
        "gate": passed,
        "score": scored,
        "publish": published,
    }
    run = f"runs/{config.run_id}"
    return {
        "scores": store.uri(f"{run}/scores"),
        "report": store.uri(f"{run}/report.html"),
        "metrics": store.uri(f"{run}/metrics.json"),
        "model": store.uri(passed["keeps"] or finetuned["model"]),
        "gate": {name: passed[name] for name in ("decision", "reasons", "published")},
        "alert": passed["alert"],
        "users": scored["users"],
        "pairs": scored["pairs"],
        "files": published["files"],
        "ndcg@10": {
            name: (figures["all"] or {}).get("ndcg@10")
            for name, figures in metrics["systems"].items()
        },
        "seconds": {name: summary["seconds"] for name, summary in stages.items()},
    }


def _refresh(config: Config, store: Store, increment: Increment) -> dict[str, Any]:
    """Score who has new events with what the last full night learned, and publish."""
    prepared = prepare(config, store)
    scored = score(config, store)
    published = publish(config, store)
    full = f"runs/{increment.full}"
    stages = {"prepare": prepared, "score": scored, "publish": published}
    return {
        "scores": store.uri(f"runs/{config.run_id}/scores"),
        "report": store.uri(f"{full}/report.html"),
        "metrics": store.uri(f"{full}/metrics.json"),
        "model": store.uri(increment.plan["model"]),
        "full": increment.full,
        "users": scored["users"],
        "scored_users": published["scored_users"],
        "pairs": scored["pairs"],
        "files": published["files"],
        "seconds": {name: summary["seconds"] for name, summary in stages.items()},
    }
