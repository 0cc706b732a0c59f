"""The local disk behind storage.py: fsspec's, where a file too appears whole or not at all.

In: absolute paths. Out: an fsspec filesystem.

    Disk().pipe_file("/srv/recs/current.json", b"{}")
"""

import errno
import os
import uuid
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
"""What file systems without hard links answer (FAT, some network mounts)."""


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
