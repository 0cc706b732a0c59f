"""How scoring goes: counters for Prometheus, progress with rate and time left, buckets that fail.

    counters = Counters()
    counters.count(users=512, pairs=1536, compute=0.4, write=0.1)
    users, failure = attempt(lambda: score(bucket))      # failure: None, or what was wrong

Ray exports the counters on every node's metrics port as ray_crossrec_score_users_total,
ray_crossrec_score_pairs_total and ray_crossrec_score_seconds_total{phase="read|compute|write"}.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ray.util.metrics import Counter

from crossrec.errors import BadObject, StorageError
from crossrec.runlog import log

Result = TypeVar("Result")

RETRIES = 2
"""Times that an actor is restarted, and a bucket tried again, before the bucket fails."""

PROGRESS_S = 10.0


class Counters:
    """Counters of a process."""

    def __init__(self) -> None:
        self._users = Counter("crossrec_score_users", "Users whose lists were written.")
        self._pairs = Counter("crossrec_score_pairs", "Lists that were written.")
        self._seconds = Counter("crossrec_score_seconds", "Seconds by phase.", ("phase",))

    def count(self, users: int = 0, pairs: int = 0, **seconds: float) -> None:
        """Add users, pairs, and seconds by phase (read, compute, write)."""
        for counter, amount in ((self._users, users), (self._pairs, pairs)):
            if amount:
                counter.inc(amount)
        for phase, spent in seconds.items():
            if spent > 0:
                self._seconds.inc(spent, {"phase": phase})


@dataclass(frozen=True)
class Failure:
    """What was wrong with a bucket; `of_store`: the store cannot be used, for no bucket."""

    said: str
    of_store: bool


def attempt(work: Callable[[], Result]) -> tuple[Result | None, Failure | None]:
    """Do what one bucket needs, again where it fails; return its result, or what was wrong."""
    for _ in range(1 + RETRIES):
        try:
            return work(), None
        except StorageError as error:
            # Requests were tried again below. An object that is missing or damaged is one bucket's.
            if not isinstance(error, BadObject):
                return None, Failure(str(error), True)
            failure = Failure(str(error), False)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            failure = Failure(" ".join(said.split()), False)
    return None, failure


class Progress:
    """Says now and then how many of the buckets are done, how fast, and how long it will take."""

    def __init__(self, buckets: int, domains: int) -> None:
        self.buckets, self.domains = buckets, domains
        self.done = self.users = 0
        self.began = self.said = time.monotonic()

    def add(self, users: int) -> None:
        """Count a bucket."""
        self.done += 1
        self.users += users
        now = time.monotonic()
        if now - self.said < PROGRESS_S:
            return
        self.said = now
        left = (self.buckets - self.done) * (now - self.began) / self.done
        log.info(
            "score: %s of %s buckets, %s users, %s pairs/s, %s left",
            f"{self.done:,}",
            f"{self.buckets:,}",
            f"{self.users:,}",
            f"{self.users * self.domains / (now - self.began):,.0f}",
            f"{left:.0f} s" if left < 120 else f"{left / 60:.0f} min",
        )
