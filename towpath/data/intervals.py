"""How sure a share is."""

from math import sqrt
from statistics import NormalDist

Z = NormalDist().inv_cdf(0.975)


def wilson(hits: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share; hits and n may be fractions (ties, weights)."""
    if n <= 0:
        return 0.0, 1.0
    share = hits / n
    scale = 1 + Z**2 / n
    spread = Z * sqrt(max(0.0, share * (1 - share) / n) + Z**2 / (4 * n**2))
    centre = share + Z**2 / (2 * n)
    low = max(0.0, (centre - spread) / scale) if hits > 0 else 0.0  # exactly, where rounding would leave a trace
    return low, min(1.0, (centre + spread) / scale) if hits < n else 1.0
