"""Runs that tests publish: 2 buckets x 2 domains x 3 users, as prepare and score leave them.

folder = write_run(store, "r1")           # runs/r1, beside the model and the prepared folder
change_lists(store, folder, lambda table: table.slice(1))
"""

import hashlib
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from crossrec import schema
from crossrec.config import Config
from crossrec.data.hashing import buckets_of
from crossrec.data.histories import FORMAT, catalogue_path, histories_path
from crossrec.publish import publish
from crossrec.storage import Store, encode_parquet

DOMAINS = ["a/b", "shop"]
BUCKETS = 2
USERS = 3
"""Users of each bucket."""

TOP_K = 2
ITEMS = ["i1", "i2", "i3", "i4"]
"""Of each domain."""

SEEN = [2, len(ITEMS) + 3]
"""Rows that every user has seen: i3 of the first domain, i4 of the second."""


def bucket_user_ids(bucket: int) -> list[str]:
    """Return the users that hash to a bucket, sorted."""
    everyone = [f"user {number}" for number in range(20 * USERS)]
    homes = buckets_of(pa.array(everyone, pa.large_string()), BUCKETS)
    here = [user for user, home in zip(everyone, homes, strict=True) if home == bucket]
    return sorted(here[:USERS])


def config_of(store: Store, run_id: str, keep_runs: int = 7) -> Config:
    return Config.model_validate(
        {
            "run_id": run_id,
            "storage": {"root": store.root},
            "publish": {"keep_runs": keep_runs},
        }
    )


def write_prepared(store: Store, folder: str) -> None:
    """Write what prepare leaves of the users, their histories and the items."""
    summary = {
        "format": FORMAT,
        "digest": folder.rsplit("/", 1)[-1],
        "buckets": BUCKETS,
        "users": BUCKETS * USERS,
        "events": BUCKETS * USERS * len(SEEN),
        "items": len(DOMAINS) * len(ITEMS),
        "as_of_us": 1_700_000_000_000_000,
        "values": [],
        "images": None,
        "domains": [
            {"name": name, "start": n * len(ITEMS), "stop": (n + 1) * len(ITEMS), "events": 3}
            for n, name in enumerate(DOMAINS)
        ],
    }
    for domain in DOMAINS:
        store.write_parquet(catalogue_path(folder, domain), pa.table({"item_id": ITEMS}))
    for bucket in range(BUCKETS):
        rows, times = [SEEN] * USERS, [[1, 2]] * USERS
        columns = {"user_id": bucket_user_ids(bucket), "rows": rows, "timestamps": times}
        store.write_parquet(
            histories_path(folder, bucket), pa.table(columns, schema=schema.HISTORIES)
        )
    store.write_json(f"{folder}/summary.json", summary)


def write_run(store: Store, run_id: str, model: str = "m1", prepared: str = "prepared/p1") -> str:
    """Write a run as score leaves it, with its model and prepared folder."""
    folder = f"runs/{run_id}"
    store.write_json(f"models/{model}/config.json", {})
    write_prepared(store, prepared)
    plan = {
        "run_id": run_id,
        "model": model,
        "model_sha256": "ab" * 32,
        "prepared": prepared,
        "buckets": BUCKETS,
        "domains": DOMAINS,
        "top_k": TOP_K,
        "digest": f"plan of {run_id}",
    }
    store.write_json(f"{folder}/plan.json", plan)
    for domain in DOMAINS:
        path = f"{folder}/candidates/{schema.domain_folder(domain)}.parquet"
        store.write_parquet(path, pa.table({"allowed": [True] * len(ITEMS)}))
    store.write_json(f"{folder}/candidates/rules.json", {"max_per": {}})
    for bucket in range(BUCKETS):
        files = []
        for domain in DOMAINS:
            table = pa.table(
                {
                    "user_id": bucket_user_ids(bucket),
                    "item_ids": [["i1", "i2"]] * USERS,
                    "scores": [[2.0, 1.0]] * USERS,
                },
                schema=schema.SCORES,
            )
            name = f"{schema.bucket_name(bucket)}.abc.parquet"
            path = f"{folder}/scores/{schema.domain_folder(domain)}/{name}"
            files.append(write_lists(store, path, table))
        done = {"bucket": bucket, "users": USERS, "seconds": 0.1, "files": files}
        store.write_json(f"{folder}/done/{schema.bucket_name(bucket)}.json", done)
    defaults = pa.table(
        {"domain": DOMAINS, "item_ids": [["i1"]] * 2, "scores": [[1.0]] * 2},
        schema=schema.DEFAULTS,
    )
    store.write_parquet(f"{folder}/defaults.parquet", defaults)
    return folder


def write_lists(store: Store, path: str, table: pa.Table) -> dict[str, Any]:
    """Write a file of lists; return what the bucket's record says of it."""
    data = encode_parquet(table)
    store.write_bytes(path, data)
    digest = hashlib.sha256(data).hexdigest()
    return {"path": path, "rows": table.num_rows, "bytes": len(data), "sha256": digest}


def publish_run(store: Store, run_id: str, keep_runs: int = 7, **made_from: str) -> dict[str, Any]:
    write_run(store, run_id, **made_from)
    return publish(config_of(store, run_id, keep_runs), store)


def scores_file(folder: str, bucket: int, domain: str) -> str:
    return f"{folder}/scores/{schema.domain_folder(domain)}/bucket-{bucket:05d}.abc.parquet"


def change_record(store: Store, folder: str, change: Callable[[dict[str, Any]], None]) -> None:
    path = f"{folder}/done/bucket-00000.json"
    done = store.read_json(path)
    change(done)
    store.write_json(path, done)


def change_lists(
    store: Store, folder: str, change: Callable[[pa.Table], pa.Table], domain: str = "shop"
) -> None:
    """Change the lists of bucket 0 in a domain, and the record with them."""
    path = scores_file(folder, 0, domain)
    record = write_lists(store, path, change(store.read_parquet(path)))

    def replace(done: dict[str, Any]) -> None:
        done["files"] = [record if file["path"] == path else file for file in done["files"]]

    change_record(store, folder, replace)
