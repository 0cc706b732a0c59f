"""Versions, paths, commands and sizes that the files under cluster/ share with the project."""

import re
import shlex
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import click
import pytest
import ray.scripts.scripts

from tests.cluster.files import (
    APP,
    CLUSTER,
    ROOT,
    config_of,
    documents,
    image_tags,
    only,
    rayjob_spec,
    read,
    readme_commands,
)

TEXTS = sorted(
    path for path in CLUSTER.rglob("*") if path.is_file() and "__pycache__" not in path.parts
)


def pin(name: str) -> str:
    found = re.search(rf"^{name}==(.*)$", read("constraints.txt"), flags=re.MULTILINE)
    assert found
    return found[1]


# --------------------------------------------------------------------------------------------------
# Versions and paths


def test_ray_is_the_locked_one_everywhere() -> None:
    assert version("ray") == pin("ray") == rayjob_spec()["rayClusterSpec"]["rayVersion"]
    named = re.findall(r"(?<!Kube)Ray (\d+\.\d+\.\d+)", read("README.md"))
    assert named
    assert set(named) == {pin("ray")}


def test_torch_in_the_readme_is_the_locked_one() -> None:
    assert set(re.findall(r"torch(?: |==)(\d[\d.]*\d)", read("README.md"))) == {pin("torch")}


def test_kuberay_is_one_version() -> None:
    named = re.findall(r"(?:KubeRay|--version) (1\.\d+(?:\.\d+)?)", read("README.md"))
    assert {name[:3] for name in named} == {"1.7"}
    assert "on KubeRay 1.7," in read("kuberay/rayjob.yaml")


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(CLUSTER)))
def test_paths_in_the_image_are_paths_of_the_repository(path: str) -> None:
    text = (CLUSTER / path).read_text(encoding="utf-8")
    for found in re.findall(rf"(?<![\w/.-]){APP}/([\w./-]+)", text):
        assert (ROOT / found).is_file(), found
    for found in re.findall(r"(?<![\w/])cluster/[\w./-]+\.(?:yaml|json|py|sh|txt)", text):
        assert (ROOT / found).is_file(), found


def test_readme_s_table_names_every_file() -> None:
    said = read("README.md").split("\n## ")[0]
    for path in TEXTS:
        name = str(path.relative_to(CLUSTER))
        if name != "README.md":
            assert name in said or path.name in said or f"{path.parent.name}/*.json" in said, name


def test_image_tags_are_those_that_the_readme_builds() -> None:
    built = {tag for command in readme_commands() if command.startswith("docker build")
             for tag in re.findall(r"-t (\S+)", command)}  # fmt: skip
    names = {tag.rsplit("/", 1)[-1] for tag in built}
    assert len(names) == 2
    assert {tag.rsplit("/", 1)[-1] for tag in image_tags()} == names


# --------------------------------------------------------------------------------------------------
# Commands


def jobs() -> list[str]:
    commands = [command for command in readme_commands() if "jobs/nightly.py" in command]
    cron = only("kuberay/raycronjob.yaml")["spec"]["jobTemplate"]["entrypoint"]
    return [*commands, rayjob_spec()["entrypoint"], cron]


def test_every_job_is_one_that_the_config_knows() -> None:
    assert len(jobs()) == 4
    for command in jobs():
        config = config_of(command)
        assert config.storage.root
        assert config.model.trust_remote_code is False


def test_cluster_jobs_are_one_and_the_same() -> None:
    """By KubeRay, by its cron and by the launcher: what differs is who starts it."""
    one, two, three = (config_of(c) for c in jobs() if "configs/cluster.yaml" in c)
    plain = [config.model_copy(update={"run_id": "x"}) for config in (one, two, three)]
    assert plain[0] == plain[1] == plain[2]


def test_run_is_named_by_the_date_wherever_a_date_is_at_hand() -> None:
    assert "run_id=RUN_ID" in rayjob_spec()["entrypoint"].split()
    submits = [command for command in readme_commands() if command.startswith("ray job submit")]
    submits += [command for command in readme_commands() if " ray job submit" in command]
    assert len(submits) == 2
    assert all("run_id=$night" in command for command in submits)


def test_one_command_puts_in_the_user_s_own_names(tmp_path: Path) -> None:
    shutil.copytree(CLUSTER, tmp_path / "cluster")
    (command,) = (command for command in readme_commands() if command.startswith("sed -i 's,"))
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    changed = [path for kind in ("yaml", "json") for path in tmp_path.rglob(f"*.{kind}")]
    assert len(changed) >= 8
    for path in changed:
        assert not re.search(r"example|123456789012", path.read_text()), path.name
    job = (tmp_path / "cluster/kuberay/rayjob.yaml").read_text()
    assert "data.events=s3://LAKE/events data.items=s3://LAKE/items" in job


def ray_commands() -> list[list[str]]:
    launcher = only("aws/launcher.yaml")
    written = [
        *readme_commands(),
        *launcher["head_start_ray_commands"],
        *launcher["worker_start_ray_commands"],
    ]
    words = [shlex.split(command.replace("$(date -u +%F)", "x")) for command in written]
    return [found[found.index("ray") :] for found in words if "ray" in found]


def test_ray_commands_have_only_options_that_ray_has() -> None:
    commands = ray_commands()
    assert len(commands) >= 10
    for words in commands:
        command: click.Command = ray.scripts.scripts.cli
        rest = words[1:]
        while isinstance(command, click.Group):
            found = command.get_command(click.Context(command), rest[0])
            assert found is not None, words
            command, rest = found, rest[1:]
        known = {option for parameter in command.params for option in parameter.opts}
        own = rest[: rest.index("--")] if "--" in rest else rest
        given = {word.split("=")[0] for word in own if word.startswith("-")}
        assert given <= known, words


def test_dashboards_are_on_loopback_and_authentication_is_on() -> None:
    heads = [words for words in ray_commands() if "--head" in words]
    assert len(heads) == 2
    assert all("--dashboard-host=127.0.0.1" in words for words in heads)
    assert "export RAY_AUTH_MODE=token" in readme_commands()


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(CLUSTER)))
def test_no_file_has_a_secret(path: str) -> None:
    text = (CLUSTER / path).read_text(encoding="utf-8")
    assert not re.search(r"AKIA[0-9A-Z]{16}|ghp_\w{30}|-----BEGIN", text)
    assert not re.search(r"(?i)(secret_access_key|auth_token|password)\s*[:=]\s*['\"]?\w{8}", text)


# --------------------------------------------------------------------------------------------------
# Sizes

EVENTS_S, HISTORIES_S, LISTS_S = 483_000, 210, 3_676
"""Measured on 2 CPUs; lists with 25,000 items a domain."""


def test_measured_rates_are_those_of_the_readme_at_the_root() -> None:
    measured = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "50 million in 103.5 s" in measured
    assert round(50e6 / 103.5, -3) == EVENTS_S
    assert f"{HISTORIES_S} histories/s" in measured
    assert f"{LISTS_S:,} lists/s" in measured
    sizes = read("README.md").split("## Sizes")[1]
    for rate in (EVENTS_S, HISTORIES_S, LISTS_S):
        assert f"{rate:,} " in sizes


def number(cell: str) -> float:
    return float(re.sub(r"[^\d.]", "", cell.split("x")[-1].split("+")[0].split()[0]))


def test_extrapolated_times_and_costs_are_what_their_rule_gives() -> None:
    rows = [line.split("|")[1:-1] for line in read("README.md").splitlines()
            if "| extrapolated |" in line]  # fmt: skip
    assert len(rows) == 3
    hourly = dict(re.findall(r"(\w+\.\w+) \$([\d.]+)/h", read("README.md")))
    for row in rows:
        users, items, events, cpus, machines, _, time, cost = (cell.strip() for cell in row)
        times = number(cpus) / 2
        seconds = number(events) / (EVENTS_S * times)
        seconds += 1.04 * number(users) * 12 * 2 / (HISTORIES_S * times)
        seconds += number(users) * 3 / (LISTS_S * times * 25_000 / number(items))
        assert number(time) == pytest.approx(seconds / 60, rel=0.03)
        count, kind = machines.split()
        dollars = int(count) * float(hourly[kind]) * seconds / 3600
        assert number(cost) == pytest.approx(dollars, rel=0.06)


def test_computed_time_on_gpus_is_what_its_rule_gives() -> None:
    items = 128 * 50 + 3 * 256
    tflop = items * 64 * 6 * 10.6e6 / 1e12
    step_s = tflop / (0.30 * 121) / 4
    text = read("README.md")
    assert f"= {items:,} different items" in text
    assert f"{tflop:.0f} TFLOP." in text
    assert f"{step_s:.2f} s a step" in text
    training_h = 5 * 2 * 1_000_000 / 128 * step_s / 3600
    assert f"{training_h:.1f} h in all" in text
    scoring_h = 3_000_000 / (LISTS_S * 32 * 0.25) / 3600
    assert f"| {training_h + scoring_h:.1f} h |" in text
    assert (training_h + scoring_h) * 3600 < rayjob_spec()["activeDeadlineSeconds"]
    assert "No GPU was measured" in text


def test_documents_are_whole() -> None:
    """Each has a kind; the namespace of all that have one is one."""
    found = [d for name in ("access", "cronjob", "raycronjob", "rayjob")
             for d in documents(f"kuberay/{name}.yaml")]  # fmt: skip
    spaces = {d["metadata"]["namespace"] for d in found if "namespace" in d["metadata"]}
    assert spaces == {"crossrec"}
    assert all(d["apiVersion"] and d["kind"] for d in found)
