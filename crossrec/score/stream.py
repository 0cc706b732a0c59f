"""Buckets stream through actors that hold model and item matrix: Ray Data reads ahead of them.

    done = score_buckets(job, range(64), num_actors=None)

A bucket that fails is tried again; if it fails for good, the others are done first.
"""

import time
import warnings
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy

from crossrec.data.histories import Prepared, read_histories
from crossrec.errors import CrossrecError, StorageError, explain
from crossrec.runlog import log
from crossrec.schema import bucket_name
from crossrec.score.bucket import ScoreBucket, ScoreJob
from crossrec.score.progress import RETRIES, Counters, Progress, attempt
from crossrec.storage import Store

CPUS_AN_ACTOR = 8
"""At most: an actor must fit on one node."""

RESTARTS_A_BUCKET = 1 + RETRIES
"""A bucket that kills the process which scores it does so at every try."""

MOST_RESTARTS = 30
"""Of an actor, whatever kills it."""

DIED = "the process that scored it died, as for lack of memory"


def score_buckets(job: ScoreJob, buckets: range, num_actors: int | None) -> int:
    """Score the buckets that have no completion record yet; return how many that were.

    Raises:
        StorageError: the store cannot be used.
        CrossrecError: buckets failed again and again; all others are done.
    """
    missing = _missing(job, buckets)
    if not missing:
        return 0
    progress, failed = Progress(len(missing), len(job.domains)), {}
    for row in _stream(job, missing, num_actors).iter_rows():
        if row["of_store"]:
            raise StorageError(row["failed"])
        if row["failed"]:
            failed[row["bucket"]] = row["failed"]
            log.warning("score: %s failed: %s", bucket_name(row["bucket"]), row["failed"])
        progress.add(row["users"])
    # A bucket that took its actor with it is not told of.
    left = _missing(job, buckets)
    if left:
        said = (f"{bucket_name(bucket)} ({failed.get(bucket, DIED)})" for bucket in left[:5])
        found = f"{len(left)} that failed: {'; '.join(said)}"
        mend = "all others are done: mend the cause, and the same command does these"
        raise CrossrecError(explain(job.store.uri(job.done), "all buckets", found, mend))
    return len(missing)


def _missing(job: ScoreJob, buckets: range) -> list[int]:
    records = set(job.store.list(job.done))
    return [
        bucket for bucket in buckets if job.record_path(bucket).rsplit("/", 1)[1] not in records
    ]


def _stream(job: ScoreJob, missing: list[int], num_actors: int | None) -> ray.data.Dataset:
    """Return what comes of each bucket, bucket.OUTCOME, lazily."""
    resources = ray.cluster_resources()
    cpus, gpus = int(resources["CPU"]), int(resources.get("GPU", 0))
    actors = min(num_actors or gpus or max(1, cpus // 4), len(missing))
    # Two CPUs stay free: reading ahead needs one, and Ray Data stalls where actors take all.
    threads = max(1, min((cpus - 2) // actors, CPUS_AN_ACTOR))
    rows = [{"bucket": bucket} for bucket in missing]
    read = ReadBucket(job.store, job.prepared)
    waiting = ray.data.from_items(rows, override_num_blocks=len(rows)).map(read)
    with warnings.catch_warnings():
        # Ray 2.60 has no other way to say that an actor is not to be restarted for ever.
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
        done = waiting.map_batches(
            ScoreBucket,
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=actors),
            fn_constructor_args=(job,),
            num_cpus=threads,
            num_gpus=1 if gpus else 0,
            max_restarts=min(RESTARTS_A_BUCKET * len(missing), MOST_RESTARTS),
            max_task_retries=RETRIES,
        )
    # Of a bucket that kills its actor Ray Data makes an error of the whole stream.
    done.context.max_errored_blocks = len(missing)
    return done


class ReadBucket:
    """Ray Data task: reads one bucket for an actor whose unit of work it is."""

    def __init__(self, store: Store, prepared: Prepared) -> None:
        self.store = store
        self.prepared = prepared

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the bucket's number, its histories as an Arrow stream, or why it has none."""
        began = time.perf_counter()
        bucket = int(row["bucket"])
        data, failure = attempt(lambda: self._read(bucket))
        Counters().count(read=time.perf_counter() - began)
        return {
            "bucket": bucket,
            "histories": data or b"",
            "failed": failure.said if failure else "",
            "of_store": failure is not None and failure.of_store,
        }

    def _read(self, bucket: int) -> bytes:
        table = read_histories(self.store, self.prepared, bucket)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        data: bytes = sink.getvalue().to_pybytes()
        return data
