"""Domains that events name and the catalogue lacks: a fault, or a domain that is no more.

A domain is retired once the catalogue has no item of it and a week has passed without an event of
it: what it left in the events is no fault, and stops no night. As long as such events come in, the
catalogue may have lost what it should have, and they count as rejects.

    found = find_strangers(domains, times)            # {"books": Stranger(12, newest_us)}
    retired_events(found, as_of_us)                   # rows that count no more
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pyarrow as pa

from crossrec.data.hashing import Array
from crossrec.schema import DOMAIN, TIMESTAMP, US_PER_DAY

UNKNOWN_DOMAIN = "unknown domain"
RETIRED_DOMAIN = "retired domain"
"""Reasons; a row of either is kept as the former, which alone is known when the row is read."""

RETIRED_AFTER_DAYS = 7

MOST_DOMAINS = 1_000
"""That are told apart, those with most events: ids in the wrong column shall fill no memory."""


@dataclass(frozen=True)
class Stranger:
    """The events of a domain that the catalogue lacks, and when the newest of them was."""

    events: int
    newest_us: int

    def __add__(self, other: "Stranger") -> "Stranger":
        return Stranger(self.events + other.events, max(self.newest_us, other.newest_us))

    def is_retired(self, as_of_us: int) -> bool:
        """Whether it is no more, rather than lost."""
        return self.newest_us < as_of_us - RETIRED_AFTER_DAYS * US_PER_DAY


Strangers = Mapping[str, Stranger]


def find_strangers(domains: pa.LargeStringArray, times: Array) -> dict[str, Stranger]:
    """Return the domains of events, by name; times (N,) int64 in microseconds."""
    named = pa.table({DOMAIN: domains, TIMESTAMP: times}).group_by(DOMAIN)
    found = named.aggregate([(TIMESTAMP, "count"), (TIMESTAMP, "max")])
    return _most(
        {
            entry[DOMAIN]: Stranger(entry[f"{TIMESTAMP}_count"], entry[f"{TIMESTAMP}_max"])
            for entry in found.to_pylist()
        }
    )


def add_up(parts: Iterable[Strangers]) -> dict[str, Stranger]:
    """Return what several parts of the events have together."""
    total: dict[str, Stranger] = {}
    for part in parts:
        for name, found in part.items():
            total[name] = total[name] + found if name in total else found
        total = _most(total)
    return total


def retired_events(strangers: Strangers, as_of_us: int) -> int:
    """Return how many events are of retired domains."""
    return sum(found.events for found in strangers.values() if found.is_retired(as_of_us))


def _most(strangers: dict[str, Stranger]) -> dict[str, Stranger]:
    by_events = sorted(strangers.items(), key=lambda pair: (-pair[1].events, pair[0]))
    return dict(by_events[:MOST_DOMAINS])
