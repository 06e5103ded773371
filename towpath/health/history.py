"""Metric history of a run: curves of training and validation by name, and facts such as recipe settings."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Curve:
    """The values of one metric, with their steps."""

    steps: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.steps)

    def after(self, step: int) -> "Curve":
        """The part after this step."""
        later = self.steps > step
        return Curve(self.steps[later], self.values[later])

    def until(self, step: int) -> "Curve":
        """The part up to and including this step."""
        earlier = self.steps <= step
        return Curve(self.steps[earlier], self.values[earlier])


EMPTY = Curve(np.array([], dtype=int), np.array([]))
Curves = Mapping[str, Curve]


@dataclass(frozen=True)
class History:
    """Curves of training and of validation, and facts: recipe settings by dotted key, and results of earlier stages."""

    train: Curves = field(default_factory=dict)
    validation: Curves = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def curve(self, name: str) -> Curve:
        """A metric of training; empty if it has no values."""
        return self.train.get(name, EMPTY)

    def validation_curve(self, name: str) -> Curve:
        """A metric of validation; empty if it has no values."""
        return self.validation.get(name, EMPTY)

    def family(self, prefix: str) -> dict[str, Curve]:
        """Metrics of training with this prefix, by the rest of their name: `reward/` by domain."""
        return {name.removeprefix(prefix): curve for name, curve in self.train.items() if name.startswith(prefix)}

    @property
    def steps(self) -> int:
        """The number of training steps."""
        return max((int(curve.steps[-1]) + 1 for curve in self.train.values() if len(curve)), default=0)

    def after(self, step: int) -> "History":
        """The history after this step."""
        train = {name: curve.after(step) for name, curve in self.train.items()}
        validation = {name: curve.after(step) for name, curve in self.validation.items()}
        return History(train, validation, self.facts)

    def until(self, step: int) -> "History":
        """The history as it was when this step ended."""
        train = {name: curve.until(step) for name, curve in self.train.items()}
        validation = {name: curve.until(step) for name, curve in self.validation.items()}
        return History(train, validation, self.facts)


def history_from_rows(rows: Iterable[Mapping[str, Any]], facts: Mapping[str, Any] | None = None) -> History:
    """A history from rows of metrics.jsonl; of two rows for one step and phase the later counts. Values that are no
    numbers are left out; infinities and NaN are kept, because they are evidence."""
    by_phase: dict[str, dict[int, Mapping[str, Any]]] = {"train": {}, "validation": {}}
    for row in rows:
        if row.get("phase", "train") in by_phase and isinstance(row.get("step"), int | float):
            by_phase[row.get("phase", "train")][int(row["step"])] = row
    return History(_curves(by_phase["train"]), _curves(by_phase["validation"]), dict(facts or {}))


def _curves(rows: Mapping[int, Mapping[str, Any]]) -> dict[str, Curve]:
    points: dict[str, list[tuple[int, float]]] = {}
    for step in sorted(rows):
        for name, value in rows[step].items():
            if name not in ("step", "phase") and isinstance(value, int | float) and not isinstance(value, bool):
                points.setdefault(name, []).append((step, float(value)))
    return {name: Curve(np.array([s for s, _ in pts]), np.array([v for _, v in pts])) for name, pts in points.items()}


class _GrowingCurve:
    """A curve that grows; its arrays double in size, so that adding is cheap and reading copies nothing."""

    def __init__(self) -> None:
        self.steps = np.empty(64, dtype=int)
        self.values = np.empty(64)
        self.count = 0

    def add(self, step: int, value: float) -> None:
        if self.count and self.steps[self.count - 1] == step:
            self.count -= 1  # the later value counts
        if self.count == len(self.steps):
            self.steps = np.resize(self.steps, 2 * self.count)
            self.values = np.resize(self.values, 2 * self.count)
        self.steps[self.count] = step
        self.values[self.count] = value
        self.count += 1

    def curve(self) -> Curve:
        return Curve(self.steps[: self.count], self.values[: self.count])


class Recorder:
    """A history that grows row by row during training."""

    def __init__(self, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self._curves: dict[str, dict[str, _GrowingCurve]] = {"train": {}, "validation": {}}
        for row in rows:
            self.add(int(row["step"]), str(row["phase"]), row)

    def add(self, step: int, phase: str, metrics: Mapping[str, Any]) -> None:
        """Add one row."""
        curves = self._curves.setdefault(phase, {})
        for name, value in metrics.items():
            if name not in ("step", "phase") and isinstance(value, int | float):
                curves.setdefault(name, _GrowingCurve()).add(step, float(value))

    def history(self, facts: Mapping[str, Any] | None = None) -> History:
        """The history of all rows."""
        train = {name: curve.curve() for name, curve in self._curves["train"].items()}
        validation = {name: curve.curve() for name, curve in self._curves["validation"].items()}
        return History(train, validation, dict(facts or {}))
