"""Stage 4, score: every user's best items of every domain.

    runs/<run_id>/plan.json                        what the run does; another plan is refused
    runs/<run_id>/candidates/                      which items lists may hold, doubtful texts
    runs/<run_id>/traits/                          what rules look at of users
    runs/<run_id>/items/                           the item side of all scores, and prices
    runs/<run_id>/scores/domain=<d>/bucket-*.parquet
    runs/<run_id>/done/bucket-*.json               written after the bucket's files
    runs/<run_id>/defaults.parquet                 the lists for users whom the input does not know

    summary = score(config, store)

A rerun does what is missing.
"""

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from crossrec.config import Config
from crossrec.data.candidates import FoundRules, rules_of, write_candidates
from crossrec.data.histories import Prepared, open_prepared, read_item_ids
from crossrec.data.pins import pin_inputs
from crossrec.data.replay import Histories
from crossrec.data.requires import kind_of
from crossrec.data.rulecheck import check_rules
from crossrec.data.traitfiles import write_traits
from crossrec.errors import ConfigError, explain
from crossrec.heap import give_back
from crossrec.increment import MEND, Increment, find_increment
from crossrec.runlog import stage
from crossrec.schema import DEFAULTS, US_PER_DAY
from crossrec.score.attraction import write_findings
from crossrec.score.bucket import ScoreJob
from crossrec.score.catalogue import NIGHT, build_items, has_items
from crossrec.score.lists import to_table
from crossrec.score.plan import find_model, write_plan
from crossrec.score.prices import write_prices
from crossrec.score.steering import Steering
from crossrec.score.stream import score_buckets
from crossrec.score.takeover import Earlier
from crossrec.storage import Store

FIRST_PLACES = 10
"""Those that a user looks at first go by score alone."""


def score(config: Config, store: Store) -> dict[str, Any]:
    """Run the stage on an initialised Ray; return counts and where the lists lie.

    Raises:
        ConfigError: a domain of `score.domains` does not exist, or the run_id belongs to another
            plan.
        StorageError: the store cannot be used.
        CrossrecError: there is no model, or buckets failed again and again; what is done stays
            done.
    """
    run = f"runs/{config.run_id}"
    with stage("score") as facts:
        prepared = open_prepared(store, store.read_json(f"{run}/prepare.json")["prepared"])
        increment = _find_increment(config, store)
        model = find_model(config, store, increment)
        rules = rules_of(config, store)
        if not increment:
            check_rules(
                config, pin_inputs(config, store).inputs, prepared.as_of_us // US_PER_DAY + 1
            )
        plan = write_plan(config, store, prepared, model, rules, increment)
        earlier, steering = None, Steering.of(config.score)
        traits = _find_traits(store, prepared, rules, f"{run}/traits")
        if increment:
            before = open_prepared(store, increment.prepared)
            was = None if traits is None else f"runs/{increment.previous}/traits"
            earlier = Earlier(increment.previous, before, was)
            pinned = open_prepared(store, increment.plan["prepared"])
            day = pinned.as_of_us // US_PER_DAY + 1
            items = increment.items
        else:
            day = prepared.as_of_us // US_PER_DAY + 1
            items = f"{run}/items"
            if not has_items(store, items):
                build_items(store, prepared, model, day, NIGHT, items)
                give_back()
        job = ScoreJob(
            store=store,
            prepared=prepared,
            model=model,
            items=items,
            day=day,
            outputs={"model": f"{run}/scores"},
            domains=tuple(plan["domains"]),
            top_k=config.score.top_k,
            done=f"{run}/done",
            new_places=new_places(config, config.score.top_k),
            candidates=increment.candidates if increment else None,
            earlier=earlier,
            precision=config.score.precision,
            encoder=plan.get("encoder", "full"),
            steered={"model": steering} if steering.is_on else {},
            explain=config.score.explain,
            traits=traits,
        )
        if not increment:
            if rules.rules.check_texts:
                facts["texts"] = write_findings(job, f"{run}/candidates")
            candidates = write_candidates(config, store, prepared, rules, day)
            job = replace(job, candidates=candidates)
        if steering.popularity_control:
            write_prices(job)
        facts |= {
            "users": prepared.users,
            "pairs": prepared.users * len(job.domains),
            "buckets": prepared.buckets,
        }
        began = time.perf_counter()
        facts["rescored_buckets"] = score_buckets(
            job, range(prepared.buckets), config.score.num_actors
        )
        facts["streaming_seconds"] = round(time.perf_counter() - began, 2)
        if increment:
            store.write_bytes(f"{run}/defaults.parquet", store.read_bytes(increment.defaults))
        else:
            _write_defaults(job, f"{run}/defaults.parquet")
        facts["scores"] = store.uri(f"{run}/scores")
    return facts


def _find_increment(config: Config, store: Store) -> Increment | None:
    """Do what `find_increment` does, and refuse what another version of crossrec has left."""
    increment = find_increment(config, store)
    if increment and not has_items(store, increment.items):
        expected, found = "a full night of this version", store.uri(increment.items)
        raise ConfigError(explain("score.mode=incremental", expected, found, MEND))
    return increment


def _find_traits(store: Store, prepared: Prepared, rules: FoundRules, folder: str) -> str | None:
    """Return where tonight's traits of users are, written if they are not there yet."""
    if rules.users is None or not rules.rules.requires:
        return None
    columns = list(dict.fromkeys(own for _, _, own in rules.rules.requires))
    is_text = {name: kind_of(rules.users, name) == "text" for name in columns}
    return write_traits(store, prepared, rules.users, is_text, folder)


def new_places(config: Config, top_k: int) -> int:
    """Return how many places of a list are kept for new items; never of its first FIRST_PLACES."""
    return min(int(config.score.new_share * top_k), max(0, top_k - FIRST_PLACES))


def _write_defaults(job: ScoreJob, path: str) -> None:
    """Write the list of each domain for a user without any event."""
    if job.store.exists(path):
        return
    nobody = Histories(
        pa.array([""]), np.zeros(2, np.int64), np.zeros(0, np.int32), np.zeros(0, np.int32)
    )
    wanted = [("model", domain) for domain in job.domains]
    lists = job.open_scorer().score(nobody, job.day, wanted, job.top_k, job.new_places)
    tables = []
    for (_, domain), found in lists.items():
        ids = read_item_ids(job.store, job.prepared, domain)
        tables.append(
            to_table(pa.array([domain]), found, ids).rename_columns(DEFAULTS.names).cast(DEFAULTS)
        )
    job.store.write_parquet(path, pa.concat_tables(tables).sort_by("domain"))
