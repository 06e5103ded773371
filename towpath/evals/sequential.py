"""Sequential test of a win rate: a verdict and a confidence sequence that stay valid when checked after every
outcome.

Betting on "the true rate is above m" with outcomes x in [0, 1] and a stake s multiplies the wealth by (1 - s) + s
x/m. While the rate is m or less the expected wealth does not grow, so it reaches 40 with probability 1/40 at most
(Ville's inequality). The wealth is spread over a grid of stakes (Waudby-Smith & Ramdas 2024); a second bet on "below
m" uses 1 - x. The interval contains every m against which neither bet has won. Only the number of each outcome
matters, not their order; ties are outcomes of 0.5.

Legend: N comparisons in order, V distinct outcomes, S stakes; leading axes are separate sequences.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Literal

import numpy as np

VerdictWord = Literal["PASS", "FAIL", "UNDECIDED"]
LEVEL = 0.95
STAKES = np.geomspace(0.02, 0.95, 24)
"""Small stakes detect small effects over many comparisons, large stakes large effects early."""
MAX_COMPARISONS = 100_000
"""Horizon of estimates of remaining comparisons."""
BISECTIONS = 40
SLACK = 1.0
"""Log wealth by which chance exceeds the expected course; set so that estimates match medians of simulations."""


@dataclass(frozen=True, slots=True)
class Decision:
    """State after n outcomes: `at` is the deciding outcome, `more` the estimated remaining ones, None if no number
    decides."""

    verdict: VerdictWord
    n: int
    rate: float
    interval: tuple[float, float]
    at: int | None
    more: int | None


def decide(outcomes_N: Sequence[float] | np.ndarray, threshold: float, level: float = LEVEL) -> Decision:
    """PASS or FAIL from the first outcome after which the rate can no longer be the threshold; else UNDECIDED."""
    x_N = np.asarray(outcomes_N, dtype=float)
    if not len(x_N):
        return Decision("UNDECIDED", 0, 0.5, (0.0, 1.0), None, None)
    passed, failed = (
        _first_crossing(log_wealth(x_N, threshold, above) >= _log_threshold(level)) for above in (True, False)
    )
    low_N, high_N = confidence_sequence(x_N, level)
    interval = (float(low_N[-1]), float(high_N[-1]))
    rate = float(x_N.mean())
    if passed is None and failed is None:
        return Decision("UNDECIDED", len(x_N), rate, interval, None, remaining(x_N, threshold, level))
    word: VerdictWord = "PASS" if failed is None or (passed is not None and passed < failed) else "FAIL"
    return Decision(word, len(x_N), rate, interval, (passed if word == "PASS" else failed), 0)


def log_wealth(outcomes_N: np.ndarray, mean: float, above: bool = True) -> np.ndarray:
    """Log wealth after every outcome of bets that the true rate is above (or below) `mean`; it starts at 0."""
    x_N, m = (outcomes_N, mean) if above else (1 - outcomes_N, 1 - mean)
    total_N = np.full(np.shape(x_N), -np.inf)
    for stake in STAKES:
        total_N = np.logaddexp(total_N, np.cumsum(np.log((1 - stake) + stake * x_N / m), axis=-1))
    return total_N - log(len(STAKES))


def confidence_sequence(outcomes_N: np.ndarray, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bounds after every outcome; with probability `level` all contain the true rate.

    If the running intersection is empty (drifting outcomes, or bad luck), the interval of the last outcome is
    returned.
    """
    own_low_N = _lower_bounds(outcomes_N, level)
    own_high_N = 1 - _lower_bounds(1 - outcomes_N, level)
    low_N = np.maximum.accumulate(own_low_N)
    high_N = np.minimum.accumulate(own_high_N)
    return np.where(low_N > high_N, own_low_N, low_N), np.where(low_N > high_N, own_high_N, high_N)


def interval(outcomes_N: Sequence[float] | np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """The interval after the last outcome; [0, 1] without outcomes."""
    x_N = np.asarray(outcomes_N, dtype=float)
    if not len(x_N):
        return 0.0, 1.0
    low_N, high_N = confidence_sequence(x_N, level)
    return float(low_N[-1]), float(high_N[-1])


def remaining(outcomes_N: Sequence[float] | np.ndarray, threshold: float, level: float = LEVEL) -> int | None:
    """Estimated further comparisons until a decision, if outcomes stay alike; None beyond `MAX_COMPARISONS`."""
    values_V, count_V = np.unique(np.append(np.asarray(outcomes_N, dtype=float), [0.0, 1.0]), return_counts=True)
    edge_V = np.isin(values_V, [0.0, 1.0])
    # half a win and half a loss are added: a few wins do not imply a rate of one
    expected_V = count_V - 0.5 * edge_V
    return _remaining_until(values_V, count_V - 1.0 * edge_V, expected_V / expected_V.sum(), threshold, level)


def required_comparisons(rate: float, threshold: float, ties: float = 0.0, level: float = LEVEL) -> int | None:
    """Estimated comparisons to decide at a true rate with a share of `ties`; None beyond `MAX_COMPARISONS`."""
    share_V = np.array([1 - rate - ties / 2, ties, rate - ties / 2])
    if share_V.min() < 0:
        return None
    return _remaining_until(np.array([0.0, 0.5, 1.0]), np.zeros(3), share_V, threshold, level)


def _log_threshold(level: float) -> float:
    """Log wealth that decides: each side has half of the error probability."""
    return log(2 / (1 - level))


def _first_crossing(won_N: np.ndarray) -> int | None:
    """One-based index of the first outcome that crosses the threshold."""
    return int(np.argmax(won_N)) + 1 if won_N.any() else None


def _lower_bounds(outcomes_N: np.ndarray, level: float) -> np.ndarray:
    """The smallest rate not excluded, for every n, by bisection."""
    values_V, which_N = np.unique(outcomes_N, return_inverse=True)
    count_NV = np.cumsum(which_N.reshape(-1)[:, None] == np.arange(len(values_V)), axis=0).astype(float)
    mean_N = count_NV @ values_V / count_NV.sum(1)
    low_N = np.zeros(len(mean_N))
    high_N = mean_N.copy()
    for _ in range(BISECTIONS):
        middle_N = (low_N + high_N) / 2
        excluded_N = _log_wealth_of_counts(values_V, count_NV, np.maximum(middle_N, 1e-12)) >= _log_threshold(level)
        low_N = np.where(excluded_N, middle_N, low_N)
        high_N = np.where(excluded_N, high_N, middle_N)
    return np.where(mean_N > 0, low_N, 0.0)


def _log_wealth_of_counts(values_V: np.ndarray, count_NV: np.ndarray, mean_N: np.ndarray) -> np.ndarray:
    """Log wealth for each row of outcome counts."""
    gain_NVS = np.log((1 - STAKES) + STAKES * (values_V[None, :, None] / mean_N[:, None, None]))
    return np.logaddexp.reduce(np.einsum("nv,nvs->ns", count_NV, gain_NVS), axis=1) - log(len(STAKES))


def _remaining_until(
    values_V: np.ndarray, observed_V: np.ndarray, share_V: np.ndarray, threshold: float, level: float
) -> int | None:
    """Further outcomes in these shares until the bet on their side wins."""
    gap = float(values_V @ share_V) - threshold
    if gap == 0:
        return None
    values_V, m = (values_V, threshold) if gap > 0 else (1 - values_V, 1 - threshold)

    def won(count: int) -> bool:
        return bool(
            _log_wealth_of_counts(values_V, (observed_V + count * share_V)[None], np.array([m]))[0]
            >= _log_threshold(level) - SLACK
        )

    if not won(MAX_COMPARISONS):
        return None
    low = 0
    high = MAX_COMPARISONS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if won(middle) else (middle, high)
    return high
