"""Read and write files of rows: JSON lines, JSON, CSV, Parquet. Rows come with their line number."""

import gzip
import hashlib
import json
import secrets
import shutil
import zlib
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from io import BufferedReader, BytesIO, RawIOBase, TextIOWrapper
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any, BinaryIO, Protocol, cast

from towpath.errors import DataError
from towpath.progress import Progress
from towpath.store.exchange import csv_rows, json_rows, write_csv

Cells = dict[str, Any]
Rows = Iterator[tuple[int, Cells | str]]
"""A string instead of a row is the reason why there is none."""

_SPACE = " \t\r\n"
BLOCK = 1 << 20
PARQUET_ROWS = 4096
IN_MEMORY = 1 << 26
"""Bytes of a CSV or Parquet file beyond which its copy is on the disk."""


class UnusableRow(Exception):
    """A row that cannot be used, and why."""


def list_files(path: Path) -> list[Path]:
    """The file itself, or the readable files of a folder, sorted by name."""
    if path.is_dir():
        files = sorted(inner for inner in path.rglob("*") if inner.is_file() and file_type(inner) in _READERS)
        if not files:
            raise DataError(
                f"{path}: no file to read in this folder",
                "one of " + ", ".join(_READERS),
                "convert the files, or name another folder",
            )
        return files
    if not path.is_file():
        raise DataError(f"{path}: no such file", "rows come from a file or a folder of files", "fix the path")
    return [path]


def file_type(path: Path) -> str:
    """The file type by suffix, ignoring `.gz`."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def read_rows(path: Path, digest: "Digest | None" = None) -> Rows:
    """Each row of a file with its line, or its number in Parquet; `digest` is updated with the bytes of the file, all
    of which are read once the rows are at their end. Only a JSON list is read as a whole."""
    if not is_supported(path):
        raise DataError(
            f"{path}: files of type {file_type(path) or '(none)'} are not read",
            "one of " + ", ".join(_READERS),
            "convert it",
        )
    try:
        with ExitStack() as opened:
            file = opened.enter_context(path.open("rb", buffering=0))
            content = opened.enter_context(BufferedReader(_Hashed(file, digest), BLOCK))
            plain = opened.enter_context(gzip.open(content)) if path.suffix.lower() == ".gz" else content
            yield from _READERS[file_type(path)](cast(BinaryIO, plain))
            while content.read(BLOCK):
                pass
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: {error}", "the file must be readable", "fix the file") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}", "the file must be readable", "fix its permissions") from None


class Digest(Protocol):
    """A hash that is updated with bytes."""

    def update(self, data: Any, /) -> None: ...


class CountedDigest:
    """The SHA-256 of a file, and the progress of reading it."""

    def __init__(self, work: Progress) -> None:
        self.sha256 = hashlib.sha256()
        self._work = work

    def update(self, data: Any, /) -> None:
        self.sha256.update(data)
        self._work.advance(len(data))


class _Hashed(RawIOBase):
    """The bytes of a file, which update a digest as they are read; a seek back, as Parquet needs, is not hashed."""

    def __init__(self, file: RawIOBase, digest: Digest | None) -> None:
        self._file = file
        self._digest = digest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer) or 0
        if self._digest is not None:
            self._digest.update(memoryview(buffer)[:count])
        return count


def is_supported(path: Path) -> bool:
    """Whether files of this type can be read."""
    return file_type(path) in _READERS


def json_type(value: Any) -> str:
    """The type of a cell, for errors."""
    names = {dict: "an object", list: "a list", bool: "true/false", str: "text", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def write_rows(path: Path, rows: Sequence[Cells]) -> None:
    """Write rows to a file atomically."""
    writer = _WRITERS.get(path.suffix.lower())
    if writer is None:
        raise DataError(
            f"{path}: files of type {path.suffix or '(none)'} are not written",
            "one of " + ", ".join(_WRITERS),
            "name it so",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp-{secrets.token_hex(4)}")
    try:
        writer(temporary, rows)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _parse_csv(content: BinaryIO) -> Rows:
    """Rows of a table, whose encoding is checked before the first is read."""
    with SpooledTemporaryFile(IN_MEMORY) as copy:
        decoder = getincrementaldecoder("utf-8-sig")()
        lines = 1
        while block := content.read(BLOCK):
            try:
                decoder.decode(block)
            except UnicodeDecodeError as error:
                yield lines + error.object[: error.start].count(b"\n"), "not UTF-8; no row of this file was read"
                return
            lines += block.count(b"\n")
            copy.write(block)
        copy.seek(0)
        yield from csv_rows(TextIOWrapper(cast(BinaryIO, copy), "utf-8-sig", newline=""), short_rows=False)


def _parse_json(content: BinaryIO) -> Rows:
    """A JSON list of objects, or JSON lines in a file named .json."""
    whole = content.read()
    try:
        text = whole.decode("utf-8-sig")
    except UnicodeDecodeError:
        return json_rows(BytesIO(whole))
    return _parse_json_list(text) if text.lstrip(_SPACE).startswith("[") else json_rows(BytesIO(whole))


def _parse_json_list(text: str) -> Rows:
    decoder = json.JSONDecoder()
    line = 1
    counted = 0
    position = text.index("[") + 1
    while True:
        position = _skip_space(text, position)
        line = line + text.count("\n", counted, position)
        counted = position
        if text[position : position + 1] == "]":
            if _skip_space(text, position + 1) < len(text):
                yield line, "text after the end of the list; it was not read"
            return
        try:
            row, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            yield line, f"not JSON: {getattr(error, 'msg', 'too deep')}; the rows from here on were not read"
            return
        yield line, row if isinstance(row, dict) else "not an object"
        position = _skip_space(text, position)
        if text[position : position + 1] == ",":
            position += 1
        elif text[position : position + 1] != "]":
            yield (
                line + text.count("\n", counted, position),
                "not JSON: a comma is missing; the rows from here on were not read",
            )
            return


def _skip_space(text: str, position: int) -> int:
    while text[position : position + 1] and text[position] in _SPACE:
        position += 1
    return position


def _parse_parquet(content: BinaryIO) -> Rows:
    import pyarrow  # slow to import, and few files need it
    from pyarrow import parquet

    number = 0
    # Parquet is read from its end: a copy, which is on the disk if it is large
    with SpooledTemporaryFile(IN_MEMORY) as copy:
        shutil.copyfileobj(content, copy, BLOCK)
        try:
            file = parquet.ParquetFile(copy)
            names = file.schema_arrow.names
            if twice := next((name for name in names if names.count(name) > 1), None):
                yield 1, f"two columns are named {twice!r}; no row of this file was read"
                return
            for batch in file.iter_batches(PARQUET_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
        except (pyarrow.ArrowException, OSError) as error:
            reason = (str(error).splitlines() or ["unreadable"])[0]
            yield number + 1, f"not Parquet: {reason}; the rows from here on were not read"


def _parse_arrow(content: BinaryIO) -> Rows:
    import pyarrow

    number = 0
    try:
        with pyarrow.ipc.open_stream(content) as batches:  # pyright: ignore[reportArgumentType]
            for batch in batches:
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or ["unreadable"])[0]
        yield number + 1, f"not an Arrow stream: {reason}; the rows from here on were not read"


def _write_jsonl(path: Path, rows: Iterable[Cells]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _write_json(path: Path, rows: Iterable[Cells]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write("[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n")


def _write_csv(path: Path, rows: Sequence[Cells]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        write_csv(file, [_as_texts(row) for row in rows], _all_columns(rows))


def _as_texts(row: Cells) -> Cells:
    """The row with lists and objects as JSON text."""
    return {
        name: json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value
        for name, value in row.items()
    }


def _all_columns(rows: Sequence[Cells]) -> list[str]:
    """The columns of all rows, in order of appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))


def _write_parquet(path: Path, rows: Sequence[Cells]) -> None:
    import pyarrow  # slow to import, and few files need it
    from pyarrow import parquet

    blank: Cells = dict.fromkeys(_all_columns(rows))
    parquet.write_table(pyarrow.Table.from_pylist([blank | row for row in rows]), path)


_READERS: dict[str, Callable[[BinaryIO], Rows]] = {
    ".arrow": _parse_arrow,
    ".jsonl": json_rows,
    ".json": _parse_json,
    ".csv": _parse_csv,
    ".parquet": _parse_parquet,
}
_WRITERS: dict[str, Callable[[Path, Sequence[Cells]], None]] = {
    ".jsonl": _write_jsonl,
    ".json": _write_json,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}
