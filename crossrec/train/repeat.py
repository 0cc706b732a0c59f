"""The same weights from the same data, to the last bit, also where training was cut short.

@repeatable()
def train_loop(config): ...
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def repeatable() -> Iterator[None]:
    """Add up the gradients of rows that occur more than once in their order.

    Else the threads of a CPU add them as they come, a little differently each time, and slower by
    several times (torch.use_deterministic_algorithms: index_put_ with accumulate). A GPU is left
    as it is, where order would cost time.
    """
    if torch.cuda.is_available():
        yield
        return
    # A property that torch adds to the module, so that mypy does not see it.
    memory: Any = torch.utils.deterministic
    fills, memory.fill_uninitialized_memory = memory.fill_uninitialized_memory, False
    before = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)
        memory.fill_uninitialized_memory = fills
