"""Rows of CSV, JSON lines and JSON: exports of Weights & Biases, verl's file logger, and tables of one's own."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from towpath.errors import DataError
from towpath.view.foreign import trainer_state
from towpath.view.foreign.log import Raw

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")
LARGEST = 2**31
RETURNS = 3
"""Times that numbers come back after NaN, from which on NaN is an empty cell."""


def read(path: Path) -> Raw:
    """The rows of a file of one of the kinds above."""
    text = _text(path)
    if path.suffix in (".csv", ".tsv"):
        rows = _csv(path, text)
        gaps = sorted(_gaps(rows))
        notes = (f"NaN between numbers is taken for an empty cell: {', '.join(gaps)}",) if gaps else ()
        return Raw(
            str(path),
            [{name: cell for name, cell in row.items() if name not in gaps or not _is_nan(cell)} for row in rows],
            {},
            notes,
        )
    if path.suffix in (".jsonl", ".ndjson"):
        return Raw(str(path), json_lines(path, text))
    return _json(path, text)


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST:
            raise DataError(
                f"{path}: {path.stat().st_size / 2**30:.1f} GiB", "a log of at most 2 GiB", "export fewer columns"
            )
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}", "a file that can be read", "mend the path or the rights") from None
    if not text.strip():
        raise DataError(
            f"{path}: empty", "a log has rows of steps and numbers", "wait until the first log, or name another file"
        )
    return text


def json_lines(path: Path, text: str | None = None) -> list[dict[str, Any]]:
    """One object a line; a last line that is torn is still being written and is left out."""
    # Not splitlines(): JSON may hold the other line ends of Unicode inside its strings.
    lines = (_text(path) if text is None else text).split("\n")
    rows: list[dict[str, Any]] = []
    for place, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if any(rest.strip() for rest in lines[place:]):
                raise DataError(
                    f"{path}, line {place}: {error}", "one JSON object a line", "mend the line, or leave it out"
                ) from None
            break
        if isinstance(row, dict):
            rows.append(_flat(row))
    return rows


def _json(path: Path, text: str) -> Raw:
    try:
        content = json.loads(text)
    except ValueError as error:
        fix = (
            "it may still be written, or its writing was cut short: name the one of an earlier checkpoint, or its "
            "TensorBoard files"
        )
        raise DataError(f"{path}: {error}", "a whole JSON file", fix) from None
    if isinstance(content, dict) and "log_history" in content:
        return trainer_state.raw(str(path), content)
    if isinstance(content, dict):
        content = list(_of_columns(content)) or content
    if not isinstance(content, list) or not any(isinstance(row, dict) for row in content):
        rule = "trainer_state.json, a list of rows, or columns of equal length"
        raise DataError(
            f"{path}: {type(content).__name__} without rows", rule, "export the history as CSV or JSON lines"
        )
    return Raw(str(path), [_flat(row) for row in content if isinstance(row, dict)])


def _of_columns(content: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of a table written column by column, each a list, or a dictionary by row."""
    columns = {name: column for name, column in content.items() if isinstance(column, list | dict)}
    if not columns or len(columns) < len(content):
        return
    if all(isinstance(column, list) for column in columns.values()):
        for place in range(max(map(len, columns.values()))):
            yield {name: column[place] for name, column in columns.items() if place < len(column)}
    elif all(isinstance(column, dict) for column in columns.values()):
        for key in dict.fromkeys(key for column in columns.values() for key in column):
            yield {name: column[key] for name, column in columns.items() if key in column}


def _flat(row: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """A row without tables inside: `{"a": {"b": 1}}` is `{"a/b": 1}`; verl puts all numbers under `data`."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            found |= _flat(value, before if name == "data" and not before else f"{before}{name}/")
        else:
            found[f"{before}{name}"] = value
    return found


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
    return _of_one_run(path, rows, reader.fieldnames or [])


def _of_one_run(path: Path, rows: list[dict[str, Any]], header: Sequence[str]) -> list[dict[str, Any]]:
    """A panel of Weights & Biases names its columns RUN - METRIC: the run's name is left out where it is one run."""
    runs = {name.partition(" - ")[0] for name in header if " - " in name}
    if len(runs) > 1:
        rule = "the log of one run"
        fix = f"export one of {', '.join(sorted(runs)[:5])}"
        raise DataError(f"{path}: {len(runs)} runs in one table", rule, fix)
    return [{name.partition(" - ")[2] or name: cell for name, cell in row.items()} for row in rows]


def _gaps(rows: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """Columns in which NaN comes and goes: tables write so what was not logged at a step. Where training broke, it
    stays."""
    for name in dict.fromkeys(name for row in rows for name in row):
        cells = [_is_nan(row[name]) for row in rows if name in row]
        if sum(before and not now for before, now in pairwise(cells)) >= RETURNS:
            yield name


def _is_nan(cell: str) -> bool:
    return cell.strip().lower() == "nan"
