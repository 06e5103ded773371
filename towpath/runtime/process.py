"""Settings of the process that models run in: threads, float32 products, memory, device and arithmetic."""

import ctypes
import gc
import math
import os
import resource
import sys
import time
from functools import cache
from pathlib import Path

import torch


def prepare_process() -> None:
    """Settings of the whole process that cost nothing and help: threads, oneDNN for float32 where it keeps float32,
    an allocator that keeps its memory. Those of `progress.prepare_libraries` come before torch is imported."""
    torch.set_float32_matmul_precision("medium")
    if torch.cuda.is_available() or products_round():  # a GPU would round them, too
        torch.set_float32_matmul_precision("highest")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    if sys.platform == "linux":
        trim_threshold = -1
        mmap_max = -4
        libc = ctypes.CDLL(None)
        libc.mallopt(trim_threshold, -1)  # never: the largest number would let go of all that lies free beyond 2 GiB
        libc.mallopt(mmap_max, 0)


def exempt_imports_from_gc() -> None:
    """Exempt all objects that exist now from garbage collection: a full one walks half a million objects of imported
    libraries, 0.4 s each time. Only for a run's own process: in a user's program their objects would be exempt."""
    gc.collect()
    gc.freeze()


def products_round() -> bool:
    """Whether float32 products on the processor are made of bfloat16 as they are set now: oneDNN does so where that
    is faster (AMX), and keeps float32 elsewhere."""
    draw = torch.Generator().manual_seed(0)
    a = torch.randn(128, 256, generator=draw)
    b = torch.randn(256, 128, generator=draw)
    exact = a.double() @ b.double()
    return bool((a @ b - exact).norm() > 1e-5 * exact.norm())


def memory_in_use(device: torch.device) -> float:
    """Bytes: the device's where it has memory of its own, else this process's."""
    if device.type == "cuda":
        return float(torch.cuda.memory_reserved(device))
    return resident_bytes()


def resident_bytes() -> float:
    """Bytes of this process in memory."""
    try:
        return float(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024


def release_memory() -> None:
    """Return memory that a finished stage has freed to the system."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def device_named(name: str) -> torch.device:
    """The device of a recipe; `auto` is a GPU if there is one."""
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def describe_gpu() -> str | None:
    """Name and memory of the GPU; None where torch finds none."""
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"


def gpu_count() -> int:
    """GPUs that torch finds."""
    return torch.cuda.device_count()


def gpu_capacity() -> int:
    """Bytes that the GPU has."""
    return torch.cuda.mem_get_info()[1]


def gpu_memory() -> int:
    """Bytes that the GPU has free."""
    return torch.cuda.mem_get_info()[0]


def dtype_named(name: str, device: torch.device) -> torch.dtype:
    """The dtype of a recipe; `auto` is bfloat16 where it is measured to be faster than float32."""
    if name != "auto":
        return torch.bfloat16 if name == "bfloat16" else torch.float32
    return torch.bfloat16 if device.type == "cuda" or _bfloat16_pays() else torch.float32


@cache
def _bfloat16_pays() -> bool:
    """By one thread's own time on the processor: what else the machine does must not decide how a run rounds, or it
    could not be repeated."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def seconds(dtype: torch.dtype) -> float:
        a = torch.ones(512, 512, dtype=dtype)
        b = torch.ones(512, 1024, dtype=dtype)
        best = math.inf
        for _ in range(8):
            begin = time.thread_time()
            _ = a @ b
            best = min(best, time.thread_time() - begin)
        return best

    faster = seconds(torch.bfloat16) < 0.8 * seconds(torch.float32)
    torch.set_num_threads(threads)
    return faster
