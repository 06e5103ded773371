"""The files of a model's folder, read without torch: what is missing, cut short or damaged, by name."""

import json
from pathlib import Path
from typing import Any

from towpath.errors import ModelError

COPY = "copy the file again from the model's source"
LFS = b"version https://git-lfs"
TEXTS = ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json")
Header = dict[str, dict[str, Any]]


def require(folder: Path) -> None:
    """Raise a ModelError that names the first file of a model that is missing or cannot be read."""
    require_texts(folder)
    weights = weight_files(folder)
    if not weights and not list(folder.glob("*.bin")):
        fix = "put model.safetensors beside config.json (a GGUF file is named by gguf:PATH)"
        raise ModelError(f"{folder}: no weights", "weights are *.safetensors beside config.json", fix)
    for path in weights:
        header(path)


def require_texts(folder: Path) -> None:
    """`require` for all but the weights."""
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: no config.json", "a model is a folder with config.json, weights and a tokenizer", "check model.source")
    for name in TEXTS:
        if (folder / name).is_file():
            read_json(folder / name)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of a folder; where an index names them, exactly those."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict):
        raise ModelError(f"{index}: no weight_map", "the index names the file of every tensor", COPY)
    paths = [folder / name for name in sorted(set(places.values()))]
    if missing := [path.name for path in paths if not path.is_file()]:
        value = f"{index}: {len(missing)} of {len(paths)} files are not there: {', '.join(missing[:5])}"
        raise ModelError(value, "the index names the file of every tensor", "fetch the missing files")
    return paths


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or an error that names the file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file", "a model is a folder with config.json, weights and a tokenizer", "check model.source") from None
    except OSError as error:
        raise ModelError(
            f"{path}: {(error.strerror or str(error)).lower()}", "the files of a model must be readable", "fix its permissions"
        ) from None
    except ValueError as error:
        raise ModelError(f"{path}: not JSON ({error})", "this file of a model is JSON", COPY) from None
    if not isinstance(found, dict):
        raise ModelError(f"{path}: a JSON {type(found).__name__}", "this file of a model is a JSON object", COPY)
    return found


def header(path: Path) -> Header:
    """The tensors that a safetensors file says it holds, if it is as long as they are."""
    rule = "a safetensors file is a header and all the tensors it names"
    try:
        with path.open("rb") as file:
            start = file.read(8)
            size, length = int.from_bytes(start, "little"), path.stat().st_size
            text = file.read(size) if 8 + size <= length else b""
    except OSError as error:
        raise ModelError(
            f"{path}: {(error.strerror or str(error)).lower()}", "the files of a model must be readable", "fix its permissions"
        ) from None
    if start == LFS[:8]:
        raise ModelError(f"{path}: a Git LFS pointer, not weights", rule, "run `git lfs pull` in the model's repository")
    try:
        entries = json.loads(text)
        tensors = {name: entry for name, entry in entries.items() if name != "__metadata__"}
        needed = 8 + size + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        _ = [entry["shape"] for entry in tensors.values()]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        value = f"{path}: {length} bytes, no whole header"
        raise ModelError(value, rule, COPY) from None
    if length < needed:
        raise ModelError(f"{path}: cut short, {length} of {needed} bytes", rule, COPY)
    return tensors
