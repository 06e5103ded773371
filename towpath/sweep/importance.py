"""Importance of the keys of a space: the share of the variance of trial values that one key explains alone.

A parabola in the key (group means for choices), with adjusted R², which is about 0 for a key without effect. It needs
no further library; effects of two keys together are not seen.
"""

import math
from collections.abc import Sequence

import numpy as np

from towpath.sweep.space import SearchRange, Settings, Space

MIN_TRIALS = 6
"""Trials below which nothing is said."""


def importance(space: Space, trials: Sequence[tuple[Settings, float]]) -> dict[str, float]:
    """The share of each key, from 0 to 1, the largest first; empty with fewer than six trials."""
    rows = [(settings, value) for settings, value in trials if math.isfinite(value)]
    if len(rows) < MIN_TRIALS:
        return {}
    value_N = np.array([value for _, value in rows])
    shares = {key: _share(_design(r, [settings[key] for settings, _ in rows]), value_N) for key, r in space.items()}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _design(search_range: SearchRange, values: Sequence[object]) -> np.ndarray:
    """Columns that a key's values become."""
    if search_range.choices:
        present = [choice for choice in search_range.choices if choice in values]
        return np.array([[float(item == choice) for choice in present] for item in values])
    number_N = np.array(values, dtype=float)
    x_N = np.log(number_N) if search_range.log else number_N
    x_N = (x_N - x_N.mean()) / (x_N.std() or 1.0)
    return np.stack([np.ones_like(x_N), x_N, x_N**2], axis=1)


def _share(design: np.ndarray, value_N: np.ndarray) -> float:
    total = float(((value_N - value_N.mean()) ** 2).sum())
    if not total:
        return 0.0
    weights, _, rank, _ = np.linalg.lstsq(design, value_N, rcond=None)
    left = float(((value_N - design @ weights) ** 2).sum())
    n = len(value_N)
    freedom = n - int(rank)
    if freedom < 1:
        return 0.0
    return float(min(max(1 - (left / freedom) / (total / (n - 1)), 0.0), 1.0))
