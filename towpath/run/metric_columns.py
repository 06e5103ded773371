"""metrics.jsonl as columns in memory, updated with the rows that are appended."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pyarrow import json as arrow_json

from towpath.store.jsonl import JsonlTail, objects

Phase = Literal["train", "validation"]
PHASES: tuple[Phase, ...] = ("train", "validation")
Rows = tuple[np.ndarray, dict[str, np.ndarray]]
"""Steps, and the values of each metric at these steps; NaN where a step has no value."""
ARROW_BYTES = 1 << 20
"""Bytes from which Arrow parses: four times as fast as Python, but slower to start."""
MAX_BLOCK_BYTES = 1 << 30


class Columns:
    """The rows of one phase, sorted by step. Rows of a repeated step replace the earlier ones and those after it."""

    def __init__(self) -> None:
        self.count = 0
        self._steps = np.empty(0, dtype=np.int64)
        self._values: dict[str, np.ndarray] = {}

    @property
    def steps(self) -> np.ndarray:
        """The steps of all rows."""
        return self._steps[: self.count]

    @property
    def names(self) -> list[str]:
        """Names of metrics in the order of their first row."""
        return list(self._values)

    @property
    def last(self) -> int:
        """The last step, 0 if there is no row."""
        return int(self._steps[self.count - 1]) if self.count else 0

    def values(self, name: str) -> np.ndarray:
        """The values of a metric at every step, NaN where it has none."""
        return self._values[name][: self.count] if name in self._values else np.full(self.count, np.nan)

    def between(self, low: int, high: int) -> slice:
        """The positions of the steps from `low` to `high`."""
        start, end = np.searchsorted(self.steps, [low, high + 1])
        return slice(int(start), int(end))

    def row(self, position: int) -> dict[str, float]:
        """The values of one row."""
        row = {name: float(values[position]) for name, values in self._values.items()}
        return {name: value for name, value in row.items() if not np.isnan(value)}

    def add(self, rows: Rows) -> bool:
        """Append rows; True if they replace earlier ones."""
        steps, columns = rows
        if not len(steps):
            return False
        start = self.count
        self.count = self.count + len(steps)
        self._grow(columns)
        self._steps[start : self.count] = steps
        for name, values in self._values.items():
            values[start : self.count] = columns.get(name, np.nan)
        return self._drop_replaced(start)

    def _grow(self, columns: Iterable[str]) -> None:
        size = len(self._steps)
        if self.count > size:
            size = max(self.count, 2 * size, 256)
            self._steps = np.concatenate([self._steps, np.zeros(size - len(self._steps), dtype=np.int64)])
            for name, values in self._values.items():
                self._values[name] = np.concatenate([values, np.full(size - len(values), np.nan)])
        for name in columns:
            if name not in self._values:
                self._values[name] = np.full(size, np.nan)

    def _drop_replaced(self, start: int) -> bool:
        """Remove each row that is followed by a row of the same or an earlier step."""
        steps = self.steps
        if not np.any(steps[max(start, 1) :] <= steps[max(start, 1) - 1 : -1]):
            return False
        least_after = np.minimum.accumulate(steps[::-1])[::-1][1:]
        keep = np.append(steps[:-1] < least_after, True)
        before = self.count
        self.count = int(keep.sum())
        for values in (self._steps, *self._values.values()):
            values[: self.count] = values[:before][keep]
        return True


class MetricColumns:
    """The metrics of one stage, of training and of validation."""

    def __init__(self, path: Path) -> None:
        self._tail = JsonlTail(path)
        self.train = Columns()
        self.validation = Columns()
        self.generation = 0
        """Incremented when rows that were read before are removed or replaced: what shows them must start again."""

    def refresh(self) -> None:
        """Read the rows that were appended."""
        data, replaced = self._tail.read()
        if replaced:
            self.train = Columns()
            self.validation = Columns()
            self.generation += 1
        changed = [self.of_phase(phase).add((steps + 1, columns)) for phase, (steps, columns) in _by_phase(data)]
        self.generation += any(changed) and not replaced

    def of_phase(self, phase: Phase) -> Columns:
        """The metrics of one phase."""
        return self.train if phase == "train" else self.validation


def to_columns(rows: Iterable[Mapping[str, Any]]) -> Rows:
    """Rows with `step` as columns; values that are no numbers are left out."""
    rows = [row for row in rows if _is_number(row.get("step"))]
    names = dict.fromkeys(name for row in rows for name, value in row.items() if name != "step" and _is_number(value))
    steps = np.array([int(row["step"]) for row in rows], dtype=np.int64)
    return steps, {name: np.array([_number(row.get(name)) for row in rows]) for name in names}


def _by_phase(data: bytes) -> Iterator[tuple[Phase, Rows]]:
    table = _arrow_table(data) if len(data) > ARROW_BYTES else None
    if table is not None:
        yield from _table_by_phase(table)
        return
    rows = objects(data)
    for phase in PHASES:
        yield phase, to_columns(row for row in rows if row.get("phase", "train") == phase)


def _arrow_table(data: bytes) -> pa.Table | None:
    """Many lines parsed at once; None if a line is damaged, or a name has a number here and a text there."""
    block_size = min(max(ARROW_BYTES * 4, len(data) // 64), MAX_BLOCK_BYTES)
    try:
        return arrow_json.read_json(pa.BufferReader(data), read_options=arrow_json.ReadOptions(block_size=block_size))
    except pa.ArrowInvalid:
        return None


def _table_by_phase(table: pa.Table) -> Iterator[tuple[Phase, Rows]]:
    if "step" not in table.column_names or not _is_numeric(table["step"].type):
        return
    steps = table["step"].to_numpy().astype(np.float64)
    phases = table["phase"].to_numpy() if "phase" in table.column_names else np.full(len(steps), None, dtype=object)
    columns = {
        name: _arrow_values(table[name])
        for name in table.column_names
        if name != "step" and _is_numeric(table[name].type)
    }
    for phase in PHASES:
        in_phase = (phases == phase) | ((phases == None) & (phase == "train"))  # noqa: E711
        keep = np.isfinite(steps) & in_phase
        values = {name: column[keep] for name, column in columns.items()}
        present = {name: column for name, column in values.items() if not np.isnan(column).all()}
        yield phase, (steps[keep].astype(np.int64), present)


def _arrow_values(column: pa.ChunkedArray) -> np.ndarray:
    """Values; a logged NaN becomes infinite, to differ from a missing value."""
    values = column.to_numpy().astype(np.float64)
    nan = np.isnan(values)
    if nan.any():
        values[nan & ~column.is_null().to_numpy()] = np.inf
    return values


def _is_numeric(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any) -> float:
    """A value; NaN for a missing one, infinite for a logged NaN."""
    if not _is_number(value):
        return np.nan
    return float(value) if value == value else np.inf
