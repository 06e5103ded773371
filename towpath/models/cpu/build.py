"""The kernels' shared library: compiled once for a processor, kept in the user's cache, loaded where it fits."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).with_name("kernels.cpp")
FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC")
TUNED = ("-march=native", "-mcpu=native")
"""How compilers are told to use all that this processor has; the first that one takes."""


def library() -> ctypes.CDLL | None:
    """The library, or none where it cannot be had."""
    result = _load_library()
    return result if isinstance(result, ctypes.CDLL) else None


def refusal() -> str:
    """Why there is none."""
    result = _load_library()
    return result if isinstance(result, str) else ""


def hindrance() -> str:
    """What can be known to stand in the way without trying: nothing is built, loaded or imported."""
    if os.environ.get("TOWPATH_KERNELS") == "0":
        return "switched off by TOWPATH_KERNELS=0"
    if sys.platform != "linux":
        return f"not tried on {sys.platform}"
    return "" if _compiler() or _library_path().exists() else "no C++ compiler (install g++, or name one in CXX)"


@cache
def _load_library() -> ctypes.CDLL | str:
    if reason := hindrance():
        return reason
    compiler = _compiler()
    path = _library_path()
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            _compile(compiler, path)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        message = getattr(error, "stderr", None) or str(error)
        return f"{compiler} could not make them: {message.strip().splitlines()[-1] if message.strip() else error}"


def _key() -> str:
    """Different for every source and processor: a home may be shared by machines."""
    cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    traits = sorted(
        line
        for line in cpu.splitlines()
        if line.split("\t")[0] in {"vendor_id", "model name", "flags", "Features", "CPU part"}
    )
    return hashlib.sha256(
        "\n".join([SOURCE.read_text(encoding="utf-8"), *FLAGS, platform.machine(), *traits]).encode()
    ).hexdigest()[:16]


def _library_path() -> Path:
    return Path(os.environ.get("TOWPATH_CACHE", Path.home() / ".cache" / "towpath")) / "kernels" / f"{_key()}.so"


def _compiler() -> str:
    return next(
        (path for name in (os.environ.get("CXX"), "c++", "g++", "clang++") if name and (path := shutil.which(name))), ""
    )


def _compile(compiler: str, path: Path) -> None:
    """Written beside its place and moved there whole: several processes may come at once. Linked without an OpenMP
    of its own, so that it shares torch's threads."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / "kernels.o"
        whole = Path(folder) / "kernels.so"
        for last, tuned in enumerate(TUNED, 1):
            tried = subprocess.run(
                [compiler, *FLAGS, tuned, "-c", str(SOURCE), "-o", str(made)],
                capture_output=True,
                text=True,
                timeout=120,
            )
            if tried.returncode == 0 or last == len(TUNED):
                tried.check_returncode()
                break
        subprocess.run(
            [compiler, "-shared", str(made), "-o", str(whole)], capture_output=True, text=True, timeout=120, check=True
        )
        whole.replace(path)
