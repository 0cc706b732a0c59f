"""A prepared input small enough to judge by hand.

prepared = write_prepared(store, {"film": ["f0", "f1"]}, [{"anna": [(0, 3), (1, 12)]}])
"""

from collections.abc import Mapping, Sequence

import pyarrow as pa

from crossrec.data.histories import (
    DomainRange,
    Prepared,
    activity_path,
    catalogue_path,
    histories_path,
)
from crossrec.schema import ACTIVITY, CATALOGUE, HISTORIES, US_PER_DAY
from crossrec.storage import Store
from tests.small import Event

Buckets = Sequence[Mapping[str, Sequence[Event]]]
"""Users of each bucket with their events (catalogue row, day), oldest first."""


def write_prepared(
    store: Store, items: Mapping[str, Sequence[str]], buckets: Buckets, folder: str = "prepared"
) -> Prepared:
    """Write what prepare would have left."""
    domains = []
    start = 0
    for domain, ids in items.items():
        rows = [{"domain": domain, "item_id": item, "text": ""} for item in ids]
        store.write_parquet(catalogue_path(folder, domain), pa.Table.from_pylist(rows, CATALOGUE))
        domains.append(DomainRange(domain, start, start + len(ids), 0))
        start += len(ids)
    for number, users in enumerate(buckets):
        histories = [
            {
                "user_id": user,
                "rows": [row for row, _ in events],
                "timestamps": [day * US_PER_DAY + 5 for _, day in events],
            }
            for user, events in users.items()
        ]
        table = pa.Table.from_pylist(histories, HISTORIES)
        store.write_parquet(histories_path(folder, number), table)
        events = sorted(event for history in users.values() for event in history)
        activity = [{"row": row, "day": day, "events": 1} for row, day in events]
        table = pa.Table.from_pylist(activity, ACTIVITY)
        store.write_parquet(activity_path(folder, number), table)
    everything = [event for users in buckets for events in users.values() for event in events]
    return Prepared(
        folder,
        "digest",
        tuple(domains),
        buckets=len(buckets),
        users=sum(map(len, buckets)),
        events=len(everything),
        items=start,
        as_of_us=max(day for _, day in everything) * US_PER_DAY,
    )
