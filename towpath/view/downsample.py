"""More steps than a picture has room for: what is left out must not be missed."""

import numpy as np


def thin(steps: np.ndarray, values: np.ndarray, buckets: int) -> np.ndarray:
    """Positions to draw: of every bucket of steps the least and the greatest value, and both ends. No spike is lost.

    Values that are not finite are left out. `steps` rises.
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
    owner = np.repeat(np.arange(len(starts)), counts)
    found = [
        _first(values == np.repeat(extreme.reduceat(values, starts), counts), owner)
        for extreme in (np.minimum, np.maximum)
    ]
    return finite[np.unique(np.concatenate([[0, len(values) - 1], *found]))]


def _first(hit: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """The first hit of every owner."""
    at = np.flatnonzero(hit)
    return at[np.unique(owner[at], return_index=True)[1]]


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of the `window` values around each; fewer at the ends and where values are not finite."""
    half = window // 2
    if half < 1 or not len(values):
        return values
    finite = np.isfinite(values)
    sums, counts = (np.concatenate([[0.0], np.cumsum(what)]) for what in (np.where(finite, values, 0.0), finite))
    place = np.arange(len(values))
    low = np.maximum(place - half, 0)
    high = np.minimum(place + half + 1, len(values))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(finite, (sums[high] - sums[low]) / (counts[high] - counts[low]), np.nan)


def levels(values: np.ndarray, width: int) -> np.ndarray:
    """The means of `width` equal parts, for a line of characters; fewer where there are fewer values."""
    finite = values[np.isfinite(values)]
    if len(finite) <= width:
        return finite
    edges = np.linspace(0, len(finite), width + 1).astype(int)
    return np.add.reduceat(finite, edges[:-1]) / np.diff(edges)
