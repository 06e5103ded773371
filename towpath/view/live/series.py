"""metrics.jsonl as columns in memory, brought up to date by what was added."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import json as arrow_json

from towpath.store.jsonl import Following, rows
from towpath.view.live.columns import Columns, Told, of_rows

PHASES = ("train", "validation")
BULK = 1 << 20
"""Bytes above which Arrow reads: four times as quick as Python, and slower to begin."""
LONGEST = 1 << 30


class Metrics:
    """The numbers of one stage: training and validation."""

    def __init__(self, path: Path) -> None:
        self._following = Following(path)
        self.train = Columns()
        self.validation = Columns()
        self.generation = 0
        """Goes up when rows that were told are no longer so; what was shown of them is to be asked for anew."""

    def refresh(self) -> None:
        """Read what was added."""
        told, again = self._following.read()
        if again:
            self.train = Columns()
            self.validation = Columns()
            self.generation += 1
        changed = [self.of(phase).add((steps + 1, columns)) for phase, (steps, columns) in _by_phase(told)]
        self.generation += any(changed) and not again

    def of(self, phase: str) -> Columns:
        """The numbers of one phase."""
        return self.train if phase == "train" else self.validation


def _by_phase(told: bytes) -> Iterator[tuple[str, Told]]:
    table = _table(told) if len(told) > BULK else None
    if table is not None:
        yield from _of_table(table)
        return
    found = rows(told)
    for phase in PHASES:
        yield phase, of_rows(row for row in found if row.get("phase", "train") == phase)


def _table(told: bytes) -> pa.Table | None:
    """Many lines at once; None where a line is not whole, or a name holds a number here and a word there."""
    try:
        return arrow_json.read_json(
            pa.BufferReader(told),
            read_options=arrow_json.ReadOptions(block_size=min(max(BULK * 4, len(told) // 64), LONGEST)),
        )
    except pa.ArrowInvalid:
        return None


def _of_table(table: pa.Table) -> Iterator[tuple[str, Told]]:
    if "step" not in table.column_names or not _numeric(table["step"].type):
        return
    steps = table["step"].to_numpy().astype(np.float64)
    said = table["phase"].to_numpy() if "phase" in table.column_names else np.full(len(steps), None, dtype=object)
    columns = {
        name: _values(table[name]) for name in table.column_names if name != "step" and _numeric(table[name].type)
    }
    for phase in PHASES:
        kept = np.isfinite(steps) & ((said == phase) | ((said == None) & (phase == "train")))  # noqa: E711
        told = {name: values[kept] for name, values in columns.items()}
        yield (
            phase,
            (
                steps[kept].astype(np.int64),
                {name: values for name, values in told.items() if not np.isnan(values).all()},
            ),
        )


def _values(column: pa.ChunkedArray) -> np.ndarray:
    """Values; what was told and is no number is kept as infinite, as of single rows."""
    values = column.to_numpy().astype(np.float64)
    nothing = np.isnan(values)
    if nothing.any():
        values[nothing & ~column.is_null().to_numpy()] = np.inf
    return values


def _numeric(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)
