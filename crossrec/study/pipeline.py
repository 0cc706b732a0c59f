"""The study of a run (`evaluate.study`): what each part of the model is worth, how sure that is.

With `evaluate.shifts`, by itself too: what is left of its quality where data go wrong.

Every variant is trained as the run's model was, under the same budget, and judged on the same
hold-out by the same code. It comes after the night's lists are published, and continues where it
was interrupted.

    runs/<run_id>/study/<variant>-<digest>/result.json   written last: a rerun does what is missing
    runs/<run_id>/metrics.json, report.html              written again, with the study

    metrics = study(config, store, evaluate(config, store))
"""

from typing import Any

import pyarrow as pa

from crossrec.config import Config
from crossrec.data.histories import open_prepared
from crossrec.evaluate.holdout import Holdout, open_holdout, score_holdout
from crossrec.evaluate.judged import FULL_ENCODER, MODEL
from crossrec.evaluate.lists import files_of
from crossrec.evaluate.pipeline import evaluate, run_lists, whole_lists, write_report
from crossrec.runlog import log, stage
from crossrec.schema import DOMAIN
from crossrec.score.bucket import ScoreJob
from crossrec.storage import Store
from crossrec.study.judging import measure, train_and_score
from crossrec.study.robustness import judge_shifts
from crossrec.study.summary import Judged, summarise
from crossrec.study.variants import Variant, plan_variants
from crossrec.train.continued import Start
from crossrec.train.launch import training_digest


def evaluate_and_study(config: Config, store: Store) -> dict[str, Any]:
    """Run the stage evaluate, and the study where the config asks for it."""
    metrics = evaluate(config, store)
    return study(config, store, metrics) if config.evaluate.has_study else metrics


def study(config: Config, store: Store, metrics: dict[str, Any]) -> dict[str, Any]:
    """Train and judge what is missing on an initialised Ray; return the metrics with the study.

    Args:
        config: of the run.
        store: of the run.
        metrics: what `evaluate` returned.
    """
    run = f"runs/{config.run_id}"
    with stage("study") as facts:
        prepared = open_prepared(store, store.read_json(f"{run}/prepare.json")["prepared"])
        finetuned = store.read_json(f"{run}/finetune.json")
        holdout = open_holdout(config, prepared, finetuned["days"])
        truth = holdout.truth(store, holdout.known_items(store))
        job = score_holdout(config, store, holdout, run_lists(config, store, finetuned["selected"]))
        whole = {
            name: Judged(name, measure(store, truth, paths, holdout))
            for name, paths in own_lists(config, holdout, job).items()
        }
        found: dict[str, Any] = {}
        variants = plan_variants(config, prepared.domains) if config.evaluate.study else []
        if variants:
            own, judged = Start(finetuned["selected"], finetuned["days"]["valid"]), []
            for number, variant in enumerate(variants, 1):
                log.info("study: %s of %s, %s", number, len(variants), variant.name)
                start = own if variant.goes_on else None
                judged.append((variant, _judge(variant, store, holdout, truth, start)))
            trained = finetuned["training"]["curve"][0].get("trained")
            found |= summarise(config, whole, judged, finetuned["seconds"], trained)
        if config.evaluate.shifts:
            found["shifts"] = judge_shifts(config, store, holdout, truth, whole[MODEL])
        metrics = metrics | {"study": found}
        write_report(metrics, store)
        facts |= {"variants": len(variants), "shifts": len(found.get("shifts", []))}
        facts["report"] = store.uri(f"{run}/report.html")
    return metrics | {"seconds": metrics["seconds"] + facts["seconds"]}


def own_lists(config: Config, holdout: Holdout, job: ScoreJob) -> dict[str, list[str]]:
    """Return the lists that `job` made, the model's with its own encoder, as variants have them."""
    files = files_of(job, holdout.buckets)
    whole = whole_lists(config, holdout, job)
    return files | ({MODEL: whole[FULL_ENCODER]} if whole else {})


def _judge(
    variant: Variant, store: Store, holdout: Holdout, truth: pa.Table, start: Start | None
) -> Judged:
    """Train a variant and score the hold-out with it, unless that is done; judge its lists."""
    # By its settings, so that a rerun with others does not take over what they were not made from.
    digest = training_digest(variant.config, holdout.whole)[:8]
    folder = f"runs/{variant.config.run_id}/study/{variant.folder}-{digest}"
    if variant.domain is not None:
        holdout = holdout.only(variant.domain)
        truth = truth.filter(pa.compute.equal(truth[DOMAIN], variant.domain.name))
    result = train_and_score(variant.config, store, holdout, folder, start=start)
    pairs = measure(store, truth, result["files"], holdout)
    return Judged(variant.name, pairs, result["seconds"], result["trained"], result["items_read"])
