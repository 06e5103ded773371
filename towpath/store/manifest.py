"""manifest.json of a finished stage: its inputs and outputs, with a checksum of every result file and of the
manifest."""

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
"""Patterns of published result folders."""
WORKERS = "workers.json"
"""What the workers of a stage do while it runs; it changes until they end, and has no checksum."""
RESTARTS = "restarts.json"
"""Restarts of a stage after workers were lost, with their time and a finding on each."""
EVIDENCE = (
    RESTARTS,
    "metrics.jsonl",
    "samples.jsonl",
    "findings.json",
    "interventions.jsonl",
    "run_info.json",
    "frozen.npz",
    "adapter/adapter_config.json",
    f"adapter/{publish.MANIFEST}",
)
"""Files that record how a stage went or name the run's folder; they may differ when the stage runs again and are no
input of later stages."""
RULE = "results of a finished stage must be unchanged; damaged files are never trained on or measured with"
_verified: dict[Path, float] = {}
"""When each stage folder was verified in this process."""


def write(folder: Path, content: dict[str, Any]) -> None:
    """Write the manifest of a finished stage with the checksums of its result files."""
    whole = content | {"files": _file_checksums(folder)}
    replace_file(folder / NAME, json.dumps(whole | {"checksum": _checksum(whole)}, indent=1, ensure_ascii=False))
    _verified[folder] = time.monotonic()


def update(folder: Path, **changes: Any) -> None:
    """Change values of a manifest; the files that it lists stay unchanged."""
    whole = {key: value for key, value in (read(folder) | changes).items() if key != "checksum"}
    replace_file(folder / NAME, json.dumps(whole | {"checksum": _checksum(whole)}, indent=1, ensure_ascii=False))


def read(folder: Path) -> dict[str, Any]:
    """Read and verify the manifest of a finished stage."""
    path = folder / NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        whole = {key: value for key, value in content.items() if key != "checksum"}
        sound = content["checksum"] == _checksum(whole)
    except FileNotFoundError:
        raise damaged_error(path, "no such file") from None
    except OSError as error:
        raise damaged_error(path, (error.strerror or str(error)).lower()) from None
    except (ValueError, AttributeError, KeyError, TypeError):
        raise damaged_error(path, "damaged: not a manifest with its checksum") from None
    if not sound:
        raise damaged_error(path, "damaged: its content does not match its checksum")
    return content


def verify(folder: Path) -> None:
    """Raise if a result file of a finished stage is missing or changed; verified once per process."""
    if folder in _verified:
        return
    for name, expected in read(folder)["files"].items():
        path = folder / name
        try:
            actual = publish.checksum(path)
        except OSError as error:
            raise damaged_error(path, (error.strerror or str(error)).lower()) from None
        if actual != expected:
            how = (
                "its SHA-256 differs"
                if actual["bytes"] == expected["bytes"]
                else f"{actual['bytes']} bytes instead of {expected['bytes']}"
            )
            raise damaged_error(path, f"damaged: {how}")
    _verified[folder] = time.monotonic()


def results_digest(folder: Path) -> str:
    """Return a digest of a finished stage's results."""
    files = {name: checksums for name, checksums in read(folder)["files"].items() if name not in EVIDENCE}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]


def read_restarts(folder: Path) -> list[dict[str, Any]]:
    """Return the restarts of a stage after lost workers; none if the record is damaged."""
    try:
        rows = json.loads((folder / RESTARTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("finding"), dict)]


def read_workers(folder: Path) -> dict[str, Any]:
    """Return what the workers of a stage did when last seen; empty where there are none or the file is damaged."""
    content = read_object(folder / WORKERS) or {}
    rows = content.get("workers")
    return content if isinstance(rows, list) and all(isinstance(row, dict) for row in rows) else {}


def peak_of_workers(folder: Path, on_gpus: bool = False) -> int:
    """The most bytes of memory that the workers of a stage had, as far as they were seen; or those on GPUs alone."""
    rows = read_workers(folder).get("workers", ())
    counted = [row for row in rows if not on_gpus or str(row.get("device", "")).startswith("cuda")]
    return round(sum(row.get("peak_memory_bytes", 0.0) for row in counted))


def invalidate(folder: Path) -> None:
    """Forget that a folder was verified, after it is moved or made again."""
    _verified.pop(folder, None)


def damaged_error(path: Path, what: str) -> DataError:
    """Return the error for an unusable file of a finished stage at RUN/stages/STAGE/FINGERPRINT/FILE."""
    parts = path.absolute().parts
    index = next((i for i in range(len(parts) - 1, 0, -1) if parts[i] == "stages"), None)
    if index is None or index + 1 >= len(parts):
        return DataError(
            f"{path}: {what}", RULE, f"restore the file from a backup, or move {path.parent} away to make it again"
        )
    run = Path(*parts[:index])
    stage = parts[index + 1]
    return DataError(
        f"{path}: {what}", RULE, f"restore the file from a backup, or make it again: `towpath run {run} --redo {stage}`"
    )


def read_object(path: Path) -> dict[str, Any] | None:
    """Read a JSON object that can be made again: None if it is damaged, empty if it is missing."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _file_checksums(folder: Path) -> dict[str, dict[str, int | str]]:
    """Return the checksums of a stage's results and evidence; published folders keep those of their publication."""
    checksums: dict[str, dict[str, int | str]] = {}
    for published in sorted(path for pattern in PUBLISHED_FOLDERS for path in folder.glob(pattern) if path.is_dir()):
        checksums |= {
            f"{published.name}/{inside}": file_checksum
            for inside, file_checksum in publish.read_checksums(published).items()
        }
        checksums[f"{published.name}/{publish.MANIFEST}"] = publish.checksum(published / publish.MANIFEST)
    files = [
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and path.suffix in (".json", ".jsonl", ".npz") and path.name not in (NAME, WORKERS)
    ]
    return checksums | {path.name: publish.checksum(path) for path in files}


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
