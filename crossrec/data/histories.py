"""Histories: the events of each user in the order of time, kept in buckets of whole users.

What prepare wrote is read back here by every later stage:

    prepared = open_prepared(store, "prepared/3f2a...")
    for bucket in range(prepared.buckets):
        table = read_histories(store, prepared, bucket)      # schema.HISTORIES
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from crossrec.data.view import View, view_activity, view_histories
from crossrec.errors import InputError, explain
from crossrec.schema import CATALOGUE, ITEM_ID, bucket_name, domain_folder, histories_schema
from crossrec.storage import Store

FORMAT = 4
"""Of the prepared folder; a change of what it holds, or of the hash, is a new number."""

SUMMARY = "summary.json"


@dataclass(frozen=True)
class DomainRange:
    """A domain's catalogue rows start..stop-1, and how many accepted events it has."""

    name: str
    start: int
    stop: int
    events: int


@dataclass(frozen=True)
class Prepared:
    """A finished prepared folder, or a view of it; domains are in catalogue order.

    values: of schema.EVENT_VALUES, those that its events carry. with_images: whether it has the
    images of its items. with_relations: whether it has pairs of `data.relations`.
    """

    folder: str
    digest: str
    domains: tuple[DomainRange, ...]
    buckets: int
    users: int
    events: int
    items: int
    as_of_us: int
    view: View | None = None
    values: tuple[str, ...] = ()
    with_images: bool = False
    with_relations: bool = False

    def only(self, domain: DomainRange) -> "Prepared":
        """Return the input as if it had one domain alone: all users, its items, its events."""
        alone = replace(domain, start=0, stop=domain.stop - domain.start)
        left_out = self.view.without_newest if self.view else 0
        view = View(domain.start, domain.stop, left_out)
        return replace(self, domains=(alone,), events=domain.events, items=alone.stop, view=view)

    @property
    def leaves_one_out(self) -> bool:
        """Whether users' newest events are left out, for leave-one-out."""
        return self.view is not None and self.view.without_newest > 0

    def without_newest(self) -> "Prepared":
        """Return the input without each user's newest event of those shown, for leave-one-out."""
        shown = self.view or View(0, self.items)
        return replace(self, view=replace(shown, without_newest=shown.without_newest + 1))


def open_prepared(store: Store, folder: str) -> Prepared:
    """Read what a prepared folder holds.

    Raises:
        StorageError: the folder is not there or not finished.
        InputError: another version of crossrec wrote it.
    """
    summary = store.read_json(f"{folder}/{SUMMARY}")
    if summary["format"] != FORMAT:
        where, found = store.uri(f"{folder}/{SUMMARY}"), f"format {summary['format']}"
        raise InputError(explain(where, f"format {FORMAT}", found, "run the stage prepare again"))
    domains = tuple(
        DomainRange(entry["name"], entry["start"], entry["stop"], entry["events"])
        for entry in summary["domains"]
    )
    counts = {name: summary[name] for name in ("buckets", "users", "events", "items", "as_of_us")}
    return Prepared(
        folder,
        summary["digest"],
        domains,
        **counts,
        values=tuple(summary["values"]),
        with_images=summary["images"] is not None,
        with_relations="relations" in summary,
    )


def read_histories(store: Store, prepared: Prepared, bucket: int) -> pa.Table:
    """Return a bucket's users with their histories, `histories_schema(prepared.values)`.

    Raises:
        InputError: there is no such bucket.
    """
    if not 0 <= bucket < prepared.buckets:
        expected = f"a bucket from 0 to {prepared.buckets - 1}"
        where = store.uri(prepared.folder)
        raise InputError(explain(where, expected, str(bucket), "ask for one that exists"))
    whole = store.read_parquet(histories_path(prepared.folder, bucket))
    whole = whole.cast(histories_schema(prepared.values))
    return whole if prepared.view is None else view_histories(prepared.view, whole)


def read_activity(store: Store, prepared: Prepared, bucket: int) -> pa.Table:
    """Return what each item had on each day from a bucket's users, schema.ACTIVITY."""
    if prepared.view is None:
        return store.read_parquet(activity_path(prepared.folder, bucket))
    return view_activity(read_histories(store, prepared, bucket))


def read_catalogue(
    store: Store, prepared: Prepared, domain: str, columns: Sequence[str] = tuple(CATALOGUE.names)
) -> pa.Table:
    """Return the items of a domain in the order of their rows, columns of schema.CATALOGUE.

    Raises:
        InputError: the catalogue has no such domain.
    """
    names = [entry.name for entry in prepared.domains]
    if domain not in names:
        expected = f"one of the domains {', '.join(map(repr, names))}"
        where = store.uri(prepared.folder)
        raise InputError(explain(where, expected, repr(domain), "ask for one that exists"))
    table = store.read_parquet(catalogue_path(prepared.folder, domain), columns)
    return table.cast(pa.schema([CATALOGUE.field(name) for name in columns]))


def read_item_ids(store: Store, prepared: Prepared, domain: str) -> pa.StringArray:
    """Return the ids of a domain's items in the order of their rows."""
    return read_catalogue(store, prepared, domain, [ITEM_ID])[ITEM_ID].combine_chunks()


def histories_path(folder: str, bucket: int) -> str:
    """Return where a bucket's histories are."""
    return f"{folder}/histories/{bucket_name(bucket)}.parquet"


def activity_path(folder: str, bucket: int) -> str:
    """Return where the activity of a bucket's events is."""
    return f"{folder}/activity/{bucket_name(bucket)}.parquet"


def catalogue_path(folder: str, domain: str) -> str:
    """Return where a domain's items are."""
    return f"{folder}/catalogue/{domain_folder(domain)}/items.parquet"
