"""What a model keeps of its quality on shifted data (`evaluate.shifts`), as metrics.json has it.

    [{"name": "wrong", "domain": None, "is_of_future": False, "seconds": 61.2, "all": P,
      "domains": {"shop": P, ...}}, ...]

with P = {"pairs", "before", "after", "popularity", "window", "lost", "lead"}: NDCG@10 of the run's
model, of the one that was trained on and scored with the shifted input, and of whichever popularity
window of that input is best, named by window; lost = before - after, lead = after - popularity
(`evaluate.bootstrap`). All on the same (user, domain) pairs; a part without pairs is None.

What is judged is what users really did, but under a shift of the future: then "before" is the
run's model on that, and the others on the shifted days of the same pairs.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import polars as pl
import pyarrow as pa

from crossrec.config import Config, ShiftName
from crossrec.evaluate.holdout import Holdout
from crossrec.runlog import log
from crossrec.schema import DOMAIN, USER_ID
from crossrec.score.catalogue import WINDOWS_DAYS
from crossrec.storage import Store
from crossrec.study.judging import measure, train_and_score
from crossrec.study.shifts import Shift, write_shifted
from crossrec.study.summary import NDCG, Judged, compare_judged
from crossrec.study.variants import from_the_start
from crossrec.train.launch import training_digest


def judge_shifts(
    config: Config, store: Store, holdout: Holdout, truth: pa.Table, before: Judged
) -> list[dict[str, Any]]:
    """Shift the input, train and judge what is missing; return what became of each.

    Args:
        config: of the run.
        store: of the run.
        holdout: of the run, by time.
        truth: of the hold-out.
        before: the run's model.
    """
    names = list(dict.fromkeys(config.evaluate.shifts))
    found = []
    for number, name in enumerate(names, 1):
        log.info("study: shift %s of %s, %s", number, len(names), name)
        found.append(_judge(config, store, holdout, truth, (name, before)))
    return found


def _judge(
    config: Config,
    store: Store,
    holdout: Holdout,
    truth: pa.Table,
    asked: tuple[ShiftName, Judged],
) -> dict[str, Any]:
    """Return what becomes of the model's quality under a shift of the domain with most events."""
    name, before = asked
    prepared = holdout.whole
    domain = max(prepared.domains, key=lambda entry: entry.events)
    shift = Shift(name, domain, config.seed, holdout.start, holdout.stop)
    config = from_the_start(config)
    digest = training_digest(config, replace(prepared, digest=shift.digest(prepared)))[:8]
    folder = f"runs/{config.run_id}/study/shift-{name}-{digest}"
    shifted = write_shifted(store, prepared, shift, f"{folder}/input")
    # All users get a list: whom a shift leaves nothing of is judged all the same.
    seen = replace(holdout, whole=shifted, known=shifted, for_all=True)
    result = train_and_score(config, store, seen, folder, tuple(WINDOWS_DAYS))
    if shift.is_of_future:
        truth = seen.truth(store, seen.known_items(store))
    files = {"model": result["files"]} | result["beside"]
    after = {key: Judged(key, measure(store, truth, paths, seen)) for key, paths in files.items()}
    return {
        "name": name,
        "domain": None if name == "wrong" else domain.name,
        "is_of_future": shift.is_of_future,
        "seconds": result["seconds"],
        **describe_shift(before, after),
    }


def describe_shift(before: Judged, after: Mapping[str, Judged]) -> dict[str, Any]:
    """Return all pairs, and those of each domain, as the module's head says.

    Args:
        before: the run's model.
        after: "model" and the popularity windows, on the shifted input.
    """
    names = sorted(before.pairs[DOMAIN].unique().to_list())
    parts = {name: _part(before, after, pl.col(DOMAIN) == name) for name in names}
    return {"all": _part(before, after, pl.lit(True)), "domains": parts}


def _part(before: Judged, after: Mapping[str, Judged], part: pl.Expr) -> dict[str, Any] | None:
    """Return the figures of a part, on the pairs that are judged both before and after."""
    keys = [USER_ID, DOMAIN]
    both = before.pairs.filter(part).join(after["model"].pairs, on=keys, how="semi")
    if both.is_empty():
        return None
    was = Judged(before.name, both.sort(keys))
    found = {
        name: Judged(name, judged.pairs.join(both, on=keys, how="semi").sort(keys))
        for name, judged in after.items()
    }
    model = found.pop("model")
    window = max(found, key=lambda name: found[name].mean() or 0.0)
    return {
        "pairs": len(both),
        "before": was.mean(NDCG),
        "after": model.mean(NDCG),
        "popularity": found[window].mean(NDCG),
        "window": window,
        "lost": compare_judged(was, model),
        "lead": compare_judged(model, found[window]),
    }
