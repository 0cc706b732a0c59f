"""A process group of two workers on this machine, for tests that need no Ray.

spawn(work, (folder,), nprocs=2)    # work(rank, folder) calls with_group(rank, folder, ...)
"""

from collections.abc import Callable
from datetime import timedelta

import torch
from torch import distributed


def with_group(rank: int, folder: str, work: Callable[[], None]) -> None:
    """Do a worker's part of the work in a group that meets in a folder.

    What the work made is gone before the group is: a DistributedDataParallel that holds the group
    last closes it with the GIL held, and may wait for ever for a thread of gloo that wants the GIL
    (seen with torch 2.13).
    """
    torch.set_num_threads(1)
    meet, limit = f"file://{folder}/meet", timedelta(seconds=120)
    distributed.init_process_group("gloo", meet, limit, world_size=2, rank=rank)
    work()
    distributed.destroy_process_group()
