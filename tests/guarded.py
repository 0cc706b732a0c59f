"""A job with a Ray, a temporary folder and secrets of its own; where are these in the end?

job = guarded_job(folder, options, hook)
summary = job.run(config)                    # jobs/nightly.py, in a process of its own
find(job.secrets, job.traces())              # names of the places that hold one
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pyarrow.fs import FileSelector

from crossrec.config import Config
from crossrec.storage import Store
from tests.webhook import Webhook

ROOT = Path(__file__).parents[1]


@dataclass
class GuardedJob:
    """The place of a job, and what it said.

    folder: where it and all of its processes have their temporary files, Ray's logs among them.
    variables: of its environment. options: of its storage. webhook: URL of its config, of the
    server `hook`. secrets: by what they are. said: what it wrote to stdout and stderr.
    """

    folder: Path
    variables: Mapping[str, str]
    options: Mapping[str, str]
    webhook: str
    hook: Webhook
    secrets: Mapping[str, str]
    said: str = ""

    def run(self, config: Config, timeout_s: float = 600) -> dict[str, Any]:
        """Run a night; return its summary."""
        # Beside the folder: the config is its user's to guard.
        path = self.folder.with_suffix(".yaml")
        settings = config.public()
        settings["storage"]["options"] = config.storage.options
        settings["notify"] = {"webhook": self.webhook}
        path.write_text(yaml.safe_dump(settings))
        path.chmod(0o600)
        variables = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        ended = subprocess.run(
            [sys.executable, "jobs/nightly.py", str(path)],
            cwd=ROOT,
            env={**variables, **self.variables},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        path.unlink()
        self.said = ended.stdout + ended.stderr
        assert ended.returncode == 0, ended.stderr[-3_000:]
        summary: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
        return summary

    def traces(self) -> Iterator[tuple[str, bytes]]:
        """Yield what the job left on this machine, by the place."""
        yield "stdout and stderr", self.said.encode()
        for path in self.folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                yield str(path.relative_to(self.folder)), path.read_bytes()


def guarded_job(folder: Path, options: Mapping[str, str], hook: Webhook) -> GuardedJob:
    """Return a job that has not run yet.

    Args:
        folder: empty, with a short path: those of Ray's sockets may have 107 bytes.
        options: of a store on the test server; moto takes any credentials in their place.
        hook: server that is told how the job ends.
    """
    secrets = {
        "access key of the environment": "AKIAENVIRONMENT7Q2X",
        "secret key of the environment": "environment-secret-kTz81",
        "access key of storage.options": "AKIAOPTIONS9W4M",
        "secret key of storage.options": "options-secret-pRv52",
    }
    if os.environ.get("CROSSREC_TEST_S3_ENDPOINT"):
        given = [os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]]
        secrets = dict(zip(secrets, [*given, options["key"], options["secret"]], strict=True))
    environment_key, environment_secret, key, secret = secrets.values()
    secrets |= {"webhook": "webhook-secret-hJd37", "token of Ray": "ray-token-0123456789-mYb64"}
    variables = {
        "AWS_ACCESS_KEY_ID": environment_key,
        "AWS_SECRET_ACCESS_KEY": environment_secret,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets["token of Ray"],
        "RAY_TMPDIR": str(folder),
        "TMPDIR": str(folder),
    }
    url = f"{hook.url}/{secrets['webhook']}"
    return GuardedJob(folder, variables, {"key": key, "secret": secret}, url, hook, secrets)


def objects(store: Store) -> Iterator[tuple[str, bytes]]:
    """Yield all objects of a store, by their paths."""
    files = store.arrow_filesystem.get_file_info(FileSelector(store.full_path(), recursive=True))
    for file in files:
        if file.is_file:
            path = file.path.removeprefix(store.full_path()).lstrip("/")
            yield path, store.read_bytes(path)


def find(
    secrets: Mapping[str, str], places: Iterator[tuple[str, bytes]]
) -> tuple[set[tuple[str, str]], int]:
    """Return which secret is in which place, and how many bytes were looked at."""
    found, size = set(), 0
    for place, data in places:
        size += len(data)
        found |= {(name, place) for name, secret in secrets.items() if secret.encode() in data}
    return found, size
