"""Completion records: which files a bucket has, as verification finds it written.

    done = read_record(store, "runs/2014-06-08/done/bucket-00000.json", "run score again")
    files_of_bucket(store, (folder, record), plan, bucket=0, done=done)

In: a record and the plan of its run. Out: what it says of the bucket's files, or what is wrong with
it.
"""

from typing import Any

from crossrec import schema
from crossrec.errors import CrossrecError, explain
from crossrec.storage import Store
from crossrec.storage_errors import MissingObject

RERUN = "delete the record {record} and run score again"


def read_record(store: Store, path: str, mend: str) -> Any:
    """Return what a JSON file of a run says; where there is none, say how to mend it."""
    try:
        return store.read_json(path)
    except MissingObject as error:
        raise CrossrecError(explain(store.uri(path), "a record", "none", mend)) from error


def files_of_bucket(
    store: Store, where: tuple[str, str], plan: dict[str, Any], bucket: int, done: Any
) -> list[dict[str, Any]]:
    """Return the files that a completion record names, each with its domain and its record.

    Args:
        store: where the record lies; for messages.
        where: folder of the run, path of the record.
        plan: the record must have one file of each of its domains, in this run or, of an
            incremental night, in any.
        bucket: number that the record must have.
        done: what the record says.
    """
    folder, record = where
    mend = RERUN.format(record=record)
    try:
        found = (int(done["bucket"]), int(done["users"]))
        paths = {str(file["path"]): file for file in done["files"]}
        facts = [
            (int(file["rows"]), int(file["bytes"]), str(file["sha256"])) for file in done["files"]
        ]
    except (TypeError, KeyError, ValueError) as error:
        expected = "bucket, users, and files with path, rows, bytes, sha256"
        raise CrossrecError(explain(store.uri(record), expected, repr(error), mend)) from error
    if found[0] != bucket:
        raise CrossrecError(explain(store.uri(record), f"bucket {bucket}", str(found[0]), mend))
    domains = plan["domains"]
    # Lists that an incremental night took over lie where they were made.
    homes = {path.split("/scores/")[0] for path in paths} if "full" in plan else {folder}
    folders = {(home, domain): schema.domain_folder(domain) for home in homes for domain in domains}
    domain_of = {f"{home}/scores/{name}": domain for (home, domain), name in folders.items()}
    of_paths = sorted(domain_of.get(path.rpartition("/")[0], f"none: {path}") for path in paths)
    if of_paths != sorted(domains):
        expected = f"one file of each of the domains {sorted(domains)}"
        raise CrossrecError(explain(store.uri(record), expected, str(of_paths), mend))
    if any(rows != found[1] for rows, *_ in facts):
        expected = f"{found[1]} rows, one a user, in every file"
        raise CrossrecError(explain(store.uri(record), expected, str([f[0] for f in facts]), mend))
    return [
        {**file, "domain": domain_of[path.rpartition("/")[0]], "bucket": bucket, "record": record}
        for path, file in paths.items()
    ]
