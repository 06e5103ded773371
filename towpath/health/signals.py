"""Signals of one curve: its level, its change, and that change in standard deviations of its own noise."""

import numpy as np

from towpath.health.history import Curve

MIN_POINTS = 3
"""Points that make a level."""


def last_level(values: np.ndarray, count: int = MIN_POINTS) -> float:
    """The median of the last points; NaN if there are none."""
    return float(np.median(values[-count:])) if len(values) else float("nan")


def first_level(values: np.ndarray, count: int = MIN_POINTS) -> float:
    """The median of the first points; NaN if there are none."""
    return float(np.median(values[:count])) if len(values) else float("nan")


def initial_level(values: np.ndarray) -> float:
    """The level before training changed anything: of short curves, which log means of steps, the first point."""
    return first_level(values, min(MIN_POINTS, max(1, len(values) // 8)))


def first_value(curve: Curve) -> float:
    """The first finite value: of a run that logs every step, the one before training changed anything."""
    finite = curve.values[np.isfinite(curve.values)]
    return float(finite[0]) if len(finite) else float("nan")


def max_sustained(values: np.ndarray, count: int = MIN_POINTS) -> float:
    """The highest level that held for `count` points in a row."""
    if len(values) < count:
        return last_level(values)
    return float(np.median(np.lib.stride_tricks.sliding_window_view(values, count), axis=1).max())


def window_size(curve: Curve) -> int:
    """Points averaged at either end: a quarter of the curve, at least three."""
    return max(MIN_POINTS, len(curve) // 4)


def noise(values: np.ndarray) -> float:
    """The standard deviation of a point about its trend, estimated from second differences."""
    finite = values[np.isfinite(values)]
    if len(finite) < 4:
        return float("inf")
    second = finite[2:] - 2 * finite[1:-1] + finite[:-2]
    return float(np.sqrt(np.mean(second**2) / 6)) + 1e-12


def change(curve: Curve) -> tuple[float, float]:
    """The change from the start to the end of a curve, and its z-score."""
    values = curve.values[np.isfinite(curve.values)]
    if len(values) < 2 * MIN_POINTS:
        return 0.0, 0.0
    count = window_size(curve)
    moved = float(values[-count:].mean() - values[:count].mean())
    return moved, moved / (noise(values) * float(np.sqrt(2 / count)))


def drop_from_best(curve: Curve) -> tuple[float, float]:
    """The change from the best level to the end, and its z-score; both are negative for a drop."""
    values = curve.values[np.isfinite(curve.values)]
    count = window_size(curve)
    if len(values) < 3 * count:
        return 0.0, 0.0
    means = np.convolve(values, np.ones(count) / count, "valid")
    drop = float(means[-1] - means.max())
    return drop, drop / (noise(values) * float(np.sqrt(2 / count)))


def first_step_where(curve: Curve, holds: np.ndarray) -> int:
    """The step from which a condition holds to the end; if it does not hold at the end, the first where it does."""
    if not holds.any():
        return int(curve.steps[-1]) if len(curve) else 0
    misses = np.flatnonzero(~holds)
    begin = 0 if not len(misses) else misses[-1] + 1
    return int(curve.steps[begin]) if begin < len(holds) else int(curve.steps[np.flatnonzero(holds)[0]])


def rolling_median(values: np.ndarray, count: int = MIN_POINTS) -> np.ndarray:
    """The median of every `count` neighbouring points."""
    if len(values) < count:
        return values[:0]
    return np.median(np.lib.stride_tricks.sliding_window_view(values, count), axis=1)


def align(one: Curve, other: Curve) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The steps that two curves share, and the values of both where they are finite."""
    steps, left, right = np.intersect1d(one.steps, other.steps, return_indices=True)
    values = one.values[left]
    others = other.values[right]
    finite = np.isfinite(values) & np.isfinite(others)
    return steps[finite], values[finite], others[finite]


def slope_of_changes(one: Curve, other: Curve) -> tuple[float, float, float]:
    """How one curve changes with another from step to step, without their trends: slope, correlation, z-score."""
    _, values, others = align(one, other)
    if len(values) < 4 * MIN_POINTS:
        return 0.0, 0.0, 0.0
    moved = np.diff(values)
    by = np.diff(others)
    changing = (np.abs(moved) > 0) | (np.abs(by) > 0)
    moved = moved[changing]
    by = by[changing]
    if len(by) < 2 * MIN_POINTS or not moved.std() or not by.std():
        return 0.0, 0.0, 0.0
    correlation = float(np.corrcoef(moved, by)[0, 1])
    slope = correlation * float(moved.std() / by.std())
    z_score = float(np.arctanh(np.clip(correlation, -0.999, 0.999))) * float(np.sqrt(max(len(by) / 2 - 3, 1)))
    return slope, correlation, z_score
