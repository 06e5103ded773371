"""A win rate that may be looked at after every comparison: an interval that holds at every n at once, a verdict, and
what is still to come.

A gambler who bets on "the true rate is above m" with outcomes x in [0, 1] and a stake s of the capital has after
each one (1 - s) + s x/m times as much. While the rate is m or less the capital does not grow on average, so that it
ever reaches 40 has a chance of 1 in 40 at most (Ville). Many gamblers, each with a stake of its own, share the money
(Waudby-Smith & Ramdas 2024); a second company bets on "below m" with 1 - x. The interval is every m against which
neither has won. What counts is how often each outcome occurred, not in which order; ties are outcomes of a half, and
need no rule of their own.

Legend: N comparisons in the order they came, V different outcomes, S stakes; leading axes are sequences of their
own.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import log
from typing import Literal

import numpy as np

VerdictWord = Literal["PASS", "FAIL", "UNDECIDED"]
LEVEL = 0.95
STAKES = np.geomspace(0.02, 0.95, 24)
"""Small stakes win small edges over many comparisons, large ones large edges soon."""
LONGEST = 100_000
"""Comparisons beyond which nobody is told to go on."""
ROUNDS = 40
LUCK = 1.0
"""By how much, in logs, chance takes the capital above its expected course: found by hand, so that estimates meet
the medians of simulation."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Where a comparison stands after n outcomes. `at` is the outcome that decided it; `more` about how many would,
    None where no number would."""

    verdict: VerdictWord
    n: int
    rate: float
    interval: tuple[float, float]
    at: int | None
    more: int | None


def decide(outcomes_N: Sequence[float] | np.ndarray, threshold: float, level: float = LEVEL) -> Decision:
    """PASS or FAIL from the first outcome on after which the rate can no longer be the threshold; UNDECIDED until
    then."""
    x_N = np.asarray(outcomes_N, dtype=float)
    if not len(x_N):
        return Decision("UNDECIDED", 0, 0.5, (0.0, 1.0), None, None)
    passed, failed = (_first(log_wealth(x_N, threshold, above) >= _prize(level)) for above in (True, False))
    low_N, high_N = confidence_sequence(x_N, level)
    interval = (float(low_N[-1]), float(high_N[-1]))
    rate = float(x_N.mean())
    if passed is None and failed is None:
        return Decision("UNDECIDED", len(x_N), rate, interval, None, remaining(x_N, threshold, level))
    word: VerdictWord = "PASS" if failed is None or (passed is not None and passed < failed) else "FAIL"
    return Decision(word, len(x_N), rate, interval, (passed if word == "PASS" else failed), 0)


def log_wealth(outcomes_N: np.ndarray, mean: float, above: bool = True) -> np.ndarray:
    """Log of the capital after every outcome, of those who bet that the true rate is above (or below) `mean`; it
    began at one."""
    x_N, m = (outcomes_N, mean) if above else (1 - outcomes_N, 1 - mean)
    total_N = np.full(np.shape(x_N), -np.inf)
    for stake in STAKES:
        total_N = np.logaddexp(total_N, np.cumsum(np.log((1 - stake) + stake * x_N / m), axis=-1))
    return total_N - log(len(STAKES))


def confidence_sequence(outcomes_N: np.ndarray, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """Both ends after every outcome; with chance `level` all of them hold the true rate at once, so what was
    excluded once stays so.

    Where nothing is left (outcomes that drift, or bad luck of that chance) the last outcomes' own interval is told.

    """
    own_low_N = _lows(outcomes_N, level)
    own_high_N = 1 - _lows(1 - outcomes_N, level)
    low_N = np.maximum.accumulate(own_low_N)
    high_N = np.minimum.accumulate(own_high_N)
    return np.where(low_N > high_N, own_low_N, low_N), np.where(low_N > high_N, own_high_N, high_N)


def interval(outcomes_N: Sequence[float] | np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """The interval after the last outcome; of none, all there is."""
    x_N = np.asarray(outcomes_N, dtype=float)
    if not len(x_N):
        return 0.0, 1.0
    low_N, high_N = confidence_sequence(x_N, level)
    return float(low_N[-1]), float(high_N[-1])


def remaining(outcomes_N: Sequence[float] | np.ndarray, threshold: float, level: float = LEVEL) -> int | None:
    """About how many more comparisons would decide, if they go as those so far did; None where they would not,
    within `LONGEST`."""
    values_V, count_V = np.unique(np.append(np.asarray(outcomes_N, dtype=float), [0.0, 1.0]), return_counts=True)
    edge_V = np.isin(values_V, [0.0, 1.0])
    # with half a win and half a loss more than were seen: a few wins are not yet a rate of one
    expected_V = count_V - 0.5 * edge_V
    return _until(values_V, count_V - 1.0 * edge_V, expected_V / expected_V.sum(), threshold, level)


def required_comparisons(rate: float, threshold: float, ties: float = 0.0, level: float = LEVEL) -> int | None:
    """About how many comparisons decide at a true rate of which a share `ties` are ties; None where that is none
    within `LONGEST`."""
    share_V = np.array([1 - rate - ties / 2, ties, rate - ties / 2])
    if share_V.min() < 0:
        return None
    return _until(np.array([0.0, 0.5, 1.0]), np.zeros(3), share_V, threshold, level)


def by_cluster(outcomes: Sequence[float], clusters: Sequence[Hashable]) -> np.ndarray:
    """The mean of each cluster in the order in which clusters first came: comparisons of one prompt are one piece of
    evidence."""
    found: dict[Hashable, list[float]] = {}
    for outcome, name in zip(outcomes, clusters, strict=True):
        found.setdefault(name, []).append(outcome)
    return np.array([sum(said) / len(said) for said in found.values()])


def _prize(level: float) -> float:
    """Log of the capital that decides: each side may err in half of what the level leaves."""
    return log(2 / (1 - level))


def _first(won_N: np.ndarray) -> int | None:
    """The number, counted from one, of the first outcome after which it was won."""
    return int(np.argmax(won_N)) + 1 if won_N.any() else None


def _lows(outcomes_N: np.ndarray, level: float) -> np.ndarray:
    """For every n the least rate that the outcomes so far leave possible."""
    values_V, which_N = np.unique(outcomes_N, return_inverse=True)
    count_NV = np.cumsum(which_N.reshape(-1)[:, None] == np.arange(len(values_V)), axis=0).astype(float)
    mean_N = count_NV @ values_V / count_NV.sum(1)
    low_N = np.zeros(len(mean_N))
    high_N = mean_N.copy()
    for _ in range(ROUNDS):
        middle_N = (low_N + high_N) / 2
        excluded_N = _capital(values_V, count_NV, np.maximum(middle_N, 1e-12)) >= _prize(level)
        low_N = np.where(excluded_N, middle_N, low_N)
        high_N = np.where(excluded_N, high_N, middle_N)
    return np.where(mean_N > 0, low_N, 0.0)


def _capital(values_V: np.ndarray, count_NV: np.ndarray, mean_N: np.ndarray) -> np.ndarray:
    """Log of the capital, against a rate for each row of counts."""
    gain_NVS = np.log((1 - STAKES) + STAKES * (values_V[None, :, None] / mean_N[:, None, None]))
    return np.logaddexp.reduce(np.einsum("nv,nvs->ns", count_NV, gain_NVS), axis=1) - log(len(STAKES))


def _until(values_V: np.ndarray, seen_V: np.ndarray, share_V: np.ndarray, threshold: float, level: float) -> int | None:
    """How many more outcomes in these shares bring the capital of the side they speak for to the prize."""
    gap = float(values_V @ share_V) - threshold
    if gap == 0:
        return None
    values_V, m = (values_V, threshold) if gap > 0 else (1 - values_V, 1 - threshold)

    def won(count: int) -> bool:
        return bool(_capital(values_V, (seen_V + count * share_V)[None], np.array([m]))[0] >= _prize(level) - LUCK)

    if not won(LONGEST):
        return None
    low = 0
    high = LONGEST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if won(middle) else (middle, high)
    return high
