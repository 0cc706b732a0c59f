"""Reading what is published, through the manifest: folders are never listed.

    import crossrec
    for batch in crossrec.read_scores("s3://recs/nightly", domain="shop", user_ids=["ada"]): ...

In: the root of the store. Out: Arrow, batch by batch: user_id, domain, item_ids, scores, and
because where lists have reasons (`score.explain`). Needs neither Ray nor torch.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from crossrec.current import CURRENT, read_current
from crossrec.data.hashing import buckets_of
from crossrec.errors import InputError, StorageError, explain
from crossrec.schema import DOMAIN, SCORES, USER_ID, scores_schema
from crossrec.storage import Store
from crossrec.storage_errors import MissingObject

COLUMNS = (USER_ID, DOMAIN, "item_ids", "scores")

ROWS_A_BATCH = 8_192
BATCHES_AHEAD = 4
FILES_AHEAD = 2
"""What is read ahead, which bounds the memory: some 4 MB a batch of lists of 50."""

LOOKS = 3
"""Times that current.json is looked at, where it is switched between it and its manifest, which may
be gone then."""


@dataclass(frozen=True)
class Publication:
    """What readers follow: `version` is the sha256 of the manifest, which names all files."""

    version: str
    manifest: dict[str, Any]


def read_publication(store: Store) -> Publication:
    """Return the publication that current.json names.

    Raises:
        StorageError: there is none, or its manifest is not what was published.
    """
    path = found = "none"
    for _ in range(LOOKS):
        current = read_current(store)
        if current is None:
            mend = "check the root, or run publish"
            raise StorageError(explain(store.uri(CURRENT), "a publication", "none", mend))
        path = current["manifest"]
        try:
            data = store.read_bytes(path)
        except MissingObject:
            found = "none"
            continue
        version = hashlib.sha256(data).hexdigest()
        if version == current.get("sha256", version):
            return Publication(version, json.loads(data))
        found = f"sha256 {version}"
    mend = "publish the run again"
    raise StorageError(explain(store.uri(path), "the manifest that was published", found, mend))


def read_scores(
    root: str,
    *,
    domain: str | None = None,
    user_ids: Iterable[str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> pa.RecordBatchReader:
    """Return the published lists, read as they are asked for; best item first.

    Args:
        root: `storage.root` of the nights; a folder or any fsspec URI.
        domain: only its lists; default: of all domains.
        user_ids: only theirs, for which no other files are opened than those of the buckets that
            they hash to. Who is not known has no row: `defaults.parquet` has a list for them.
        options: of the fsspec filesystem, as in `storage.options`.

    Returns:
        Columns `user_id`, `domain`, `item_ids`, `scores`, and `because` where lists have reasons
        (schema.REASON), in the order of files. What is read is the publication of the moment of
        the call; it stays for `publish.keep_runs` nights.

    Raises:
        InputError: there is no such domain.
        StorageError: nothing is published there.
    """
    store = Store(root, options or {})
    manifest = read_publication(store).manifest
    if domain is not None and domain not in manifest["domains"]:
        known = ", ".join(map(repr, manifest["domains"]))
        found, mend = repr(domain), "ask for one that is published"
        raise InputError(explain(store.uri(), f"one of the domains {known}", found, mend))
    files = [file for file in manifest["files"] if domain in (None, file["domain"])]
    wanted = None
    if user_ids is not None:
        users = pa.array(user_ids, pa.large_string())
        wanted = ds.field(USER_ID).isin(users.cast(pa.string()))
        if "buckets" in manifest:
            homes = set(np.unique(buckets_of(users, manifest["buckets"])).tolist())
            files = [file for file in files if file["bucket"] in homes]
    schema = scores_schema(manifest.get("explain", 0))
    dataset = ds.FileSystemDataset.from_paths(
        [store.full_path(file["path"]) for file in files],
        schema=schema.append(pa.field(DOMAIN, pa.string())),
        format=ds.ParquetFileFormat(),
        filesystem=store.arrow_filesystem,
        partitions=[ds.field(DOMAIN) == file["domain"] for file in files],
    )
    scanner = dataset.scanner(
        columns=[*COLUMNS, *schema.names[len(SCORES) :]],
        filter=wanted,
        batch_size=ROWS_A_BATCH,
        batch_readahead=BATCHES_AHEAD,
        fragment_readahead=FILES_AHEAD,
    )
    return scanner.to_reader()
