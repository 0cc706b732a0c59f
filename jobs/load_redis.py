"""Load what is published into Redis and switch serving to it, at one moment for all users.

python jobs/load_redis.py STORAGE_ROOT redis://HOST:6379/0 [--prefix crossrec] [--domain shop ...]

An example of a consumer; needs crossrec[redis]. With PREFIX crossrec, a server asks for

    version = GET crossrec:current
    MGET crossrec:<version>:<domain>:<user>  crossrec:<version>:<domain>

and takes the first that is there: a JSON array of item ids, best first; the second is the domain's
list for unknown users. Domains are URL-encoded.

The new version is loaded beside the one that serves (so Redis holds two for a while), then
`current` is set, then, after --grace seconds in which servers finish what they began, the old one
is removed. A load that dies is continued by the same command, file by file. Redis itself looks
(WATCH) that a version is whole when it is switched to and that none is removed which serves. Not
for Redis Cluster, where a transaction cannot span keys of several slots.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

import pyarrow as pa

from crossrec.errors import CrossrecError, UserError, explain
from crossrec.readers import Publication, read_publication
from crossrec.runlog import log, print_summary, stage, start_logging
from crossrec.schema import DOMAIN, USER_ID
from crossrec.storage import Store

if TYPE_CHECKING:
    from redis import Redis

LISTS_A_TRIP = 2_000
"""Lists sent together by one MSET, about a megabyte: Redis answers nobody for a millisecond."""


def load(
    store: Store, redis: "Redis", prefix: str, domains: list[str] | None, grace_s: float
) -> dict[str, Any]:
    """Load the current publication, switch to it, remove the others; return counts.

    Raises:
        UserError: there is no publication, or a domain is not in it.
        CrossrecError: another load came in between; the same command does what is left.
    """
    with stage("load_redis") as facts:
        publication = read_publication(store)
        files = _files(store, publication, domains)
        version = publication.version[:16]
        redis.sadd(f"{prefix}:versions", version)
        done = {name.decode() for name in cast(set[bytes], redis.smembers(_done(prefix, version)))}
        missing = [file for file in files if file["path"] not in done]
        facts |= {"version": version, "files": len(files), "loaded_files": len(missing), "rows": 0}
        for count, file in enumerate(missing, 1):
            facts["rows"] += _load_file(store, redis, f"{prefix}:{version}", file)
            # After its lists: what is in this set is there.
            redis.sadd(_done(prefix, version), file["path"])
            if count % max(1, len(missing) // 10) == 0:
                log.info("load_redis: %s of %s files", count, len(missing))
        if read_publication(store).version != publication.version:
            mend = "the same command loads that one"
            found = "another, published meanwhile"
            raise CrossrecError(explain(store.uri(), "the publication loaded", found, mend))
        facts["switched"] = _switch(redis, prefix, version, {file["path"] for file in files})
        if facts["switched"]:
            time.sleep(grace_s)
        facts["removed"] = _remove_others(redis, prefix, version)
    return facts


def _done(prefix: str, version: str) -> str:
    return f"{prefix}:done:{version}"


def _files(
    store: Store, publication: Publication, domains: list[str] | None
) -> list[dict[str, Any]]:
    """Return the files to load, that of unknown users last."""
    known = publication.manifest["domains"]
    unknown = sorted(set(domains or ()) - set(known))
    if unknown:
        where, mend = store.uri(), "ask for some that are published"
        raise UserError(explain(where, f"some of the domains {known}", str(unknown), mend))
    files = publication.manifest["files"]
    chosen = [file for file in files if domains is None or file["domain"] in domains]
    return [*chosen, publication.manifest["defaults"]]


def _load_file(store: Store, redis: "Redis", start: str, file: dict[str, Any]) -> int:
    """Send a file's lists; return how many. A list that is there already is the same."""
    whose = USER_ID if "domain" in file else DOMAIN
    table = store.read_parquet(file["path"], [whose, "item_ids"])
    for lists in _parts(table, start, file.get("domain")):
        redis.mset(cast(Any, lists))
    return int(table.num_rows)


def _parts(table: pa.Table, start: str, domain: str | None) -> Iterator[dict[str, str]]:
    """Give keys and values a few at a time; without a domain, those of defaults.parquet."""
    for batch in table.to_batches(max_chunksize=LISTS_A_TRIP):
        whose = batch.column(0).to_pylist()
        if domain is None:
            keys = [f"{start}:{quote(name, safe='')}" for name in whose]
        else:
            keys = [f"{start}:{quote(domain, safe='')}:{user}" for user in whose]
        lists = batch.column("item_ids").to_pylist()
        yield {
            key: json.dumps(items, ensure_ascii=False, separators=(",", ":"))
            for key, items in zip(keys, lists, strict=True)
        }


def _switch(redis: "Redis", prefix: str, version: str, paths: set[str]) -> bool:
    """Let servers follow a version that is whole; return whether they did not before.

    Raises:
        CrossrecError: it is not whole, because another load removed it.
    """

    def switch(pipeline: Any) -> Any:
        done = {name.decode() for name in pipeline.smembers(_done(prefix, version))}
        if not paths <= done:
            found, mend = f"{len(done)}", "the same command loads what is missing"
            raise CrossrecError(explain(f"redis {prefix}", f"{len(paths)} files", found, mend))
        before = pipeline.get(f"{prefix}:current")
        pipeline.multi()
        pipeline.set(f"{prefix}:current", version)
        return bool(before != version.encode())

    watched = _done(prefix, version), f"{prefix}:current"
    return bool(redis.transaction(switch, *watched, value_from_callable=True))


def _remove_others(redis: "Redis", prefix: str, version: str) -> list[str]:
    """Remove all versions but one while that one serves; return them."""
    removed: list[str] = []

    def forget(pipeline: Any) -> Any:
        if pipeline.get(f"{prefix}:current") != version.encode():
            pipeline.multi()
            return []
        known = sorted(name.decode() for name in pipeline.smembers(f"{prefix}:versions"))
        others = [name for name in known if name != version]
        pipeline.multi()
        for other in others:
            # First, so that who loads it finds out before switching to it.
            pipeline.delete(_done(prefix, other))
        return others

    watched = f"{prefix}:current"
    for other in cast(list[str], redis.transaction(forget, watched, value_from_callable=True)):
        keys: list[bytes] = []
        for key in redis.scan_iter(match=f"{prefix}:{other}:*", count=LISTS_A_TRIP):
            keys.append(key)
            if len(keys) == LISTS_A_TRIP:
                redis.unlink(*keys)
                keys.clear()
        if keys:
            redis.unlink(*keys)
        redis.srem(f"{prefix}:versions", other)
        removed.append(other)
    return removed


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", metavar="STORAGE_ROOT", help="storage.root of the nights")
    parser.add_argument("redis", metavar="REDIS_URL", help="redis://[user:password@]host:port/db")
    parser.add_argument("--prefix", default="crossrec", help="of all keys")
    parser.add_argument("--domain", action="append", help="only this one; may be repeated")
    parser.add_argument("--grace", type=float, default=5.0, help="seconds the old version stays")
    return parser.parse_args()


def main() -> int:
    """Run the job: 0 done, 1 failed (run it again), 2 the user's mistake."""
    arguments = _parse()
    start_logging()
    try:
        import redis
    except ImportError:
        log.error("%s", explain("redis", "the client", "none", "pip install 'crossrec[redis]'"))
        return 2
    try:
        with redis.Redis.from_url(arguments.redis) as client:
            facts = load(
                Store(arguments.root),
                client,
                arguments.prefix,
                arguments.domain,
                arguments.grace,
            )
    except UserError as error:
        log.error("%s", error)
        return 2
    except (CrossrecError, redis.RedisError, OSError) as error:
        log.error("%s: %s; the same command continues", type(error).__name__, error)
        return 1
    print_summary(facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
