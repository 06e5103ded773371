"""Wilson's interval of a share, and the accuracy ceiling that follows from agreement."""

from math import sqrt
from statistics import NormalDist

Z = NormalDist().inv_cdf(0.975)


def wilson(hits: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % interval of hits / n; both may be fractions (ties, weights)."""
    if n <= 0:
        return 0.0, 1.0
    share = hits / n
    scale = 1 + Z**2 / n
    spread = Z * sqrt(max(0.0, share * (1 - share) / n) + Z**2 / (4 * n**2))
    centre = share + Z**2 / (2 * n)
    low = max(0.0, (centre - spread) / scale) if hits > 0 else 0.0  # exactly 0, without rounding error
    return low, min(1.0, (centre + spread) / scale) if hits < n else 1.0


def accuracy_ceiling(agreement: float) -> float:
    """Accuracy of each of two equally good raters who agree this often: the best accuracy against one of them."""
    return 0.5 * (1 + sqrt(max(0.0, 2 * agreement - 1)))
