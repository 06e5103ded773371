"""Numbers by step, in arrays that grow."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

Told = tuple[np.ndarray, dict[str, np.ndarray]]
"""Steps, and the values of each name at these steps; where nothing was told the value is not a number."""


class Columns:
    """The rows of one phase, sorted by step. Of what is told again from a step on, the later counts."""

    def __init__(self) -> None:
        self.count = 0
        self._steps = np.empty(0, dtype=np.int64)
        self._values: dict[str, np.ndarray] = {}

    @property
    def steps(self) -> np.ndarray:
        """The steps told so far."""
        return self._steps[: self.count]

    @property
    def names(self) -> list[str]:
        """Names in the order in which they were first told."""
        return list(self._values)

    @property
    def last(self) -> int:
        """The last step, 0 before the first."""
        return int(self._steps[self.count - 1]) if self.count else 0

    def values(self, name: str) -> np.ndarray:
        """The values of a name at every step; not numbers where it was not told."""
        return self._values[name][: self.count] if name in self._values else np.full(self.count, np.nan)

    def between(self, low: int, high: int) -> slice:
        """Where the steps from `low` to `high` lie."""
        first, end = np.searchsorted(self.steps, [low, high + 1])
        return slice(int(first), int(end))

    def row(self, position: int) -> dict[str, float]:
        """What was told at one place."""
        found = {name: float(values[position]) for name, values in self._values.items()}
        return {name: value for name, value in found.items() if not np.isnan(value)}

    def add(self, told: Told) -> bool:
        """Append rows; True when they took the place of earlier ones."""
        steps, columns = told
        if not len(steps):
            return False
        begin = self.count
        self.count = self.count + len(steps)
        self._grow(columns)
        self._steps[begin : self.count] = steps
        for name, values in self._values.items():
            values[begin : self.count] = columns.get(name, np.nan)
        return self._drop_superseded(begin)

    def _grow(self, columns: Iterable[str]) -> None:
        room = len(self._steps)
        if self.count > room:
            room = max(self.count, 2 * room, 256)
            self._steps = np.concatenate([self._steps, np.zeros(room - len(self._steps), dtype=np.int64)])
            for name, values in self._values.items():
                self._values[name] = np.concatenate([values, np.full(room - len(values), np.nan)])
        for name in columns:
            if name not in self._values:
                self._values[name] = np.full(room, np.nan)

    def _drop_superseded(self, begin: int) -> bool:
        """Leave out every row that a later row, of the same or an earlier step, has taken the place of."""
        steps = self.steps
        if not np.any(steps[max(begin, 1) :] <= steps[max(begin, 1) - 1 : -1]):
            return False
        least_after = np.minimum.accumulate(steps[::-1])[::-1][1:]
        kept = np.append(steps[:-1] < least_after, True)
        self.count, before = int(kept.sum()), self.count
        for values in (self._steps, *self._values.values()):
            values[: self.count] = values[:before][kept]
        return True


def of_rows(rows: Iterable[Mapping[str, Any]]) -> Told:
    """Rows with `step` as columns; what is no number is left out."""
    kept = [row for row in rows if _is_number(row.get("step"))]
    names = dict.fromkeys(name for row in kept for name, value in row.items() if name != "step" and _is_number(value))
    steps = np.array([int(row["step"]) for row in kept], dtype=np.int64)
    columns = {name: np.array([_number(row.get(name)) for row in kept]) for name in names}
    return steps, columns


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any) -> float:
    """A value; one that was told and is no number is kept as infinite, so that it differs from what was never told."""
    if not _is_number(value):
        return np.nan
    return float(value) if value == value else np.inf
