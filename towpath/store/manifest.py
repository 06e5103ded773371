"""manifest.json: what a finished stage was made of and left behind, with the checksum of every result file and of
itself."""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

from towpath.errors import DataError
from towpath.store import publish
from towpath.store.publish import replace_file

NAME = "manifest.json"
PUBLISHED_FOLDERS = ("weights", "weights-*", "adapter")
"""Folders of results, as patterns."""
EVIDENCE = (
    "metrics.jsonl",
    "samples.jsonl",
    "findings.json",
    "interventions.jsonl",
    "run_info.json",
    "frozen.npz",
    "adapter/adapter_config.json",
    f"adapter/{publish.MANIFEST}",
)
"""Files that tell how a stage went, or name the run's folder: the same stage run again may leave others, and nothing
is made of them."""
RULE = "the results of a finished stage are what it wrote: nothing is trained on or measured with damaged files"
_verified: dict[Path, float] = {}
"""Stage folders whose files were verified in this process, by when."""


def write(folder: Path, content: dict[str, Any]) -> None:
    """Say that a stage is done, with the checksums of its result files."""
    whole = content | {"files": _file_checksums(folder)}
    replace_file(folder / NAME, json.dumps(whole | {"checksum": _checksum(whole)}, indent=1, ensure_ascii=False))
    _verified[folder] = time.monotonic()


def update(folder: Path, **changes: Any) -> None:
    """Change values of a manifest; the files it tells of stay as they are."""
    whole = {key: value for key, value in (read(folder) | changes).items() if key != "checksum"}
    replace_file(folder / NAME, json.dumps(whole | {"checksum": _checksum(whole)}, indent=1, ensure_ascii=False))


def read(folder: Path) -> dict[str, Any]:
    """The manifest of a finished stage, if it is as it was written."""
    path = folder / NAME
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        whole = {key: value for key, value in found.items() if key != "checksum"}
        sound = found["checksum"] == _checksum(whole)
    except FileNotFoundError:
        raise damaged_error(path, "no such file") from None
    except OSError as error:
        raise damaged_error(path, (error.strerror or str(error)).lower()) from None
    except (ValueError, AttributeError, KeyError, TypeError):
        raise damaged_error(path, "damaged: not a manifest with its checksum") from None
    if not sound:
        raise damaged_error(path, "damaged: its content does not match its checksum")
    return found


def verify(folder: Path) -> None:
    """Raise where a result file of a finished stage is missing or not what was written; read once in a process."""
    if folder in _verified:
        return
    for name, wanted in read(folder)["files"].items():
        path = folder / name
        try:
            found = publish.checksum(path)
        except OSError as error:
            raise damaged_error(path, (error.strerror or str(error)).lower()) from None
        if found != wanted:
            how = (
                "its SHA-256 is another"
                if found["bytes"] == wanted["bytes"]
                else f"{found['bytes']} bytes of {wanted['bytes']}"
            )
            raise damaged_error(path, f"damaged: {how}")
    _verified[folder] = time.monotonic()


def results_digest(folder: Path) -> str:
    """A digest of the results of a finished stage, by what its manifest says of them."""
    files = {name: told for name, told in read(folder)["files"].items() if name not in EVIDENCE}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]


def invalidate(folder: Path) -> None:
    """The folder was moved or is made again."""
    _verified.pop(folder, None)


def damaged_error(path: Path, what: str) -> DataError:
    """The error for a file of a finished stage that cannot be used; the path is RUN/stages/STAGE/FINGERPRINT/FILE."""
    parts = path.absolute().parts
    place = next((i for i in range(len(parts) - 1, 0, -1) if parts[i] == "stages"), None)
    if place is None or place + 1 >= len(parts):
        return DataError(
            f"{path}: {what}", RULE, f"bring the file back from a backup, or move {path.parent} away to make it again"
        )
    run = Path(*parts[:place])
    stage = parts[place + 1]
    return DataError(
        f"{path}: {what}",
        RULE,
        f"bring the file back from a backup, or make it again: `towpath run {run} --redo {stage}`",
    )


def read_object(path: Path) -> dict[str, Any] | None:
    """A JSON object that can be made again; None where it is damaged, empty where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _file_checksums(folder: Path) -> dict[str, dict[str, int | str]]:
    """The checksums of a stage's results and evidence; those of published folders as they were when they were
    written."""
    found: dict[str, dict[str, int | str]] = {}
    for place in sorted(path for pattern in PUBLISHED_FOLDERS for path in folder.glob(pattern) if path.is_dir()):
        found |= {f"{place.name}/{inside}": told for inside, told in publish.read_checksums(place).items()}
        found[f"{place.name}/{publish.MANIFEST}"] = publish.checksum(place / publish.MANIFEST)
    files = [
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and path.suffix in (".json", ".jsonl", ".npz") and path.name != NAME
    ]
    return found | {path.name: publish.checksum(path) for path in files}


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
