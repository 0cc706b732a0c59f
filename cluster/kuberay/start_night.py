"""Create tonight's RayJob and wait for its end; what the CronJob of cronjob.yaml runs.

    python start_night.py /etc/crossrec/rayjob.yaml [2026-11-27]

In: the manifest, in which RUN_ID stands for the night's date (UTC, today unless given), and the
service account's token. Out: the RayJob, created unless it is there already, so that a second try
of the same night follows the first one's. Exit status: 0 the night is complete, 1 it failed or the
API server said no, 2 the manifest is no RayJob.

It needs the verbs `create` and `get` on rayjobs, and nothing but Python and PyYAML. While it waits
the CronJob's `concurrencyPolicy: Forbid` holds for the night itself.
"""

import datetime as dt
import json
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import yaml

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
API = "https://kubernetes.default.svc"

PAUSE_S = 30.0
"""Between two looks at the RayJob."""

LOST_S = 900.0
"""The API server may be away for so long, as while it is upgraded, before this gives up."""

RUN_ID = "RUN_ID"

ENDS = ("Complete", "Failed", "ValidationFailed")
"""What a RayJob's jobDeploymentStatus does not leave again."""


class RayJobs:
    """The RayJobs of the service account's namespace."""

    def __init__(self, api: str = API, account: Path = ACCOUNT) -> None:
        namespace = (account / "namespace").read_text().strip()
        self.uri = f"{api}/apis/ray.io/v1/namespaces/{namespace}/rayjobs"
        self._token = account / "token"
        certificate = account / "ca.crt"
        self._trust = (
            ssl.create_default_context(cafile=str(certificate)) if api[:5] == "https" else None
        )

    def create(self, job: dict[str, Any]) -> bool:
        """Create a RayJob; return False where one of that name is there already."""
        try:
            self._ask(self.uri, json.dumps(job).encode())
        except urllib.error.HTTPError as error:
            if error.code == 409:
                return False
            raise
        return True

    def read(self, name: str) -> dict[str, Any]:
        """Return a RayJob's status, empty until the operator has seen it."""
        status: dict[str, Any] = self._ask(f"{self.uri}/{name}").get("status") or {}
        return status

    def _ask(self, uri: str, body: bytes | None = None) -> dict[str, Any]:
        # Read each time: Kubernetes renews the token every hour.
        headers = {
            "Authorization": f"Bearer {self._token.read_text().strip()}",
            "Content-Type": "application/json",
        }
        request = urllib.request.Request(uri, data=body, headers=headers)
        with urllib.request.urlopen(request, timeout=30, context=self._trust) as reply:
            answer: dict[str, Any] = json.load(reply)
            return answer


def read_manifest(path: Path, date: str) -> dict[str, Any]:
    """Return the manifest's RayJob for a date; ValueError where it is none, or has no RUN_ID."""
    text = path.read_text(encoding="utf-8")
    job = yaml.safe_load(text.replace(RUN_ID, date))
    if not isinstance(job, dict) or job.get("kind") != "RayJob":
        raise ValueError(f"{path}: expected one RayJob; give it the file rayjob.yaml")
    if date not in job["metadata"]["name"] or f"run_id={date}" not in job["spec"]["entrypoint"]:
        raise ValueError(f"{path}: expected {RUN_ID} in the name and as run_id in the entrypoint")
    return job


def follow(jobs: RayJobs, name: str) -> int:
    """Return 0 when the RayJob is complete, 1 when it has failed for good."""
    said, seen = "", time.monotonic()
    while True:
        try:
            status = jobs.read(name)
        except OSError as error:
            # Of its subclass HTTPError these answers stay what they are; what else it says passes.
            if getattr(error, "code", None) in (401, 403, 404):
                return _fail(f"rayjob {name}: the API server says {error}")
            if time.monotonic() - seen > LOST_S:
                return _fail(f"rayjob {name}: no answer for {LOST_S:.0f} s: {error}")
        else:
            seen = time.monotonic()
            stage = status.get("jobDeploymentStatus") or "New"
            if stage != said:
                said = stage
                print(f"rayjob {name}: {stage}", flush=True)
            if stage == "Complete" and status.get("jobStatus") == "SUCCEEDED":
                return 0
            if stage in ENDS:
                facts = (status.get(fact) for fact in ("jobStatus", "reason", "message"))
                return _fail(f"rayjob {name}: {stage}: {', '.join(str(x) for x in facts if x)}")
        time.sleep(PAUSE_S)


def start(jobs: RayJobs, manifest: Path, date: str) -> int:
    """Create the night's RayJob, unless it is there, and follow it; return the exit status."""
    try:
        job = read_manifest(manifest, date)
    except (OSError, ValueError, KeyError, yaml.YAMLError) as error:
        return _fail(f"{type(error).__name__}: {error}", 2)
    name = job["metadata"]["name"]
    try:
        created = jobs.create(job)
    except urllib.error.HTTPError as error:
        answer = error.read().decode(errors="replace")[:500]
        return _fail(f"rayjob {name}: not created: {error.code} {error.reason}: {answer}")
    except OSError as error:
        return _fail(f"rayjob {name}: not created: {error}")
    print(f"rayjob {name}: {'created' if created else 'is there already'}", flush=True)
    return follow(jobs, name)


def _fail(message: str, status: int = 1) -> int:
    print(message, file=sys.stderr, flush=True)
    return status


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(_fail(f"expected MANIFEST [DATE], found {sys.argv[1:]}", 2))
    today = dt.datetime.now(dt.UTC).strftime("%Y-%m-%d")
    sys.exit(start(RayJobs(), Path(sys.argv[1]), sys.argv[2] if len(sys.argv) == 3 else today))
