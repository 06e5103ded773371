"""Downsampling of curves with more steps than pixels, so that no spike is lost."""

import numpy as np


def downsample(steps: np.ndarray, values: np.ndarray, buckets: int) -> np.ndarray:
    """Positions to draw: the minimum and the maximum of each bucket of steps, and both ends.

    Values that are not finite are left out. `steps` must be sorted.
    """
    finite = np.flatnonzero(np.isfinite(values))
    if len(finite) <= 2 * buckets:
        return finite
    steps = steps[finite]
    values = values[finite]
    width = (steps[-1] - steps[0] + 1) / buckets
    bucket = ((steps - steps[0]) / width).astype(np.int64)
    starts = np.flatnonzero(np.append(True, bucket[1:] != bucket[:-1]))
    counts = np.diff(np.append(starts, len(values)))
    bucket_of = np.repeat(np.arange(len(starts)), counts)
    extremes = [
        _first_in_bucket(values == np.repeat(extreme.reduceat(values, starts), counts), bucket_of)
        for extreme in (np.minimum, np.maximum)
    ]
    return finite[np.unique(np.concatenate([[0, len(values) - 1], *extremes]))]


def _first_in_bucket(matches: np.ndarray, bucket_of: np.ndarray) -> np.ndarray:
    """The position of the first match in each bucket."""
    positions = np.flatnonzero(matches)
    return positions[np.unique(bucket_of[positions], return_index=True)[1]]


def moving_average(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of `window` values around each; of fewer at the ends and where values are not finite."""
    half = window // 2
    if half < 1 or not len(values):
        return values
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0.0], np.cumsum(finite)])
    positions = np.arange(len(values))
    low = np.maximum(positions - half, 0)
    high = np.minimum(positions + half + 1, len(values))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(finite, (sums[high] - sums[low]) / (counts[high] - counts[low]), np.nan)


def bucket_means(values: np.ndarray, width: int) -> np.ndarray:
    """The means of `width` equal parts, for a sparkline; the values themselves if there are fewer."""
    finite = values[np.isfinite(values)]
    if len(finite) <= width:
        return finite
    edges = np.linspace(0, len(finite), width + 1).astype(int)
    return np.add.reduceat(finite, edges[:-1]) / np.diff(edges)
