"""The images of a catalogue at hand, on this machine's disk, for a backbone that learns from them.

    images = fetch_images(store, prepared)
    images.numbers_I            # image of each catalogue row, -1 for none
    images.read(0)              # its bytes, as the input had them

Tensor suffixes: I items.
"""

import mmap
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from crossrec.data.hashing import Array
from crossrec.data.histories import Prepared
from crossrec.data.images import IMAGE, bytes_path, image_rows
from crossrec.schema import DOMAIN
from crossrec.storage import Store


@dataclass(frozen=True)
class ImageFile:
    """Each image of a catalogue once, in a file without a name, which goes with the process.

    data: the images one after the other. starts: where in it each begins, and at last its end.
    numbers_I: (I,) int64.
    """

    data: mmap.mmap | bytes
    starts: Sequence[int]
    numbers_I: Array

    def __len__(self) -> int:
        return len(self.starts) - 1

    def read(self, number: int) -> bytes:
        """Return an image; any number of threads may read at once."""
        return self.data[self.starts[number] : self.starts[number + 1]]


def fetch_images(store: Store, prepared: Prepared) -> ImageFile:
    """Copy the images that prepare kept to this machine, one part in memory at a time.

    Their numbers are the same wherever it is called.
    """
    first = {domain.name: domain.start for domain in prepared.domains}
    rows = image_rows(store, prepared.folder).filter(pl.col(DOMAIN).is_in(list(first)))
    wanted = rows.unique("image_hash", keep="first", maintain_order=True)
    numbers: dict[str, int] = {}
    starts = [0]
    with tempfile.TemporaryFile() as file:
        for (part,), found in wanted.group_by("part", maintain_order=True):
            table = store.read_parquet(bytes_path(prepared.folder, str(part)))
            table = table.filter(pc.is_in(table["image_hash"], pa.array(found["image_hash"])))
            for name, image in zip(table["image_hash"], table[IMAGE], strict=True):
                numbers[name.as_py()] = len(numbers)
                starts.append(starts[-1] + file.write(image.as_py()))
        file.flush()
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if starts[-1] else b""
    numbers_I = np.full(prepared.items, -1, np.int64)
    for domain, place, name in rows.select(DOMAIN, "place", "image_hash").iter_rows():
        numbers_I[first[domain] + place] = numbers[name]
    return ImageFile(data, starts, numbers_I)
