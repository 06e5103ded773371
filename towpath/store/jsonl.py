"""A file of JSON lines that another process writes: every byte is read once, a line still being written is left for
later."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

from towpath.progress import print_note

REMEMBERED = 64
"""Bytes before the place where reading ended; where they differ, the file was written anew."""


class Following:
    """Reads what was added to a file since the last time; notices when the file was replaced or made shorter."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known = (0, 0, 0)  # inode, size and time of writing when it was last read
        self._offset = 0
        self._last = b""

    def read(self) -> tuple[bytes, bool]:
        """Whole lines that are new, and whether the file was begun anew, so that they are all there is."""
        try:
            now = self.path.stat()
        except OSError:
            again = self._offset > 0
            self.forget()
            return b"", again
        known = (now.st_ino, now.st_size, now.st_mtime_ns)
        if known == self._known:
            return b"", False
        with self.path.open("rb") as file:
            again = self._replaced(file, now.st_ino)
            if again:
                self.forget()
            file.seek(self._offset)
            told = file.read()
        self._known = known
        whole = told[: told.rfind(b"\n") + 1]
        if whole:
            self._offset += len(whole)
            self._last = (self._last + whole)[-REMEMBERED:]
        return whole, again

    def _replaced(self, file: BinaryIO, inode: int) -> bool:
        """Whether what was read is no longer the beginning of the file. An inode may be given to another file; what
        it held may not."""
        if not self._offset:
            return False
        if inode != self._known[0]:
            return True
        file.seek(self._offset - len(self._last))
        return file.read(len(self._last)) != self._last

    def forget(self) -> None:
        """Begin anew at the next reading."""
        self._known = (0, 0, 0)
        self._offset = 0
        self._last = b""


def rows(told: bytes) -> list[dict[str, Any]]:
    """The objects of JSON lines; a line that is none, left by a crash, is passed over."""
    found = []
    for line in told.split(b"\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            found.append(row)
    return found


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_interval(value: Any) -> TypeGuard[Sequence[float]]:
    """Whether it is a pair of finite numbers."""
    return isinstance(value, list | tuple) and len(value) == 2 and all(is_number(end) for end in value)


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file up to the first damaged one; a torn last line is ignored."""
    if not path.is_file():
        return []
    found: list[dict[str, Any]] = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            if number < len(lines):
                print_note(f"{path}:{number}: damaged; this line and the {len(lines) - number} after it are not read")
            break
        found.append(row)
    return found
