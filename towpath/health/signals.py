"""What can be read off one curve: where it stands, how it moves, and by how many deviations of its own noise."""

import numpy as np

from towpath.health.history import Curve

LEAST = 3
"""Points that make a level."""


def last(values: np.ndarray, count: int = LEAST) -> float:
    """The level at the end: the median of the last points; not a number where there are none."""
    return float(np.median(values[-count:])) if len(values) else float("nan")


def first(values: np.ndarray, count: int = LEAST) -> float:
    """The level at the beginning."""
    return float(np.median(values[:count])) if len(values) else float("nan")


def start(values: np.ndarray) -> float:
    """The level before training changed anything: of short curves, which tell means of several steps, the first
    point alone."""
    return first(values, min(LEAST, max(1, len(values) // 8)))


def origin(curve: Curve) -> float:
    """The first value that was logged: of a run that is logged at every step, the one before training changed
    anything."""
    finite = curve.values[np.isfinite(curve.values)]
    return float(finite[0]) if len(finite) else float("nan")


def sustained(values: np.ndarray, count: int = LEAST) -> float:
    """The highest level that held for so many points running, at any time: the largest of their medians."""
    if len(values) < count:
        return last(values)
    return float(np.median(np.lib.stride_tricks.sliding_window_view(values, count), axis=1).max())


def window(curve: Curve) -> int:
    """Points that are taken together at either end: a quarter of the curve, at least three."""
    return max(LEAST, len(curve) // 4)


def noise(values: np.ndarray) -> float:
    """Deviation of a point about its own trend: half the spread of second differences is left of noise when a trend
    is taken out."""
    finite = values[np.isfinite(values)]
    if len(finite) < 4:
        return float("inf")
    second = finite[2:] - 2 * finite[1:-1] + finite[:-2]
    return float(np.sqrt(np.mean(second**2) / 6)) + 1e-12


def change(curve: Curve) -> tuple[float, float]:
    """From the beginning to the end of a curve: by how much, and by how many deviations of that difference."""
    values = curve.values[np.isfinite(curve.values)]
    if len(values) < 2 * LEAST:
        return 0.0, 0.0
    count = window(curve)
    moved = float(values[-count:].mean() - values[:count].mean())
    return moved, moved / (noise(values) * float(np.sqrt(2 / count)))


def lately(curve: Curve) -> tuple[float, float]:
    """From its best level to the end: by how much it has fallen, in its own units and in deviations."""
    values = curve.values[np.isfinite(curve.values)]
    count = window(curve)
    if len(values) < 3 * count:
        return 0.0, 0.0
    means = np.convolve(values, np.ones(count) / count, "valid")
    fallen = float(means[-1] - means.max())
    return fallen, fallen / (noise(values) * float(np.sqrt(2 / count)))


def since(curve: Curve, holds: np.ndarray) -> int:
    """The step from which something holds to the end; the first at which it held where it does not at the end."""
    if not holds.any():
        return int(curve.steps[-1]) if len(curve) else 0
    misses = np.flatnonzero(~holds)
    begin = 0 if not len(misses) else misses[-1] + 1
    return int(curve.steps[begin]) if begin < len(holds) else int(curve.steps[np.flatnonzero(holds)[0]])


def rolling_median(values: np.ndarray, count: int = LEAST) -> np.ndarray:
    """The median of every `count` neighbouring points."""
    if len(values) < count:
        return values[:0]
    return np.median(np.lib.stride_tricks.sliding_window_view(values, count), axis=1)


def shared(one: Curve, other: Curve) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps that two curves have in common, and the finite values of both there."""
    steps, left, right = np.intersect1d(one.steps, other.steps, return_indices=True)
    values = one.values[left]
    others = other.values[right]
    finite = np.isfinite(values) & np.isfinite(others)
    return steps[finite], values[finite], others[finite]


def slope_of_changes(one: Curve, other: Curve) -> tuple[float, float, float]:
    """How one curve goes with another from step to step, trends taken out: slope of its changes on the other's,
    correlation, deviations from 0."""
    _, values, others = shared(one, other)
    if len(values) < 4 * LEAST:
        return 0.0, 0.0, 0.0
    moved = np.diff(values)
    by = np.diff(others)
    changing = (np.abs(moved) > 0) | (np.abs(by) > 0)
    moved = moved[changing]
    by = by[changing]
    if len(by) < 2 * LEAST or not moved.std() or not by.std():
        return 0.0, 0.0, 0.0
    correlation = float(np.corrcoef(moved, by)[0, 1])
    slope = correlation * float(moved.std() / by.std())
    deviations = float(np.arctanh(np.clip(correlation, -0.999, 0.999))) * float(np.sqrt(max(len(by) / 2 - 3, 1)))
    return slope, correlation, deviations
