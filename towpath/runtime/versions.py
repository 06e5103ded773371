"""What a host has: compared before anything loads, since workers of other versions would train something else."""

import hashlib
import os
import platform
import socket
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from towpath.errors import ResourceError

COMPARED = ("python", "towpath", "code", "torch", "transformers")


@cache
def facts() -> dict[str, Any]:
    """Host name, versions and CPUs of this process, without an import of what it names."""
    tasks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "host": socket.gethostname(),
        "cpus": int(os.environ.get("TOWPATH_HOST_CPUS", "0")) or max(1, cpus // tasks),
        "python": platform.python_version(),
        "code": _code(),
        **{name: _version(name) for name in ("towpath", "torch", "transformers")},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _code() -> str:
    """A hash of this package: two checkouts of one version may differ."""
    digest = hashlib.sha256()
    root = Path(__file__).parent.parent
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def differences(others: Sequence[Mapping[str, Any]]) -> list[str]:
    """What other hosts have unlike this one, a line for each host."""
    own = facts()
    lines = []
    for other in others:
        unlike = [name for name in COMPARED if other.get(name, "missing") != own[name]]
        if "towpath" in unlike and other.get("towpath", "missing") == "missing":
            lines.append(f"{other['host']}: towpath is missing {other.get('error', '')}".rstrip())
        elif unlike:
            pairs = [f"{name} {other.get(name, 'missing')}, here {own[name]}" for name in unlike]
            lines.append(f"{other['host']}: {'; '.join(pairs)}")
    return lines


def require_same(others: Sequence[Mapping[str, Any]]) -> None:
    """Refuse hosts with other versions, by name."""
    lines = differences(others)
    if lines:
        raise ResourceError(
            "hosts with other versions:\n  " + "\n  ".join(lines),
            "all hosts of a run have the same python, towpath, torch and transformers",
            "install the same versions there, or use one container image or shared environment for all hosts",
        )
