"""One way to read and write files: a local folder and `s3://` (or any fsspec URI) behave alike.

    store = Store("s3://bucket/nightly")
    store.check_writable()
    store.write_parquet("runs/1/defaults.parquet", table)
    table = store.read_parquet("runs/1/defaults.parquet")

Paths are relative to the store's root, with forward slashes; a name means itself, whatever
characters it has. An object appears whole or not at all: it is encoded in memory and stored by one
PUT, or is a local file and stored in parts that appear at the last one (locally: a temporary file
and a rename), so that an exception leaves no short file. What goes
wrong is a `StorageError`; an object that is not there is its subclass `MissingObject`, which is a
`FileNotFoundError` too.
"""

import contextlib
import errno
import io
import json
import os
import re
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from crossrec.claims import swap_by_claims
from crossrec.disk import Disk
from crossrec.errors import BadObject, StorageError, explain
from crossrec.storage_errors import MissingObject, error_names, explained, without_secrets

S3_SCHEME = re.compile(r"^s3a?://")


@dataclass(frozen=True)
class Store:
    """A folder, local or remote. Cheap to pickle: each process opens its own connections.

    Options are those of the fsspec filesystem (for s3: endpoint_url, key, secret); no message and
    no repr has them.
    """

    root: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if re.search(r"://[^/]*:[^/]*@", self.root):
            mend = "give it in storage.options or in the standard variables"
            raise StorageError(
                explain("storage.root", "a place without a password", "a password", mend)
            )
        if not self.root or re.fullmatch(r"\w+:/*", self.root):
            mend, found = "give storage.root=...", repr(self.root)
            raise StorageError(explain("storage.root", "a folder or a URI", found, mend))
        folder = re.sub("^(file|local):(//)?", "", self.root)
        if "://" not in folder and "::" not in folder:
            # Absolute, because workers run in folders of their own.
            object.__setattr__(self, "root", os.path.abspath(os.path.expanduser(folder)))

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "options": self.options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    @property
    def is_local(self) -> bool:
        """Whether the root is a folder of this machine."""
        return self.root.startswith("/")

    @property
    def _is_s3(self) -> bool:
        return S3_SCHEME.match(self.root) is not None

    @property
    def _filesystem(self) -> fsspec.AbstractFileSystem:
        # A forked process must not use its parent's connections.
        process, filesystem = self.__dict__.get("_opened", (None, None))
        if process != os.getpid():
            filesystem = self._open()
            self.__dict__["_opened"] = (os.getpid(), filesystem)
        return filesystem

    def _open(self, probe: bool = False) -> fsspec.AbstractFileSystem:
        if self.is_local:
            return Disk()
        try:
            if not self._is_s3:
                return fsspec.core.url_to_fs(self.root, **self.options)[0]
            from crossrec.s3 import open_s3

            filesystem = open_s3(self.options, probe)
            filesystem.connect()
            return filesystem
        except (TypeError, ValueError, KeyError, ImportError) as error:
            found = without_secrets(f"{type(error).__name__}: {error}", self.options)
            mend = "check storage.root and storage.options"
            raise StorageError(
                explain(self.root, "a place and options that fsspec knows", found, mend)
            ) from error

    def _explained(self, path: str, writing: bool = False) -> AbstractContextManager[None]:
        return explained(self.uri(path), self.options, writing)

    @property
    def arrow_filesystem(self) -> pa.fs.FileSystem:
        """The filesystem for Ray Train, Ray Data and pyarrow; use it with `full_path`."""
        if self.is_local:
            return pa.fs.LocalFileSystem()
        return pa.fs.PyFileSystem(pa.fs.FSSpecHandler(self._filesystem))

    def full_path(self, path: str = "") -> str:
        """Return the path that `arrow_filesystem` understands.

        Raises:
            ValueError: the path is absolute or has a part that is empty, "." or "..".
        """
        path = path.rstrip("/") or path
        # s3fs takes what follows ?versionId= for a version.
        if path and ({"", ".", ".."} & set(path.split("/")) or "?versionId=" in path):
            raise ValueError(f"not a path inside the store: {path!r}")
        if self.is_local:
            root = self.root
        elif self._is_s3:
            root = S3_SCHEME.sub("", self.root).rstrip("/")
        else:
            root = self._filesystem._strip_protocol(self.root)
        return f"{root.rstrip('/')}/{path}" if path else root

    def uri(self, path: str = "") -> str:
        """Return what a person would type to reach the object."""
        return f"{self.root.rstrip('/')}/{path}" if path else self.root

    def check_writable(self) -> None:
        """Write, read and remove a small object, so that a wrong root or key shows in seconds.

        Raises:
            StorageError: the root cannot be used, and why.
        """
        path = self.full_path(f".probe-{uuid.uuid4().hex}")
        with self._explained("", writing=True):
            filesystem = self._open(probe=True)
            filesystem.pipe_file(path, b"probe")
            filesystem.cat_file(path)
            filesystem.rm_file(path)
        _ = self.knows_conditions

    def read_bytes(self, path: str) -> bytes:
        """Return the object's bytes.

        Raises:
            MissingObject: there is none.
        """
        full = self.full_path(path)
        with self._explained(path):
            data: bytes = self._filesystem.cat_file(full)
            return data

    def write_bytes(self, path: str, data: bytes) -> None:
        """Store the object whole, replacing what was there."""
        full = self.full_path(path)
        with self._explained(path, writing=True):
            self._filesystem.pipe_file(full, data)

    def put_file(self, source: Path, path: str) -> None:
        """Store a local file whole, replacing what was there; memory never holds all of it."""
        full = self.full_path(path)
        with self._explained(path, writing=True):
            self._filesystem.put_file(str(source), full)

    def create_bytes(self, path: str, data: bytes) -> bool:
        """Store the object unless there is one, and return whether this call stored it.

        Two callers at once cannot both win on a local disk and on stores that know If-None-Match.
        Others are only looked at first, which leaves a moment in which both can win. Where a reply
        is lost and the request repeated, the winner too can see False: compare contents then.
        """
        full = self.full_path(path)
        if self.exists(path):
            return False
        with self._explained(path, writing=True):
            try:
                self._filesystem.pipe_file(full, data, mode="create")
            except OSError as error:
                if {"FileExistsError", "PreconditionFailed", "ConditionalRequestConflict"} & set(
                    error_names(error)
                ):
                    return False
                if error.errno != errno.ENOSYS:
                    raise
                self._filesystem.pipe_file(full, data)
            return True

    @property
    def knows_conditions(self) -> bool:
        """Whether the place itself refuses to replace what has changed; tried once a Store."""
        if "_knows" not in self.__dict__:
            path = self.full_path(f".probe-{uuid.uuid4().hex}")
            with self._explained("", writing=True):
                ask = getattr(self._filesystem, "knows_conditions", lambda _: False)
                self.__dict__["_knows"] = bool(ask(path))
        return bool(self.__dict__["_knows"])

    def swap_bytes(self, path: str, old: bytes | None, new: bytes) -> bool:
        """Replace an object that holds `old` (None: is not there); return whether it now is `new`.

        Of two callers at once one wins: by a lock on a local disk, by If-Match and If-None-Match
        on stores that know them, else by `claims`.
        """
        full = self.full_path(path)
        if not self.knows_conditions:
            return swap_by_claims(self, path, old, new)
        with self._explained(path, writing=True):
            return bool(self._filesystem.swap_file(full, old, new))

    def exists(self, path: str) -> bool:
        """Whether there is an object, or a folder with something in it."""
        full = self.full_path(path)
        try:
            with self._explained(path):
                if self._filesystem.info(full)["type"] != "directory":
                    return True
                return bool(self._filesystem.ls(full, detail=False))
        except MissingObject:
            return False

    def list(self, path: str) -> list[str]:
        """Return the names directly inside a folder, sorted; empty where there is no such folder.

        Names that begin with a dot (unfinished local writes, probes) are left out.
        """
        full = self.full_path(path)
        try:
            with self._explained(path):
                entries = self._filesystem.ls(full, detail=False)
        except MissingObject:
            return []
        # A store lists a folder's own marker, or the object of that name, as an entry.
        paths = (entry.strip("/") for entry in entries if entry.strip("/") != full.strip("/"))
        names = {path.rsplit("/", 1)[-1] for path in paths}
        return sorted(name for name in names if not name.startswith("."))

    def size(self, path: str) -> int:
        """Return the bytes of all that is in a folder."""
        full = self.full_path(path)
        with self._explained(path):
            return sum(file["size"] for file in self._filesystem.find(full, detail=True).values())

    def delete(self, path: str) -> None:
        """Remove an object, or a folder with all that is in it; do nothing where there is none."""
        full = self.full_path(path)
        if not path:
            raise ValueError("the root of a store is not deleted")
        with contextlib.suppress(MissingObject), self._explained(path):
            self._filesystem.rm(full, recursive=True)

    def read_json(self, path: str) -> Any:
        """Return the value that a JSON object holds."""
        data = self.read_bytes(path)
        try:
            return json.loads(data)
        except ValueError as error:
            mend = "remove it and run the stage that writes it"
            raise BadObject(explain(self.uri(path), "JSON", str(error), mend)) from error

    def write_json(self, path: str, value: Any) -> None:
        """Store a value as JSON with sorted keys, so that the same value gives the same bytes."""
        text = json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True)
        self.write_bytes(path, f"{text}\n".encode())

    def read_parquet(self, path: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Return a Parquet file's table, or the named columns of it."""
        data = self.read_bytes(path)
        try:
            return pq.read_table(io.BytesIO(data), columns=columns and [*columns])
        except pa.ArrowException as error:
            expected = f"a Parquet file with columns {columns}" if columns else "a Parquet file"
            found = " ".join(str(error).split())[:200]
            mend = "write the file again"
            raise BadObject(explain(self.uri(path), expected, found, mend)) from error

    def write_parquet(self, path: str, table: pa.Table, row_group_size: int | None = None) -> None:
        """Encode a table (zstd) and store it by one PUT."""
        self.write_bytes(path, encode_parquet(table, row_group_size))


def encode_parquet(table: pa.Table, row_group_size: int | None = None) -> bytes:
    """Return the table as the bytes of a Parquet file; the same table gives the same bytes."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", row_group_size=row_group_size)
    return sink.getvalue()
