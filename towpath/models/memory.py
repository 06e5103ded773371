"""The memory that this machine has left, and the most that this process had."""

import resource
import sys
from contextlib import suppress
from pathlib import Path


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
    """Let `peak_bytes` start again; only Linux can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_bytes() -> int:
    """The most memory that this process had at once since `reset_peak`, or since it began where that has no effect."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
