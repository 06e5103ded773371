"""Read and write files of rows: JSON lines, JSON, CSV, Parquet. Rows come with their line number."""

import gzip
import json
import secrets
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from towpath.errors import DataError
from towpath.store.exchange import csv_rows, json_rows, write_csv

Cells = dict[str, Any]
Rows = Iterator[tuple[int, Cells | str]]
"""A string instead of a row is the reason why there is none."""

_SPACE = " \t\r\n"


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


def read_rows(path: Path) -> Rows:
    """Each row of a file with its line, or its number in Parquet."""
    return parse_rows(path, read_bytes(path))


def read_bytes(path: Path) -> bytes:
    """The raw bytes of a file."""
    if not is_supported(path):
        raise DataError(
            f"{path}: files of type {file_type(path) or '(none)'} are not read",
            "one of " + ", ".join(_READERS),
            "convert it",
        )
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}", "the file must be readable", "fix its permissions") from None


def parse_rows(path: Path, content: bytes) -> Rows:
    """The rows in the bytes of a file, by the type of its name."""
    try:
        decompressed = gzip.decompress(content) if path.suffix.lower() == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: {error}", "the file must be readable", "fix the file") from None
    return _READERS[file_type(path)](decompressed)


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


def _parse_csv(content: bytes) -> Rows:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        return iter([(line, "not UTF-8; no row of this file was read")])
    return csv_rows(text, short_rows=False)


def _parse_json(content: bytes) -> Rows:
    """A JSON list of objects, or JSON lines in a file named .json."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return json_rows(content)
    return _parse_json_list(text) if text.lstrip(_SPACE).startswith("[") else json_rows(content)


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


def _parse_parquet(content: bytes) -> Rows:
    import pyarrow  # slow to import, and few files need it
    from pyarrow import parquet

    number = 0
    try:
        file = parquet.ParquetFile(pyarrow.BufferReader(content))
        names = file.schema_arrow.names
        if twice := next((name for name in names if names.count(name) > 1), None):
            yield 1, f"two columns are named {twice!r}; no row of this file was read"
            return
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        yield (
            number + 1,
            f"not Parquet: {(str(error).splitlines() or ['unreadable'])[0]}; the rows from here on were not read",
        )


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


_READERS: dict[str, Callable[[bytes], Rows]] = {
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
