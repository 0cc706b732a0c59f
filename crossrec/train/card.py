"""A model's card: what it was trained on, how good it was, how to load it without Ray.

In: what finetune.json will hold, the input's summary, the config. Out: Markdown with the front
matter that model hubs read, in models/<model_id>/README.md.

    write_card(config, store, summary)
"""

import datetime as dt
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import yaml

from crossrec.config import Config
from crossrec.storage import Store

PACKAGES = ("crossrec", "torch", "transformers", "peft", "ray", "numpy")

LOAD = """\
from transformers import AutoModel, AutoTokenizer

from crossrec.model.checkpoint import load_fusions, load_model, load_model_backbone
from crossrec.storage import Store

folder = "{folder}"  # within the store
store = Store("{root}")
model = load_model(store, folder)  # model.recommender is a torch module, in evaluation mode
fusions = load_fusions(store, folder)  # how text, neighbours, sequence and time add up
backbone = load_model_backbone(store, folder, model.settings)

# The backbone alone, as transformers reads it, from a copy of the folder on disk:
plain = AutoModel.from_pretrained(f"{root}/{folder}/backbone")
tokenizer = AutoTokenizer.from_pretrained(f"{root}/{folder}/backbone")
"""

LOAD_IMAGES = """\

# The model of images:
from transformers import AutoImageProcessor

image_model = AutoModel.from_pretrained(f"{root}/{folder}/image_backbone")
image_processor = AutoImageProcessor.from_pretrained(f"{root}/{folder}/image_backbone")
"""


def write_card(config: Config, store: Store, summary: Mapping[str, Any]) -> None:
    """Write the card of a model that `train_models` has finished.

    Args:
        config: of the run.
        store: of the run.
        summary: what finetune.json will hold.
    """
    prepared = store.read_json(f"runs/{config.run_id}/prepare.json")["prepared"]
    data = store.read_json(f"{prepared}/summary.json")
    text = render_card(config, summary, data, store.uri())
    store.write_bytes(f"{summary['model']}/README.md", text.encode())


def render_card(
    config: Config, summary: Mapping[str, Any], data: Mapping[str, Any], root: str
) -> str:
    """Return the card; `data` is the input's summary, `root` where the store is."""
    backbone = config.model.backbone
    front = {
        "library_name": "crossrec",
        "pipeline_tag": "other",
        "tags": ["recommendation", "cross-domain"],
        "base_model": backbone,
    }
    load = LOAD + (LOAD_IMAGES if config.model.image_backbone is not None else "")
    sections = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {summary['model'].rsplit('/', 1)[1]}",
        f"Scores the items of {len(data['domains'])} domains for users by what they did in all of "
        f"them. Fine-tuned by crossrec's run `{config.run_id}` from `{backbone}`"
        f"{_went_on(summary)}.",
        f"## Data\n\n{_data(config, summary, data)}",
        f"## Quality\n\n{_quality(config, summary)}",
        f"## Settings\n\n{_yaml(config)}",
        f"## Loading, without Ray\n\n```python\n"
        f"{load.replace('{root}', root).replace('{folder}', summary['model'])}```",
        "Weights are safetensors; no file of this folder is unpickled. `checksums.json` has the "
        "sha256 of each.",
        f"## Versions\n\n{_versions()}",
    ]
    return "\n\n".join(sections) + "\n"


def _went_on(summary: Mapping[str, Any]) -> str:
    return f", going on from `{summary['continues']}`" if summary["continues"] else ""


def _data(config: Config, summary: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    weeks = [week for by_week in data["events_by_week"].values() for week in by_week]
    first = f"from the week of {min(weeks)} on, " if weeks else ""
    # Days are those before which all is known.
    days = summary["days"]
    chosen = f"on {_date(days['valid'])} to {_date(days['holdout'])}, without what came after"
    if config.evaluate.protocol == "leave_one_out":
        chosen = "by each user's newest event but one, without the newest (leave-one-out)"
    rows = "\n".join(
        f"| {domain['name']} | {domain['stop'] - domain['start']:,} | {domain['events']:,} |"
        for domain in data["domains"]
    )
    return (
        f"{data['events']:,} events of {data['users']:,} users, {first}all before "
        f"{_date(days['night'])} (UTC). Epochs and weights of the parts were chosen {chosen}; then "
        f"the model was trained again on everything.\n\n"
        f"| domain | items | events |\n|---|---|---|\n{rows}"
    )


def _quality(config: Config, summary: Mapping[str, Any]) -> str:
    training = summary["training"]
    best: dict[str, Any] = next(
        (point for point in training["curve"] if point["epoch"] == training["best_epoch"]), {}
    )
    measures = ", ".join(
        f"{name} {best[name]:.4f}"
        for name in ("ndcg@10", "hr@10", "mrr@10", "rmse")
        if best.get(name) is not None
    )
    return (
        f"The sequence part alone, on the validation slice, in epoch {training['best_epoch']}: "
        f"{measures or 'not measured'}. The whole model, on days that nothing was chosen by, "
        f"beside baselines: `runs/{config.run_id}/metrics.json` and `report.html`."
        f"{_small(summary)}"
    )


def _small(summary: Mapping[str, Any]) -> str:
    """Return what there is to say of a small encoder."""
    distance = summary.get("small", {}).get("distance")
    if distance is None:
        return ""
    return (
        f' `load_model(store, folder, "small")` reads histories by a small encoder, whose '
        f"questions are {distance:.4f} away from the model's own."
    )


def _yaml(config: Config) -> str:
    public = config.public()
    shown = {name: public[name] for name in ("seed", "model", "train")}
    return f"```yaml\n{yaml.safe_dump(shown, sort_keys=False)}```"


def _versions() -> str:
    found = [f"Python {platform.python_version()}"]
    found += [f"{name} {metadata.version(name)}" for name in PACKAGES]
    return ", ".join(found)


def _date(day: int) -> str:
    return (dt.date(1970, 1, 1) + dt.timedelta(days=day)).isoformat()
