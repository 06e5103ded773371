"""The memory that this machine has left."""

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
