"""Written lists read back, by system and by domain.

files = files_of(job, buckets)                  # {"model": [path, ...], ...}
lists = read_lists(store, files["model"], ["shop", "video"])
"""

from collections.abc import Sequence

import pyarrow as pa

from crossrec.schema import DOMAIN, SCORES, USER_ID, domain_folder
from crossrec.score.bucket import ScoreJob
from crossrec.storage import Store


def files_of(job: ScoreJob, buckets: range) -> dict[str, list[str]]:
    """Return the paths of each system's lists, as the buckets' records name them."""
    records = [job.store.read_json(job.record_path(bucket)) for bucket in buckets]
    paths = [file["path"] for record in records for file in record["files"]]
    return {
        name: [path for path in paths if path.startswith(f"{folder}/{DOMAIN}=")]
        for name, folder in job.outputs.items()
    }


def read_lists(store: Store, paths: Sequence[str], domains: Sequence[str]) -> dict[str, pa.Table]:
    """Return the lists by domain, user_id and item_ids; the folder of a file names its domain."""
    columns = [USER_ID, "item_ids"]
    nothing = SCORES.empty_table().select(columns)
    lists = {}
    for domain in domains:
        inside = [path for path in paths if path.split("/")[-2] == domain_folder(domain)]
        tables = [store.read_parquet(path, columns) for path in inside]
        lists[domain] = pa.concat_tables([nothing, *tables])
    return lists


def with_domains(lists: dict[str, pa.Table]) -> pa.Table:
    """Return the lists of all domains as one table with the column of their domain."""
    return pa.concat_tables(
        table.append_column(DOMAIN, pa.array([domain] * table.num_rows, pa.string()))
        for domain, table in lists.items()
    )
