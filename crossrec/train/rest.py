"""A night that trains nothing: the published model is young enough (`nightly.finetune_every`).

    rests = rest(config, store)      # finetune.json is there, with the published model

What is judged and published then is that model with tonight's events, items and trends.
"""

from crossrec.config import Config
from crossrec.data.histories import open_prepared
from crossrec.published import find_published
from crossrec.runlog import log
from crossrec.storage import Store
from crossrec.train.launch import BEGUN, training_digest
from crossrec.train.span import time_cuts


def rest(config: Config, store: Store) -> bool:
    """Take over the published model where this night need not train; return whether it does."""
    run = f"runs/{config.run_id}"
    if config.nightly.finetune_every == 1 or store.exists(f"{run}/{BEGUN}"):
        return False
    if store.exists(f"{run}/finetune.json"):
        return "rests_on" in store.read_json(f"{run}/finetune.json")
    published = find_published(config, store)
    if published is None:
        return False
    prepared = open_prepared(store, store.read_json(f"{run}/prepare.json")["prepared"])
    night, holdout, valid = time_cuts(config, prepared)
    settings = store.read_json(f"{published.model}/config.json")["settings"]
    reasons = {
        f"it has learned up to {night - published.night} days before": (
            night - published.night >= config.nightly.finetune_every
        ),
        "it does not know the same domains": (
            published.domains != tuple(domain.name for domain in prepared.domains)
        ),
        "its settings are not those of model.*": settings != config.model.model_dump(mode="json"),
    }
    trained = store.read_json(f"runs/{published.trained_by}/finetune.json")
    reasons["nothing was distilled from it for score.encoder=small"] = (
        config.score.encoder == "small" and "small" not in trained
    )
    for reason, applies in reasons.items():
        if applies:
            log.info("finetune: the published model is not gone on with, %s", reason)
            return False
    days = {"valid": valid, "holdout": holdout, "night": night}
    digest = training_digest(config, prepared)
    rested = {"days": days, "digest": digest, "seconds": 0.0, "rests_on": published.trained_by}
    store.write_json(f"{run}/finetune.json", trained | rested)
    log.info("finetune: skipped, the model of run %s is young enough", published.trained_by)
    return True
