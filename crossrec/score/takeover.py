"""An incremental night: whose history is new, and the lists of all others as they were.

    earlier = Earlier("2014-06-07", prepared_of_that_run)
    places = same_histories(before, now)                # (U,): row in `before`, -1 where it is new
    table = take_over(lists_before, new_lists, places)

Lists depend on a user's history, on the traits that rules look at, and on what the last full night
pinned, so that those of a user of whom both are unchanged are those that they would get again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crossrec.data.histories import Prepared, read_histories
from crossrec.data.replay import Histories, flatten
from crossrec.data.traits import with_traits
from crossrec.schema import bucket_name
from crossrec.storage import Store

Array = np.ndarray


@dataclass(frozen=True)
class Earlier:
    """The publication whose lists are taken over, and the input that they were made from.

    traits: folder of its users' traits; None where no rule looks at them.
    """

    run: str
    prepared: Prepared
    traits: str | None = None

    def histories(self, store: Store, bucket: int) -> Histories:
        """Return what a bucket's users had done by then, with their traits."""
        table = read_histories(store, self.prepared, bucket)
        return flatten(with_traits(store, self.traits, bucket, table))

    def record(self, store: Store, bucket: int) -> Mapping[str, Any]:
        """Return the bucket's completion record, which names its files."""
        record: dict[str, Any] = store.read_json(f"runs/{self.run}/done/{bucket_name(bucket)}.json")
        return record


def same_histories(before: Histories, now: Histories) -> Array:
    """Return the row in `before` of each user of `now` with the same history and traits, else -1.

    Returns:
        (U,) int64.
    """
    places = pc.index_in(now.user_ids, value_set=before.user_ids).fill_null(-1).to_numpy()
    places = places.astype(np.int64)
    known = np.flatnonzero(places >= 0)
    known = known[before.lengths[places[known]] == now.lengths[known]]
    is_same = np.zeros(len(places), bool)
    is_same[known] = True
    owners = now.owners
    events = np.flatnonzero(is_same[owners])
    owners = owners[events]
    there = before.offsets[places[owners]] + events - now.offsets[owners]
    differs = (before.rows[there] != now.rows[events]) | (before.days[there] != now.days[events])
    for name, value in now.values.items():
        pair = before.values[name][there], value[events]
        differs |= (pair[0] != pair[1]) & ~(np.isnan(pair[0]) & np.isnan(pair[1]))
    is_same[owners[differs]] = False
    for name, trait in now.traits.items():
        was = before.traits[name].take(pa.array(places, mask=places < 0))
        equal = pc.equal(trait, was).fill_null(False).to_numpy(False)
        both_null = trait.is_null().to_numpy(False) & was.is_null().to_numpy(False)
        is_same &= equal | both_null
    return np.where(is_same, places, -1)


def take_over(before: pa.Table, new: pa.Table, places: Array) -> pa.Table:
    """Return one list a user: an earlier one where `places` says which, else the next new one.

    Args:
        before: lists of an earlier night, schema.scores_schema.
        new: the same of the users whose place is -1, in their order.
        places: (U,) rows of `before`, or -1.
    """
    rows = places.copy()
    rows[places < 0] = len(before) + np.arange(len(new))
    table = pa.concat_tables([before.cast(new.schema), new]).combine_chunks()
    return table.take(pa.array(rows)).combine_chunks()
