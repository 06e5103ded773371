"""JSON lines, one object a line: `read` for a whole file, `JsonlTail` for a file that another process appends to."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

from towpath.progress import print_note
from towpath.store.manifest import damaged_error

TAIL_BYTES = 64
"""Bytes before the read offset that are remembered: when they differ, the file was replaced."""


@dataclass(frozen=True, slots=True)
class DamagedLine:
    """The first line of a file that is not a JSON object."""

    number: int
    reason: str
    lines_after: int
    """Lines after it that are not blank."""
    torn: bool
    """Whether it is the last line and has no line end: it is still being written."""


def parse(data: bytes) -> tuple[list[dict[str, Any]], DamagedLine | None]:
    """The objects before the first damaged line, and that line."""
    rows: list[dict[str, Any]] = []
    lines = data.split(b"\n")  # not splitlines(): strings in JSON may hold other line ends
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            reason = f"a JSON {type(row).__name__}, not an object"
        except ValueError as error:
            row = None
            reason = str(error)
        if not isinstance(row, dict):
            lines_after = sum(bool(rest.strip()) for rest in lines[number:])
            return rows, DamagedLine(number, reason, lines_after, number == len(lines))
        rows.append(row)
    return rows, None


def read(path: Path, strict: bool = False) -> list[dict[str, Any]]:
    """The rows of a file, none if it does not exist. A torn last line is ignored; at any other damaged line a strict
    reader raises, and a lenient one prints a note and stops."""
    if not path.is_file():
        return []
    rows, damage = parse(path.read_bytes())
    if damage and not damage.torn:
        if strict:
            raise damaged_error(path, f"damaged: line {damage.number}: {damage.reason}")
        print_note(f"{path}:{damage.number}: damaged; this line and the {damage.lines_after} after it are not read")
    return rows


class JsonlTail:
    """Reads the complete lines appended to a file since the last call, and notices when the file is replaced or
    truncated."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last_stat = (0, 0, 0)  # inode, size and modification time
        self._offset = 0
        self._last_bytes = b""

    def read(self) -> tuple[bytes, bool]:
        """New complete lines, and whether the file was replaced, so that they are its whole content."""
        try:
            now = self.path.stat()
            stat = (now.st_ino, now.st_size, now.st_mtime_ns)
            if stat == self._last_stat:
                return b"", False
            opened = self.path.open("rb")
        except OSError:  # it was removed, perhaps in between
            replaced = self._offset > 0
            self.reset()
            return b"", replaced
        with opened as file:
            replaced = self._is_replaced(file, stat[0])
            if replaced:
                self.reset()
            file.seek(self._offset)
            data = file.read()
        self._last_stat = stat
        lines = data[: data.rfind(b"\n") + 1]
        if lines:
            self._offset += len(lines)
            self._last_bytes = (self._last_bytes + lines)[-TAIL_BYTES:]
        return lines, replaced

    def _is_replaced(self, file: BinaryIO, inode: int) -> bool:
        """Whether the bytes read before are no longer there; an inode may be reused, so content is compared too."""
        if not self._offset:
            return False
        if inode != self._last_stat[0]:
            return True
        file.seek(self._offset - len(self._last_bytes))
        return file.read(len(self._last_bytes)) != self._last_bytes

    def reset(self) -> None:
        """Start at the beginning of the file at the next call."""
        self._last_stat = (0, 0, 0)
        self._offset = 0
        self._last_bytes = b""


def objects(data: bytes) -> list[dict[str, Any]]:
    """The objects of JSON lines; lines that are damaged, as a crash leaves them, are skipped."""
    rows = []
    for line in data.split(b"\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_interval(value: Any) -> TypeGuard[Sequence[float]]:
    """Whether it is a pair of finite numbers."""
    return isinstance(value, list | tuple) and len(value) == 2 and all(is_number(end) for end in value)
