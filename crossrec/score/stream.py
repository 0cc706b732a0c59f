"""Buckets stream through actors that hold model and item matrix: Ray Data reads ahead of them.

    done = score_buckets(job, range(64), num_actors=None)

A bucket that fails is tried again; if it fails for good, the others are done first.
"""

import contextlib
import time
import uuid
import warnings
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import ray
import ray.actor
import ray.data
from ray.data import ActorPoolStrategy, TaskPoolStrategy

from crossrec.data.histories import Prepared, read_histories
from crossrec.data.traits import with_traits
from crossrec.errors import CrossrecError, StorageError, explain
from crossrec.heap import give_back
from crossrec.nodes import count_cpus_and_gpus, largest_node_cpus
from crossrec.runlog import log
from crossrec.schema import bucket_name
from crossrec.score.bucket import ScoreBucket, ScoreJob
from crossrec.score.progress import RETRIES, Counters, Progress, attempt
from crossrec.storage import Store

CPUS_AN_ACTOR = 8
"""At most, and no more than a node has."""

CPUS_LEFT = 2
"""Reading ahead needs one, and Ray Data stalls where actors take all."""

USERS_AN_ACTOR = 5_000
"""At least, without GPUs: fewer are scored before one more actor has started."""

READS_AN_ACTOR = 2
"""Buckets read at once for each actor."""

GRACE_S = 5.0
"""For actors to end by themselves, their last counts among what they do."""

MOST_RESTARTS = 30
"""Of an actor, whatever kills it."""

DIED = "the process that scored it died, as for lack of memory"


def score_buckets(job: ScoreJob, buckets: range, num_actors: int | None) -> int:
    """Score the buckets that have no completion record yet; return how many that were.

    Raises:
        StorageError: the store cannot be used.
        CrossrecError: buckets failed again and again; all others are done.
    """
    missing = left = _missing(job, buckets)
    progress = Progress(len(missing), len(job.domains))
    failed: dict[int, str] = {}
    for number in range(1 + RETRIES):
        if not left:
            break
        if number:
            log.warning("score: %s buckets went with the process that had them; again", len(left))
        with ended_actors() as names:
            outcomes = _stream(job, left, num_actors, names, one_by_one=number > 0)
            failed |= _score(outcomes, progress)
        # Of a bucket whose process or node died nothing is told.
        left = [bucket for bucket in _missing(job, buckets) if bucket not in failed]
    failed |= dict.fromkeys(left, DIED)
    if failed:
        said = (f"{bucket_name(bucket)} ({failed[bucket]})" for bucket in sorted(failed)[:5])
        found = f"{len(failed)} that failed: {'; '.join(said)}"
        mend = "all others are done: mend the cause, and the same command does these"
        raise CrossrecError(explain(job.store.uri(job.done), "all buckets", found, mend))
    return len(missing)


def _score(outcomes: ray.data.Dataset, progress: Progress) -> dict[int, str]:
    """Score what streams; return what was wrong with buckets that failed."""
    failed = {}
    for row in outcomes.iter_rows():
        if row["of_store"]:
            raise StorageError(row["failed"])
        if row["failed"]:
            failed[row["bucket"]] = row["failed"]
            log.warning("score: %s failed: %s", bucket_name(row["bucket"]), row["failed"])
        progress.add(row["users"])
    return failed


@contextlib.contextmanager
def ended_actors() -> Iterator[list[str]]:
    """Yield a list for the names of actors, and see to it that those are gone afterwards.

    Of an actor that is being restarted when its stream ends Ray 2.60 lets go no more: it comes up,
    keeps its CPUs or its GPU, and what is to run next waits for ever.
    """
    names: list[str] = []
    try:
        yield names
    finally:
        left, until = names, time.monotonic() + GRACE_S
        while left := [name for name in left if _find_actor(name) is not None]:
            if time.monotonic() > until:
                for actor in map(_find_actor, left):
                    if actor is not None:
                        ray.kill(actor)
                break
            time.sleep(GRACE_S / 20)


def _find_actor(name: str) -> ray.actor.ActorHandle[Any] | None:
    try:
        return ray.get_actor(name)
    except ValueError:
        return None


def _missing(job: ScoreJob, buckets: range) -> list[int]:
    records = set(job.store.list(job.done))
    return [
        bucket for bucket in buckets if job.record_path(bucket).rsplit("/", 1)[1] not in records
    ]


def _stream(
    job: ScoreJob, missing: list[int], num_actors: int | None, names: list[str], one_by_one: bool
) -> ray.data.Dataset:
    """Return what comes of each bucket, bucket.OUTCOME, lazily.

    Args:
        job: what is done with a bucket.
        missing: the buckets.
        num_actors: at most; None: one a GPU or, as much of the work is done by one thread, a CPU.
        names: gets those of the actors, when they are started.
        one_by_one: no bucket waits in an actor, where another may take it along.
    """
    cpus, gpus = count_cpus_and_gpus()
    room, largest = max(1, cpus - CPUS_LEFT), largest_node_cpus(with_gpu=gpus > 0)
    # By the cluster alone, not by what is missing: a rerun has the same threads, so the same sums.
    threads = max(1, min(room // (num_actors or gpus or room), CPUS_AN_ACTOR, largest))
    actors = num_actors or gpus or _actors_for(job, len(missing), room)
    actors = min(actors, len(missing))

    def name_actor() -> dict[str, str]:
        names.append(f"crossrec-score-{uuid.uuid4().hex}")
        return {"name": names[-1]}

    rows = [{"bucket": bucket} for bucket in missing]
    waiting = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        ReadBucket(job.store, job.prepared, job.traits),
        # Waits for storage more than it computes, and must find room where a lost node leaves the
        # actors all CPUs that there are.
        num_cpus=0,
        compute=TaskPoolStrategy(size=READS_AN_ACTOR * actors),
    )
    with warnings.catch_warnings():
        # Ray 2.60 has no other way to say that an actor is not to be restarted for ever, nor to
        # name one.
        warnings.filterwarnings("ignore", "`ray_remote_args(_fn)?` is deprecated")
        done = waiting.map_batches(
            ScoreBucket,
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(
                size=actors, max_tasks_in_flight_per_actor=1 if one_by_one else None
            ),
            fn_constructor_args=(job,),
            num_cpus=threads,
            num_gpus=1 if gpus else 0,
            max_restarts=min(len(missing), MOST_RESTARTS),
            max_task_retries=0,
            ray_remote_args_fn=name_actor,
        )
    # Of a bucket that kills its actor Ray Data makes an error of the whole stream.
    done.context.max_errored_blocks = len(missing)
    return done


def _actors_for(job: ScoreJob, missing: int, room: int) -> int:
    users = job.prepared.users * missing // job.prepared.buckets
    return max(1, min(users // USERS_AN_ACTOR, room))


class ReadBucket:
    """Ray Data task: reads one bucket for an actor whose unit of work it is."""

    def __init__(self, store: Store, prepared: Prepared, traits: str | None) -> None:
        self.store = store
        self.prepared = prepared
        self.traits = traits

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the bucket's number, its histories as an Arrow stream, or why it has none."""
        began = time.perf_counter()
        bucket = int(row["bucket"])
        data, failure = attempt(lambda: self._read(bucket))
        give_back()
        Counters().count(read=time.perf_counter() - began)
        return {
            "bucket": bucket,
            "histories": data or b"",
            "failed": failure.said if failure else "",
            "of_store": failure is not None and failure.of_store,
        }

    def _read(self, bucket: int) -> bytes:
        table = read_histories(self.store, self.prepared, bucket)
        table = with_traits(self.store, self.traits, bucket, table)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        data: bytes = sink.getvalue().to_pybytes()
        return data
