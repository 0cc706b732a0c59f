"""The S3 client behind storage.py: s3fs, held to what every S3-compatible store can do.

In: the options of s3fs (endpoint_url, key, secret, ...) and the standard AWS variables.
Out: an fsspec filesystem.

    filesystem = open_s3({"endpoint_url": "http://minio:9000"})
    filesystem.pipe_file("bucket/a*b", b"...")   # names are taken as they are, never as patterns

It is a module of its own so that s3fs (half a second to import) is loaded only where a root is on
S3.
"""

import asyncio
import errno
import os
from collections.abc import Mapping
from typing import Any

from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem

from crossrec.storage_errors import error_names

DELETES_AT_ONCE = 32
"""Parallel deletions: one request an object, because older stores want Content-MD5 for deleting
many at once, which botocore no longer sends (Swift answers 400)."""


ONE_PUT_BYTES = 5 * 2**30
"""The most that S3 takes in one PUT; a larger object goes up in parts and appears at the last."""

REPLY_LIMIT_S = 300
PROBE_LIMIT_S = 15
SLOWEST_BYTES_S = 2**20
"""A call ends within the limit, retries included, and a second for each MiB sent: aiohttp itself
waits forever for a server that takes the connection and never takes the body."""


SWAP_TRIES = 5
"""Times that a refused swap is tried again while the object still holds what it should."""

CHANGED = {"PreconditionFailed", "ConditionalRequestConflict"}
"""What stores answer where an object is not what a condition says, or is being written."""

UNKNOWN_CONDITION = {"NotImplemented", "InvalidArgument", "InvalidRequest", "501", "400"}
"""What stores answer that know no conditions for writing."""


class S3(S3FileSystem):  # type: ignore[misc]
    """s3fs without HEAD, multi-object deletion, patterns in names, and buckets made in passing.

    Swift answers HEAD on a missing object with a body, on which aiohttp fails (2 s of retries,
    then an error); a GET of one byte tells the same everywhere.
    """

    limit_s = REPLY_LIMIT_S

    async def _call_s3(self, method: str, *args: Any, **kwargs: Any) -> Any:
        limit_s = self.limit_s + len(kwargs.get("Body", b"")) // SLOWEST_BYTES_S
        try:
            return await asyncio.wait_for(super()._call_s3(method, *args, **kwargs), limit_s)
        except TimeoutError:
            raise TimeoutError(f"no reply to {method} within {limit_s} s") from None

    async def _info(
        self,
        path: str,
        bucket: str | None = None,
        key: str | None = None,
        refresh: bool = False,
        version_id: str | None = None,
    ) -> dict[str, Any]:
        bucket, key, _ = self.split_path(path)
        if not key:
            entry: dict[str, Any] = await super()._info(path, refresh=refresh)
            return entry
        name = f"{bucket}/{key}"
        try:
            reply = await self._call_s3("get_object", Bucket=bucket, Key=key, Range="bytes=0-0")
        except FileNotFoundError:
            prefix = key.rstrip("/") + "/"
            found = await self._call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=1)
            if not found.get("Contents"):
                raise FileNotFoundError(path) from None
            return {"name": name, "type": "directory", "size": 0, "StorageClass": "DIRECTORY"}
        except OSError as error:
            if "InvalidRange" not in error_names(error):
                raise
            # There is no first byte of an empty object.
            return {"name": name, "type": "file", "size": 0}
        size = reply["ContentLength"]
        if "ContentRange" in reply:
            size = int(reply["ContentRange"].rsplit("/", 1)[1])
            await reply["Body"].read()
        reply["Body"].close()
        kept = {key: reply[key] for key in ("ETag", "LastModified", "ContentType") if key in reply}
        return {"name": name, "type": "file", "size": size, **kept}

    async def _cat_file(
        self, path: str, *args: Any, max_concurrency: int = 1, **kwargs: Any
    ) -> bytes:
        # One request: s3fs would ask for the size first, to fetch large objects in parts.
        data: bytes = await super()._cat_file(
            path, *args, max_concurrency=max_concurrency, **kwargs
        )
        return data

    async def _pipe_file(self, path: str, data: bytes, **kwargs: Any) -> None:
        # s3fs sends up to two chunks in one PUT.
        await super()._pipe_file(path, data, **{"chunksize": ONE_PUT_BYTES // 2, **kwargs})

    async def _rm(self, path: str | list[str], recursive: bool = False, **kwargs: Any) -> None:
        paths = [path] if isinstance(path, str) else path
        names = [name for one in paths for name in (await self._find(one) if recursive else [one])]
        if not names:
            raise FileNotFoundError(path)
        gate = asyncio.Semaphore(DELETES_AT_ONCE)

        async def remove(name: str) -> None:
            async with gate:
                await self._rm_file(name)

        await asyncio.gather(*(remove(name) for name in names))

    async def _mkdir(self, path: str, *args: Any, **kwargs: Any) -> None:
        """Do nothing: S3 has no folders, and a bucket is made by its owner only."""

    mkdir = sync_wrapper(_mkdir)

    async def _knows_conditions(self, path: str) -> bool:
        """Whether the store refuses to replace an object that is there, or that has changed.

        Some answer 501, some take no notice of the condition: both are tried on a probe.
        """
        bucket, key, _ = self.split_path(path)
        await self._call_s3("put_object", Bucket=bucket, Key=key, Body=b"probe")
        try:
            for condition in ({"IfNoneMatch": "*"}, {"IfMatch": f'"{"0" * 32}"'}):
                try:
                    await self._call_s3(
                        "put_object", Bucket=bucket, Key=key, Body=b"again", **condition
                    )
                except OSError as error:
                    names = set(error_names(error))
                    if not CHANGED & names:
                        if UNKNOWN_CONDITION & names or error.errno == errno.ENOSYS:
                            return False
                        raise
                else:
                    return False
            return True
        finally:
            await self._rm_file(path)

    knows_conditions = sync_wrapper(_knows_conditions)

    async def _swap_file(self, path: str, old: bytes | None, new: bytes) -> bool:
        """Replace an object that holds `old` (None: is not there); return whether it now is `new`.

        Only on a store that knows conditions.
        """
        bucket, key, _ = self.split_path(path)
        for _ in range(SWAP_TRIES):
            found, tag = await self._read_tagged(bucket, key)
            if found != old:
                # A reply may have been lost, and the request repeated.
                return found == new
            condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
            try:
                await self._call_s3("put_object", Bucket=bucket, Key=key, Body=new, **condition)
                return True
            except FileNotFoundError:
                # The answer to If-Match where the object has gone.
                continue
            except OSError as error:
                if not CHANGED & set(error_names(error)):
                    raise
        return False

    swap_file = sync_wrapper(_swap_file)

    async def _read_tagged(self, bucket: str, key: str) -> tuple[bytes | None, str | None]:
        try:
            reply = await self._call_s3("get_object", Bucket=bucket, Key=key)
        except FileNotFoundError as error:
            if "NoSuchBucket" in error_names(error):
                raise
            return None, None
        async with reply["Body"] as body:
            return await body.read(), reply["ETag"]


def open_s3(options: Mapping[str, Any], probe: bool = False) -> S3:
    """Return a client; options win over the defaults set here.

    Args:
        options: of s3fs; what is not given of credentials and endpoint the AWS variables say.
        probe: give up after seconds instead of minutes where nobody answers.
    """
    settings: dict[str, Any] = {"read_timeout": 60}
    if "AWS_REQUEST_CHECKSUM_CALCULATION" not in os.environ:
        # botocore's default sends checksums as aws-chunked trailers: 501 on older stores.
        settings["request_checksum_calculation"] = "when_required"
    if probe:
        settings |= {"connect_timeout": 5, "read_timeout": 8, "retries": {"total_max_attempts": 1}}
    settings |= options.get("config_kwargs", {})
    filesystem = S3(
        **{"use_listings_cache": False, **options, "config_kwargs": settings},
        skip_instance_cache=probe,
    )
    if probe:
        filesystem.retries, filesystem.limit_s = 2, PROBE_LIMIT_S
    return filesystem
