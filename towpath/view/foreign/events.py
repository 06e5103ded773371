"""TensorBoard event files."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from towpath.errors import DataError
from towpath.view.foreign.log import RawLog

NAME_PART = "tfevents"
SETTINGS = ("args/text_summary", "args")
"""Tags of the trainer's arguments, as transformers' TensorBoardCallback writes them."""


def files(folder: Path) -> list[Path]:
    """The event files of one run in a folder or below it, the oldest first."""
    paths = sorted(path for path in folder.rglob(f"*{NAME_PART}*") if path.is_file())
    folders = sorted({path.parent for path in paths})
    if folder in folders:
        return [path for path in paths if path.parent == folder]
    if len(folders) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in folders[:6])
        raise DataError(
            f"{folder}: event files of {len(folders)} runs", "the log of one run", f"name one of its folders: {names}"
        )
    return paths


def read(source: Path, paths: list[Path]) -> RawLog:
    """The scalars of event files; of several values for one step the later counts."""
    rows: dict[int, dict[str, Any]] = {}
    settings: dict[str, Any] = {}
    for path in paths:
        for step, tag, value in _values(path):
            if isinstance(value, float):
                rows.setdefault(step, {"step": step})[tag] = value
            elif isinstance(value, str) and tag in SETTINGS:
                settings |= _settings(value)
    if not rows:
        fix = "wait until the first log, or name the folder of the writer"
        raise DataError(f"{source}: no scalars", "TensorBoard event files with scalars", fix)
    return RawLog(str(source), [rows[step] for step in sorted(rows)], settings)


def _values(path: Path) -> Iterator[tuple[int, str, float | str]]:
    """(step, tag, number or text) of one file, without a truncated last event."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader  # takes a second to import
    from tensorboard.util import tensor_util

    for event in LegacyEventFileLoader(str(path)).Load():
        for value in event.summary.value:
            if value.HasField("simple_value"):
                yield event.step, value.tag, float(value.simple_value)
            elif value.HasField("tensor"):
                array = tensor_util.make_ndarray(value.tensor).ravel()
                if array.size == 1 and array.dtype.kind in "fiu":
                    yield event.step, value.tag, float(array[0])
                elif array.size == 1 and isinstance(array[0], bytes):
                    yield event.step, value.tag, array[0].decode("utf-8", errors="replace")


def _settings(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
