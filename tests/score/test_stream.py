import logging
import os
import time
import urllib.request
from dataclasses import replace

import pyarrow as pa
import pytest

from crossrec.data.histories import catalogue_path, histories_path, open_prepared
from crossrec.errors import CrossrecError, StorageError
from crossrec.schema import US_PER_DAY, bucket_name
from crossrec.score import progress, stream
from crossrec.score.bucket import ScoreBucket, ScoreJob
from crossrec.score.progress import RETRIES, Progress, attempt
from crossrec.storage_errors import MissingObject
from tests.nights import Night

BAD, BUCKETS = 2, range(5)
PHASES = {"read", "compute", "write"}


class Flaky:
    def __init__(self, error: Exception, times: int) -> None:
        self.error, self.left, self.calls = error, times, 0

    def __call__(self) -> str:
        self.calls += 1
        self.left -= 1
        if self.left >= 0:
            raise self.error
        return "done"


def test_bucket_that_fails_is_tried_again() -> None:
    work = Flaky(ValueError("broken\npage"), RETRIES)
    assert attempt(work) == ("done", None)
    work = Flaky(ValueError("broken\npage"), RETRIES + 1)
    result, failure = attempt(work)
    assert (result, work.calls) == (None, 1 + RETRIES)
    assert failure == progress.Failure("ValueError: broken page", of_store=False)


def test_store_that_cannot_be_used_is_not_asked_again() -> None:
    work = Flaky(StorageError("no access"), 9)
    assert attempt(work) == (None, progress.Failure("no access", of_store=True))
    assert work.calls == 1
    missing = Flaky(MissingObject("none"), 9)
    assert attempt(missing) == (None, progress.Failure("none", of_store=False))


def test_progress_says_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = iter([0.0, 5.0, 20.0])
    monkeypatch.setattr("crossrec.score.progress.time.monotonic", lambda: next(now))
    with caplog.at_level(logging.INFO):
        said = Progress(buckets=6, domains=3)
        said.add(100)
        said.add(300)
    assert caplog.messages == ["score: 2 of 6 buckets, 400 users, 60 pairs/s, 40 s left"]


@pytest.fixture
def job(night: Night, request: pytest.FixtureRequest) -> ScoreJob:
    """The night's scoring of a few buckets, on a copy of their histories, into another folder."""
    store, plan = night.store, night.read_json("plan.json")
    folder = f"streams/{request.node.name}"
    for bucket in BUCKETS:
        data = store.read_bytes(histories_path(plan["prepared"], bucket))
        store.write_bytes(histories_path(f"{folder}/prepared", bucket), data)
    whole = open_prepared(store, plan["prepared"])
    for domain in whole.domains:
        data = store.read_bytes(catalogue_path(plan["prepared"], domain.name))
        store.write_bytes(catalogue_path(f"{folder}/prepared", domain.name), data)
    return ScoreJob(
        store=store,
        prepared=replace(whole, folder=f"{folder}/prepared"),
        model=plan["model"],
        items="runs/night/items",
        day=whole.as_of_us // US_PER_DAY + 1,
        outputs={"model": f"{folder}/scores"},
        domains=tuple(plan["domains"]),
        top_k=plan["top_k"],
        done=f"{folder}/done",
    )


def done(job: ScoreJob) -> list[str]:
    return job.store.list(job.done)


OTHERS = [f"{bucket_name(bucket)}.json" for bucket in BUCKETS if bucket != BAD]


def test_bucket_that_cannot_be_read_fails_after_the_others_are_done(job: ScoreJob) -> None:
    path = histories_path(job.prepared.folder, BAD)
    sound = job.store.read_bytes(path)
    job.store.write_bytes(path, sound[: len(sound) // 2])
    with pytest.raises(CrossrecError, match=rf"1 that failed: {bucket_name(BAD)} \(.*Parquet"):
        stream.score_buckets(job, BUCKETS, None)
    assert done(job) == OTHERS
    job.store.write_bytes(path, sound)
    assert stream.score_buckets(job, BUCKETS, None) == 1
    assert len(done(job)) == len(BUCKETS)


class Deadly(ScoreBucket):
    """Dies of one bucket, as a process does that wants more memory than there is."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        if batch["bucket"][0].as_py() == BAD:
            os._exit(1)
        return super().__call__(batch)


@pytest.mark.slow
def test_bucket_that_kills_its_process_fails_after_the_others_are_done(
    job: ScoreJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "ScoreBucket", Deadly)
    with pytest.raises(CrossrecError, match=rf"{bucket_name(BAD)} \({stream.DIED}\)"):
        stream.score_buckets(job, BUCKETS, None)
    assert done(job) == OTHERS


def test_store_that_cannot_be_written_ends_the_job(job: ScoreJob) -> None:
    job.store.write_bytes(job.done, b"a file in the way of a folder")
    with pytest.raises(StorageError, match="streams/"):
        stream.score_buckets(job, BUCKETS, None)


def test_actors_count_what_they_do_for_prometheus(job: ScoreJob) -> None:
    import ray

    stream.score_buckets(job, BUCKETS, None)
    users = sum(job.store.read_json(f"{job.done}/{name}")["users"] for name in done(job))
    (node,) = (node for node in ray.nodes() if node["Alive"])
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    until = time.monotonic() + 60
    counted = 0.0
    while counted < users and time.monotonic() < until:
        time.sleep(1)
        lines = urllib.request.urlopen(url, timeout=30).read().decode().splitlines()
        found = [line for line in lines if line.startswith("ray_crossrec_score_users_total{")]
        counted = sum(float(line.rpartition(" ")[2]) for line in found)
    assert counted >= users
    assert {
        phase for phase in PHASES if any(f'phase="{phase}"' in line for line in lines)
    } == PHASES
