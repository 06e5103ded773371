"""The memory that this machine has left, and the most that this process had."""

import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any


def memory_available() -> int | None:
    """Bytes that Linux says can be had, within the limit of the container; None elsewhere."""
    path = Path("/proc/meminfo")
    if not path.is_file():
        return None
    kilobytes = dict(line.split(":") for line in path.read_text().splitlines())
    free = int(kilobytes["MemAvailable"].split()[0]) * 1024
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(free, int(text)) if text.isdigit() else free


def reset_peak() -> None:
    """Let `peak_bytes` and `device_peak_bytes` start again; the first only on Linux."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    if (cuda := _cuda()) is not None:
        cuda.reset_peak_memory_stats()


def device_peak_bytes() -> int:
    """The most memory of a GPU that this process had reserved since `reset_peak`; 0 where it uses none."""
    cuda = _cuda()
    return cuda.max_memory_reserved() if cuda is not None else 0


def _cuda() -> Any:
    """torch.cuda where this process has used it: torch is not loaded for this."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def peak_bytes() -> int:
    """The most memory that this process had at once since `reset_peak`, or since it began where that has no effect."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
