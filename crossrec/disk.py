"""The local disk behind storage.py: fsspec's, where a file too appears whole or not at all.

In: absolute paths. Out: an fsspec filesystem.

    Disk().pipe_file("/srv/recs/current.json", b"{}")
"""

import contextlib
import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
"""What file systems without hard links answer (FAT, some network mounts)."""

NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
"""What file systems without locks answer (some network mounts)."""


class Disk(LocalFileSystem):  # type: ignore[misc]
    """The local file system, where a file too appears whole or not at all."""

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        """Write a hidden file beside the path, then rename it.

        Raises:
            FileExistsError: the mode is "create" and there is a file.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f".{uuid.uuid4().hex}.tmp"
        # Not tempfile, whose files no other user may read.
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with os.fdopen(handle, "wb") as out:
                out.write(value)
                out.flush()
                os.fsync(out.fileno())
            if mode != "create":
                os.replace(temporary, target)
                return
            try:
                os.link(temporary, target)
            except OSError as error:
                if error.errno not in NO_HARD_LINKS:
                    raise
                # The caller has looked that there is none.
                os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    def put_file(self, lpath: str, rpath: str, **kwargs: Any) -> None:
        """Let a copy of a file appear at the path; where the disk is the same, the file itself."""
        target = Path(rpath)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f".{uuid.uuid4().hex}.tmp"
        try:
            try:
                os.link(lpath, temporary)
            except OSError:  # another disk, or one without hard links
                shutil.copyfile(lpath, temporary)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    def knows_conditions(self, path: str) -> bool:
        """Whether `swap_file` can hold others off: the lock file beside the path says."""
        try:
            with _locked(path) as lock:
                lock.unlink()
                return True
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return False

    def swap_file(self, path: str, old: bytes | None, new: bytes) -> bool:
        """Replace a file that holds `old` (None: is not there); return whether it now is `new`.

        Who swaps holds a lock on a hidden file beside it, which the system lets go of when a
        process dies.
        """
        target = Path(path)
        with _locked(path):
            found = target.read_bytes() if target.exists() else None
            if found != old:
                return found == new
            self.pipe_file(path, new)
            return True


@contextlib.contextmanager
def _locked(path: str) -> Iterator[Path]:
    lock = Path(path).with_name(f".{Path(path).name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield lock
    finally:
        os.close(handle)
