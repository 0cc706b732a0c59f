import sys
from pathlib import Path

import numpy as np
import pytest

from crossrec.heap import give_back

PIECES, BYTES = 2_000, 100_000


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_lies_free_between_what_is_used_goes_back() -> None:
    # Too small for pages of their own; every tenth stays, so that the heap cannot shrink by itself.
    pieces = [np.ones(BYTES, np.uint8) for _ in range(PIECES)]
    kept = pieces[::10]
    del pieces
    before = resident_bytes()
    give_back()
    assert before - resident_bytes() > PIECES * BYTES // 2
    assert all(piece.all() for piece in kept)
