"""Memory that runs out while something is computed: known as such from whatever a library raises, and answered by
doing less at once."""

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")
SIGNS = ("can't allocate memory", "out of memory", "bad_alloc", "bad allocation", "MemoryError")


def ran_out(error: BaseException) -> bool:
    """Whether an exception means out of memory, on a GPU or a CPU."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(sign in str(error) for sign in SIGNS)


def with_less(work: Callable[[], T], less: Callable[[], None]) -> T:
    """The result of `work`; after running out of memory, `less` reduces its size (or raises) and `work` is repeated."""
    while True:
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
        # Here the exception is gone, and with it the frames that held what was computed so far.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        less()
