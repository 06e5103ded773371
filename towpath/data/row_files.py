"""Rows of files with the line each begins on, and rows into files: JSON lines, JSON, CSV, Parquet."""

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
"""A string in place of a row says why there is none."""

_SPACE = " \t\r\n"


class UnusableRow(Exception):
    """Why a row cannot be used."""


def list_files(path: Path) -> list[Path]:
    """The file itself, or those of a folder that can be read, in order of their names."""
    if path.is_dir():
        found = sorted(inner for inner in path.rglob("*") if inner.is_file() and file_type(inner) in _READERS)
        if not found:
            raise DataError(
                f"{path}: no file to read in this folder",
                "one of " + ", ".join(_READERS),
                "convert the files, or name another folder",
            )
        return found
    if not path.is_file():
        raise DataError(f"{path}: no such file", "rows come from a file or a folder of files", "mend the path")
    return [path]


def file_type(path: Path) -> str:
    """What a file holds by its name; `.gz` does not count."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def read_rows(path: Path) -> Rows:
    """Each row of a file with the line, or in Parquet the number, it has there."""
    return parse_rows(path, read_bytes(path))


def read_bytes(path: Path) -> bytes:
    """The bytes of a file of rows, as they are on disk."""
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
    """The rows in the bytes of a file whose name says of what kind they are."""
    try:
        plain = gzip.decompress(content) if path.suffix.lower() == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: {error}", "the file must be readable", "fix the file") from None
    return _READERS[file_type(path)](plain)


def is_supported(path: Path) -> bool:
    """Whether files of this type are read."""
    return file_type(path) in _READERS


def json_type(value: Any) -> str:
    """What a cell holds in place of what was expected."""
    names = {dict: "an object", list: "a list", bool: "true/false", str: "text", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def write_rows(path: Path, found: Sequence[Cells]) -> None:
    """Rows with the same columns into a file that is there whole or not at all."""
    put = _WRITERS.get(path.suffix.lower())
    if put is None:
        raise DataError(
            f"{path}: files of type {path.suffix or '(none)'} are not written",
            "one of " + ", ".join(_WRITERS),
            "name it so",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.tmp-{secrets.token_hex(4)}")
    try:
        put(aside, found)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _csv(content: bytes) -> Rows:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        return iter([(line, "not UTF-8; no row of this file was read")])
    return csv_rows(text, short_rows=False)


def _json(content: bytes) -> Rows:
    """A list of objects; what does not begin like a list is read as JSON lines, which many call .json."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return json_rows(content)
    return _listed(text) if text.lstrip(_SPACE).startswith("[") else json_rows(content)


def _listed(text: str) -> Rows:
    decoder = json.JSONDecoder()
    line = 1
    counted = 0
    place = text.index("[") + 1
    while True:
        place = _past(text, place)
        line = line + text.count("\n", counted, place)
        counted = place
        if text[place : place + 1] == "]":
            if _past(text, place + 1) < len(text):
                yield line, "text after the end of the list; it was not read"
            return
        try:
            row, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            yield line, f"not JSON: {getattr(error, 'msg', 'too deep')}; the rows from here on were not read"
            return
        yield line, row if isinstance(row, dict) else "not an object"
        place = _past(text, place)
        if text[place : place + 1] == ",":
            place += 1
        elif text[place : place + 1] != "]":
            yield (
                line + text.count("\n", counted, place),
                "not JSON: the list goes on without a comma; the rows from here on were not read",
            )
            return


def _past(text: str, place: int) -> int:
    while text[place : place + 1] and text[place] in _SPACE:
        place += 1
    return place


def _parquet(content: bytes) -> Rows:
    import pyarrow  # slow to import, and few files need it
    from pyarrow import parquet

    number = 0
    try:
        file = parquet.ParquetFile(pyarrow.BufferReader(content))
        names = file.schema_arrow.names
        if twice := next((name for name in names if names.count(name) > 1), None):
            yield 1, f"two columns are called {twice!r}; no row of this file was read"
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


def _put_jsonl(path: Path, found: Iterable[Cells]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in found)


def _put_json(path: Path, found: Iterable[Cells]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write("[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in found) + "\n]\n")


def _put_csv(path: Path, found: Sequence[Cells]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        write_csv(file, found, list(found[0]) if found else [])


def _put_parquet(path: Path, found: Sequence[Cells]) -> None:
    import pyarrow  # slow to import, and few files need it
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(list(found)), path)


_READERS: dict[str, Callable[[bytes], Rows]] = {".jsonl": json_rows, ".json": _json, ".csv": _csv, ".parquet": _parquet}
_WRITERS: dict[str, Callable[[Path, Sequence[Cells]], None]] = {
    ".jsonl": _put_jsonl,
    ".json": _put_json,
    ".csv": _put_csv,
    ".parquet": _put_parquet,
}
