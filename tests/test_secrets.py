"""What the night on S3 has left, everywhere: no credentials, no webhook, no token."""

import json
from typing import Any

import pytest

from crossrec.storage import Store
from tests.guarded import GuardedJob, find, objects
from tests.nights import Night

pytestmark = pytest.mark.slow


def test_secrets_are_in_nothing_that_the_store_holds(
    odd_night: Night, odd_job: GuardedJob, s3_store_options: dict[str, Any]
) -> None:
    """Plans, manifests, reports, checkpoints, weights, locks."""
    # Not by way of what makes it faulty.
    places = dict(objects(Store(odd_night.store.root, s3_store_options)))
    assert {"current.json", "runs/night/plan.json", "runs/night/report.html"} <= set(places)
    found, size = find(odd_job.secrets, iter(places.items()))
    assert not found
    assert size > 1_000_000
    # It is found where it is.
    model = odd_night.manifest["model"].rpartition("/")[2]
    assert ("model", "runs/night/plan.json") in find({"model": model}, iter(places.items()))[0]


def test_secrets_are_in_nothing_that_the_job_said_or_left(
    odd_night: Night, odd_job: GuardedJob
) -> None:
    """Its output, the logs of its Ray, what all of its processes have in the temporary folder."""
    places = dict(odd_job.traces())
    assert any("/logs/" in place and "worker" in place for place in places), "no logs of Ray"
    assert not find(odd_job.secrets, iter(places.items()))[0]
    told, _ = find({"bucket": odd_night.store.root}, iter(places.items()))
    assert ("bucket", "stdout and stderr") in told


def test_the_webhook_was_told_no_secret_but_its_own_address(
    odd_night: Night, odd_job: GuardedJob
) -> None:
    (request,) = odd_job.hook.requests
    assert request.path == f"/{odd_job.secrets['webhook']}"
    assert json.loads(request.body)["status"] == "done"
    assert not find(odd_job.secrets, iter([("body", request.body)]))[0]
