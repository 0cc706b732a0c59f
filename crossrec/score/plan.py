"""What a scoring run does: which model, whose histories, which lists.

In: the config and what earlier stages wrote. Out: runs/<run_id>/plan.json, written once; a rerun
whose plan is another is refused.

    plan = write_plan(config, store, prepared, find_model(config, store), rules_of(config, store))
"""

import hashlib
import json
from typing import Any

from crossrec.config import Config
from crossrec.current import published_model
from crossrec.data.candidates import FoundRules
from crossrec.data.histories import Prepared, open_prepared
from crossrec.data.pins import check_pins
from crossrec.errors import ConfigError, CrossrecError, explain
from crossrec.increment import Increment
from crossrec.model.checkpoint import encoder_of
from crossrec.model.integrity import check_model
from crossrec.runlog import log
from crossrec.score.steering import Steering
from crossrec.storage import Store


def find_model(config: Config, store: Store, increment: Increment | None = None) -> str:
    """Return the folder of the model to score with."""
    run = f"runs/{config.run_id}"
    record, plan, gate = (f"{run}/{name}.json" for name in ("finetune", "plan", "gate"))
    if config.score.model:
        folder = f"models/{config.score.model}"
    elif increment:
        folder = increment.plan["model"]
    elif store.exists(gate) and (kept := store.read_json(gate)["keeps"]):
        folder = kept
    elif store.exists(record):
        folder = store.read_json(record)["model"]
    elif store.exists(plan):
        # Whatever was published since.
        folder = store.read_json(plan)["model"]
    elif (published := published_model(store)) is not None:
        folder = published
    else:
        mend = "run finetune first, or name a model in score.model"
        raise CrossrecError(
            explain(store.uri(record), "a fine-tuned model", "none, and none published", mend)
        )
    if not store.exists(f"{folder}/config.json"):
        known = ", ".join(store.list("models")) or "none"
        raise ConfigError(
            explain("score.model", f"one of: {known}", folder, "name one that exists")
        )
    return str(folder)


def listed_domains(config: Config, prepared: Prepared) -> list[str]:
    """Return the domains that lists are made for, sorted.

    Raises:
        ConfigError: `score.domains` names one that the catalogue lacks.
    """
    known = [domain.name for domain in prepared.domains]
    domains = set(config.score.domains or known)
    unknown = sorted(domains - set(known))
    if unknown:
        mend = "check the names, and leave out domains that are no more"
        raise ConfigError(explain("score.domains", f"some of {known}", f"{unknown}", mend))
    return sorted(domains)


def write_plan(
    config: Config,
    store: Store,
    prepared: Prepared,
    model: str,
    rules: FoundRules,
    increment: Increment | None = None,
) -> dict[str, Any]:
    """Write what this run will do, once; refuse another plan under the same run_id.

    Raises:
        ConfigError: there is another plan, a domain does not exist, the model was trained on other
            domains, or an incremental night would do what the full night that it stands on did not.
    """
    domains = listed_domains(config, prepared)
    _check_domains(store, model, prepared)
    plan = {
        "run_id": config.run_id,
        "model": model,
        "model_sha256": check_model(store, model),
        "prepared": prepared.folder,
        "buckets": prepared.buckets,
        "domains": domains,
        "top_k": config.score.top_k,
        "new_share": config.score.new_share,
        "precision": config.score.precision,
        "candidates": rules.public(),
    }
    steering = Steering.of(config.score)
    if steering.is_on:
        plan["steering"] = steering.public()
    if config.score.rules:
        plan["rules"] = [rule.model_dump(mode="json") for rule in config.score.rules]
    encoder = encoder_of(store, model, config.score.encoder)
    if encoder != "full":
        # Like what is explained: not there by default, so that plans stay what they were.
        plan["encoder"] = encoder
    elif config.score.encoder != encoder:
        log.warning("score: %s has no small encoder, its own is used", store.uri(model))
    if config.score.explain:
        # Not there where nothing is explained: plans stay what they were.
        plan["explain"] = config.score.explain
    if increment:
        _check_increment(plan, increment, store)
        plan |= {"full": increment.full, "previous": increment.previous}
    plan["digest"] = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
    path = f"runs/{config.run_id}/plan.json"
    if store.exists(path):
        before = store.read_json(path)
        if before["digest"] != plan["digest"]:
            keys = {*plan, "steering", "rules", "explain", "encoder"} - {"digest"}
            changed = sorted(key for key in keys if plan.get(key) != before.get(key))
            found = f"another plan (differs in {', '.join(changed)})"
            raise ConfigError(
                explain(store.uri(path), "this run's plan", found, "give a new run_id")
            )
        check_pins(config, store)
        return plan
    inputs = store.read_json(f"{prepared.folder}/summary.json")["inputs"]
    facts = store.read_json(f"{model}/config.json")["facts"]
    scores = steering.describe() if steering.is_on else facts.get("scores")
    more = {"config": config.public(), "inputs": inputs, "scores": scores}
    store.write_json(path, plan | more)
    return plan


def _check_domains(store: Store, model: str, prepared: Prepared) -> None:
    """Raise where a model knows other domains than the input, or by other numbers."""
    knows = store.read_json(f"{model}/config.json")["domains"]
    wanted = [domain.name for domain in prepared.domains]
    if knows != wanted:
        expected = f"a model of the input's domains, {wanted}"
        mend = "fine-tune on this input, or name a model of its domains in score.model"
        raise ConfigError(explain(store.uri(model), expected, f"one of {knows}", mend))


def _check_increment(plan: dict[str, Any], increment: Increment, store: Store) -> None:
    """Raise where lists that are taken over would not be those that this plan makes."""
    was = increment.plan
    names: tuple[str, ...] = (
        "model",
        "model_sha256",
        "domains",
        "top_k",
        "new_share",
        "precision",
        "candidates",
    )
    names += ("steering", "rules", "explain", "encoder")
    other = [name for name in names if plan.get(name) != was.get(name)]
    values = [open_prepared(store, made["prepared"]).values for made in (was, plan)]
    other += ["data.events columns"] if values[0] != values[1] else []
    if other:
        expected = f"the settings of the full night {increment.full}"
        found = f"others ({', '.join(other)})"
        mend = "set them back, or run a night with score.mode=full"
        raise ConfigError(explain("score.mode=incremental", expected, found, mend))
