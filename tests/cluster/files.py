"""The files under cluster/ as tests read them."""

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from crossrec.config import Config
from crossrec.configfile import load_config

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
APP = "/app"
"""Where the image has the repository."""

DATE = "2026-11-27"


def read(name: str) -> str:
    return (CLUSTER / name).read_text(encoding="utf-8")


def documents(name: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(read(name)) if document]


def only(name: str) -> dict[str, Any]:
    (document,) = documents(name)
    return document


def rayjob_spec() -> dict[str, Any]:
    spec: dict[str, Any] = only("kuberay/rayjob.yaml")["spec"]
    return spec


def pods(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the pod templates of a RayJob's spec: head, each group of workers, submitter."""
    cluster = spec["rayClusterSpec"]
    groups = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    return {
        "head": cluster["headGroupSpec"]["template"],
        **groups,
        "submitter": spec["submitterPodTemplate"],
    }


def readme_commands() -> list[str]:
    """Return the commands of cluster/README.md's code, each on one line, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", read("README.md"), flags=re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [" ".join(line.split(" #")[0].split()) for line in lines if line.strip()]


def config_of(command: str) -> Config:
    """Return what `python jobs/nightly.py CONFIG KEY=VALUE...` within a command would read."""
    words = shlex.split(command.replace("RUN_ID", DATE).replace("$night", DATE))
    at = next(place for place, word in enumerate(words) if word.endswith("jobs/nightly.py"))
    assert words[at - 1] == "python"
    job, config, *overrides = (word.removeprefix(f"{APP}/") for word in words[at:])
    assert (ROOT / job).is_file()
    return load_config(str(ROOT / config), overrides)


def image_tags() -> set[str]:
    """Return every image that a file under cluster/ runs or builds."""
    names = ["Dockerfile", "README.md", "aws/launcher.yaml"]
    names += [f"kuberay/{name}.yaml" for name in ("rayjob", "cronjob", "raycronjob")]
    pattern = r"[\w./-]*\bcrossrec:[\w.-]+"
    return {tag for name in names for tag in re.findall(pattern, read(name))}
