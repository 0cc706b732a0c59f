"""Epochs in the log as they end: the driver looks for new checkpoints while Ray Train works.

    with log_epochs(store, "runs/2026-06-30/train/1f2e3d4c5b6a7988"):
        trainer.fit()
    # 02:13:40 finetune: select epoch 3, loss 5.82317, seconds 5.11, ndcg@10 0.1314

Workers' own output is not shown (crossrec.job): each line of it would come with a prefix, among
many of Ray's. The checkpoints say the same, wherever the workers run.
"""

import contextlib
import threading
from collections.abc import Iterator

from crossrec.errors import StorageError
from crossrec.runlog import log
from crossrec.storage import Store
from crossrec.train.progress import PROGRESS, Progress, describe, parse_progress

LOOK_EVERY_S = 2.0
"""One listing a look; an epoch takes seconds at least."""


@contextlib.contextmanager
def log_epochs(store: Store, folder: str) -> Iterator[None]:
    """Log every epoch whose checkpoint appears in a folder of Ray Train until the block ends."""
    said = _count(_newest(store, folder))
    if said:
        log.info("finetune: goes on after %s epochs", said)
    ended = threading.Event()

    def look() -> None:
        nonlocal said
        is_last = False
        while not is_last:
            is_last = ended.wait(LOOK_EVERY_S)
            phases = _newest(store, folder)
            points = [(phase, index) for phase in phases for index in range(len(phase.curve))]
            for phase, index in points[said:]:
                log.info("finetune: %s", describe(phase, index))
            said = max(said, len(points))

    watch = threading.Thread(target=look, daemon=True)
    watch.start()
    try:
        yield
    finally:
        ended.set()
        watch.join()


def _newest(store: Store, folder: str) -> list[Progress]:
    """Return the progress in the newest checkpoint that can be read; nothing where none can."""
    # A checkpoint may be half written, or be removed in favour of a newer one; the next look
    # finds more, and looking must never end a night.
    with contextlib.suppress(StorageError):
        names = [name for name in store.list(folder) if name.startswith("checkpoint_")]
        for name in reversed(names):
            with contextlib.suppress(StorageError, ValueError):
                return parse_progress(store.read_bytes(f"{folder}/{name}/{PROGRESS}"))
    return []


def _count(phases: list[Progress]) -> int:
    return sum(len(phase.curve) for phase in phases)
