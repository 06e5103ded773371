"""TensorBoard event files."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from towpath.errors import DataError
from towpath.view.foreign.log import Raw

MARK = "tfevents"
SETTINGS = ("args/text_summary", "args")
"""Where transformers' TensorBoardCallback leaves the trainer's arguments."""


def files(folder: Path) -> list[Path]:
    """The event files of one run in a folder or below it, the oldest first."""
    found = sorted(path for path in folder.rglob(f"*{MARK}*") if path.is_file())
    places = sorted({path.parent for path in found})
    if folder in places:
        return [path for path in found if path.parent == folder]
    if len(places) > 1:
        told = ", ".join(str(place.relative_to(folder)) for place in places[:6])
        raise DataError(
            f"{folder}: event files of {len(places)} runs", "the log of one run", f"name one of its folders: {told}"
        )
    return found


def read(source: Path, paths: list[Path]) -> Raw:
    """The scalars of event files; where several say something of one step, the later counts."""
    rows: dict[int, dict[str, Any]] = {}
    settings: dict[str, Any] = {}
    for path in paths:
        for step, tag, value in _values(path):
            if isinstance(value, float):
                rows.setdefault(step, {"step": step})[tag] = value
            elif isinstance(value, str) and tag in SETTINGS:
                settings |= _settings(value)
    if not rows:
        fix = "wait until the first log, or name the folder that the writer was given"
        raise DataError(f"{source}: no scalars", "TensorBoard event files with scalars", fix)
    return Raw(str(source), [rows[step] for step in sorted(rows)], settings)


def _values(path: Path) -> Iterator[tuple[int, str, float | str]]:
    """(step, tag, number or text) of one file; its torn end is left out."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader  # a second to load
    from tensorboard.util import tensor_util

    for event in LegacyEventFileLoader(str(path)).Load():
        for value in event.summary.value:
            if value.HasField("simple_value"):
                yield event.step, value.tag, float(value.simple_value)
            elif value.HasField("tensor"):
                held = tensor_util.make_ndarray(value.tensor).ravel()
                if held.size == 1 and held.dtype.kind in "fiu":
                    yield event.step, value.tag, float(held[0])
                elif held.size == 1 and isinstance(held[0], bytes):
                    yield event.step, value.tag, held[0].decode("utf-8", errors="replace")


def _settings(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
