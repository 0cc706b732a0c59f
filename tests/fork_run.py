"""A store that was opened before a fork, used on both sides of it.

python -m tests.fork_run ROOT

In a process of its own: a fork breaks the connections of the tests' Ray, which then waits for ever.
"""

import multiprocessing
import sys

from crossrec.storage import Store


def read_x(store: Store) -> bytes:
    return store.read_bytes("x")


def main(root: str) -> None:
    store = Store(root)
    store.write_bytes("x", b"1")
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(read_x, (store,)).get(timeout=30) == b"1"
    assert store.read_bytes("x") == b"1"


if __name__ == "__main__":
    main(sys.argv[1])
