"""Rows of CSV, JSON lines and JSON: exports of Weights & Biases, verl's file logger, and other tables."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from towpath.errors import DataError
from towpath.store import jsonl
from towpath.view.foreign import trainer_state
from towpath.view.foreign.log import RawLog

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")
MAX_BYTES = 2**31
MIN_GAPS = 3
"""Gaps of NaN between numbers from which NaN is read as an empty cell."""


def read(path: Path) -> RawLog:
    """The rows of a file with one of these suffixes."""
    text = _text(path)
    if path.suffix in (".csv", ".tsv"):
        rows = _csv(path, text)
        gaps = sorted(_gaps(rows))
        notes = (f"NaN between numbers is read as an empty cell: {', '.join(gaps)}",) if gaps else ()
        return RawLog(
            str(path),
            [{name: cell for name, cell in row.items() if name not in gaps or not _is_nan(cell)} for row in rows],
            {},
            notes,
        )
    if path.suffix in (".jsonl", ".ndjson"):
        return RawLog(str(path), _json_lines(path, text))
    return _json(path, text)


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(
                f"{path}: {path.stat().st_size / 2**30:.1f} GiB", "a log of at most 2 GiB", "export fewer columns"
            )
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}", "a file that can be read", "fix the path or the permissions"
        ) from None
    if not text.strip():
        raise DataError(
            f"{path}: empty", "a log has rows of steps and numbers", "wait until the first log, or name another file"
        )
    return text


def _json_lines(path: Path, text: str) -> list[dict[str, Any]]:
    """One object a line; a truncated last line is left out."""
    rows, damage = jsonl.parse(text.encode("utf-8", "surrogatepass"))
    if damage and damage.lines_after:
        rule = "one JSON object a line"
        raise DataError(f"{path}, line {damage.number}: {damage.reason}", rule, "fix the line, or remove it")
    return [_flatten(row) for row in rows]


def _json(path: Path, text: str) -> RawLog:
    try:
        content = json.loads(text)
    except ValueError as error:
        fix = "it may be incomplete: name the one of an earlier checkpoint, or its TensorBoard files"
        raise DataError(f"{path}: {error}", "a complete JSON file", fix) from None
    if isinstance(content, dict) and "log_history" in content:
        return trainer_state.raw_log(str(path), content)
    if isinstance(content, dict):
        content = list(_rows_of_columns(content)) or content
    if not isinstance(content, list) or not any(isinstance(row, dict) for row in content):
        rule = "trainer_state.json, a list of rows, or columns of equal length"
        raise DataError(
            f"{path}: {type(content).__name__} without rows", rule, "export the history as CSV or JSON lines"
        )
    return RawLog(str(path), [_flatten(row) for row in content if isinstance(row, dict)])


def _rows_of_columns(content: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of a table that is stored by column, each a list, or a dictionary by row."""
    columns = {name: column for name, column in content.items() if isinstance(column, list | dict)}
    if not columns or len(columns) < len(content):
        return
    if all(isinstance(column, list) for column in columns.values()):
        for index in range(max(map(len, columns.values()))):
            yield {name: column[index] for name, column in columns.items() if index < len(column)}
    elif all(isinstance(column, dict) for column in columns.values()):
        for key in dict.fromkeys(key for column in columns.values() for key in column):
            yield {name: column[key] for name, column in columns.items() if key in column}


def _flatten(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A row without nesting: `{"a": {"b": 1}}` is `{"a/b": 1}`; verl nests all numbers under `data`."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            flat |= _flatten(value, prefix if name == "data" and not prefix else f"{prefix}{name}/")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _csv(path: Path, text: str) -> list[dict[str, Any]]:
    head = text.lstrip().split("\n", 1)[0]
    delimiter = max(",\t;", key=head.count)
    try:
        reader = csv.DictReader(io.StringIO(text.lstrip(), newline=""), delimiter=delimiter)
        rows = [{name: cell for name, cell in row.items() if isinstance(name, str) and cell} for row in reader]
    except csv.Error as error:
        raise DataError(f"{path}: {error}", "a CSV file with a header", "export it again") from None
    if not rows:
        raise DataError(
            f"{path}: a header and no rows",
            "a log has rows of steps and numbers",
            "wait until the first log, or name another file",
        )
    return _single_run(path, rows, reader.fieldnames or [])


def _single_run(path: Path, rows: list[dict[str, Any]], header: Sequence[str]) -> list[dict[str, Any]]:
    """Rows without the run's name in the columns of a Weights & Biases panel, which are RUN - METRIC."""
    runs = {name.partition(" - ")[0] for name in header if " - " in name}
    if len(runs) > 1:
        rule = "the log of one run"
        fix = f"export one of {', '.join(sorted(runs)[:5])}"
        raise DataError(f"{path}: {len(runs)} runs in one table", rule, fix)
    return [{name.partition(" - ")[2] or name: cell for name, cell in row.items()} for row in rows]


def _gaps(rows: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """Columns in which NaN comes and goes, which tables write for missing values; of a broken run NaN stays."""
    for name in dict.fromkeys(name for row in rows for name in row):
        cells = [_is_nan(row[name]) for row in rows if name in row]
        if sum(before and not now for before, now in pairwise(cells)) >= MIN_GAPS:
            yield name


def _is_nan(cell: str) -> bool:
    return cell.strip().lower() == "nan"
