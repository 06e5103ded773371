"""A run as numbers: what every step and every look at held-out prompts said, and the settings it ran with."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Curve:
    """One number over the steps at which it was told."""

    steps: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.steps)

    def after(self, step: int) -> "Curve":
        """What was told after this step."""
        seen = self.steps > step
        return Curve(self.steps[seen], self.values[seen])

    def until(self, step: int) -> "Curve":
        """What had been told when this step ended."""
        seen = self.steps <= step
        return Curve(self.steps[seen], self.values[seen])


EMPTY = Curve(np.array([], dtype=int), np.array([]))


@dataclass(frozen=True)
class History:
    """Curves of training and of validation by name, and facts: recipe keys with their values, and results of earlier
    stages."""

    train: Mapping[str, Curve] = field(default_factory=dict)
    looks: Mapping[str, Curve] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def curve(self, name: str) -> Curve:
        """A number of training; empty where it was never told."""
        return self.train.get(name, EMPTY)

    def look(self, name: str) -> Curve:
        """A number of validation; empty where it was never told."""
        return self.looks.get(name, EMPTY)

    def family(self, prefix: str) -> dict[str, Curve]:
        """Curves of training whose names begin so, by what follows: `reward/` by domain."""
        return {name.removeprefix(prefix): curve for name, curve in self.train.items() if name.startswith(prefix)}

    @property
    def steps(self) -> int:
        """Steps of training so far."""
        return max((int(curve.steps[-1]) + 1 for curve in self.train.values() if len(curve)), default=0)

    def after(self, step: int) -> "History":
        """What was told after this step."""
        train, looks = (
            {name: curve.after(step) for name, curve in curves.items()} for curves in (self.train, self.looks)
        )
        return History(train, looks, self.facts)

    def until(self, step: int) -> "History":
        """The history as it stood when this step ended."""
        train, looks = (
            {name: curve.until(step) for name, curve in curves.items()} for curves in (self.train, self.looks)
        )
        return History(train, looks, self.facts)


def of(rows: Iterable[Mapping[str, Any]], facts: Mapping[str, Any] | None = None) -> History:
    """A history of rows as metrics.jsonl has them: `step`, `phase`, and numbers. Of two rows for one step and phase
    the later counts.

    What is no number is left out; infinities and not-a-numbers are kept: they are evidence.

    """
    kept: dict[str, dict[int, Mapping[str, Any]]] = {"train": {}, "validation": {}}
    for row in rows:
        if row.get("phase", "train") in kept and isinstance(row.get("step"), int | float):
            kept[row.get("phase", "train")][int(row["step"])] = row
    return History(_curves(kept["train"]), _curves(kept["validation"]), dict(facts or {}))


def _curves(rows: Mapping[int, Mapping[str, Any]]) -> dict[str, Curve]:
    points: dict[str, list[tuple[int, float]]] = {}
    for step in sorted(rows):
        for name, value in rows[step].items():
            if name not in ("step", "phase") and isinstance(value, int | float) and not isinstance(value, bool):
                points.setdefault(name, []).append((step, float(value)))
    return {
        name: Curve(np.array([s for s, _ in told]), np.array([v for _, v in told])) for name, told in points.items()
    }


class _Column:
    """One number as it grows; room is doubled, so that adding is cheap and reading costs nothing."""

    def __init__(self) -> None:
        self.steps = np.empty(64, dtype=int)
        self.values = np.empty(64)
        self.count = 0

    def add(self, step: int, value: float) -> None:
        if self.count and self.steps[self.count - 1] == step:
            self.count -= 1  # told anew
        if self.count == len(self.steps):
            self.steps = np.resize(self.steps, 2 * self.count)
            self.values = np.resize(self.values, 2 * self.count)
        self.steps[self.count], self.values[self.count] = step, value
        self.count += 1

    def curve(self) -> Curve:
        return Curve(self.steps[: self.count], self.values[: self.count])


class Recorder:
    """A history that grows row by row while training goes on."""

    def __init__(self, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self._columns: dict[str, dict[str, _Column]] = {"train": {}, "validation": {}}
        for row in rows:
            self.add(int(row["step"]), str(row["phase"]), row)

    def add(self, step: int, phase: str, numbers: Mapping[str, Any]) -> None:
        """One row."""
        columns = self._columns.setdefault(phase, {})
        for name, value in numbers.items():
            if name not in ("step", "phase") and isinstance(value, int | float):
                columns.setdefault(name, _Column()).add(step, float(value))

    def history(self, facts: Mapping[str, Any] | None = None) -> History:
        """All of it so far."""
        train, looks = (
            {name: column.curve() for name, column in self._columns[phase].items()} for phase in ("train", "validation")
        )
        return History(train, looks, dict(facts or {}))
