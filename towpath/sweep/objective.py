"""Value of a trial: win rate over the SFT model at equal KL, from the outcomes of its validations prompt by prompt.

V validations, P prompts, R bootstrap resamples. From 0.5 at KL 0 a win rate rises with the square root of the KL, as
that of an optimal policy does while the KL is small. The rise over the root changes slowly along the path of a trial,
so it is averaged over the validations near the target: one alone has the noise of its prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from towpath.data.draws import generator
from towpath.evals.winrate import length_controlled

Objective = Literal["win_rate", "area"]
NEAR = 0.25
"""Width of the average over validations, as a share of the root of the target KL: from half of the target to 1.6 times
it they count most."""
GRID = 33
"""Points of KL in an area."""


@dataclass(frozen=True)
class TrialCurve:
    """The validations of one trial, of the same prompts each."""

    steps: Sequence[int]
    kl_VP: np.ndarray
    """KL of each prompt's answer in nats; its mean is the KL of the validation."""
    win_VP: np.ndarray
    """1, 0.5 or 0 over the SFT model's answer; NaN where a pair is unjudged."""
    length_gap_VP: np.ndarray
    """Tokens of an answer less those of the SFT model's."""
    safety_rise_V: np.ndarray
    """Rise of harmful compliance or over-refusal on the probes; NaN without probes."""

    def __len__(self) -> int:
        return len(self.steps)

    def until(self, step: int) -> "TrialCurve":
        """The curve as it was after this step."""
        n = sum(other <= step for other in self.steps)
        return TrialCurve(
            self.steps[:n], self.kl_VP[:n], self.win_VP[:n], self.length_gap_VP[:n], self.safety_rise_V[:n]
        )

    @property
    def kl_V(self) -> np.ndarray:
        """KL of each validation."""
        return self.kl_VP.mean(1)

    @property
    def win_V(self) -> np.ndarray:
        """Win rate of each validation, over the prompts that were judged."""
        return _mean(self.win_VP)


@dataclass(frozen=True)
class TrialValue:
    """The value of a trial, with a 95 % interval from resampled prompts."""

    value: float
    interval: tuple[float, float]
    kl: float
    """The KL that it was measured at: the target, or the last KL of a trial that never reached it."""
    reached: bool
    """Whether the trial reached the target KL."""
    length_controlled: float
    """Length-controlled win rate at the same KL."""
    safety_rise: float
    """At the same KL."""


def value_at(kl_V: np.ndarray, y_V: np.ndarray, target: float, start: float = 0.5) -> tuple[float, bool]:
    """The value at the target KL, and whether the path reaches it; one that does not has the value at its last KL."""
    kl = np.maximum(kl_V, 0.0)
    reached = bool(len(kl) and kl.max() >= target)
    level = target if reached else float(kl[-1]) if len(kl) else 0.0
    if level <= 0:
        return start, reached
    root, root_V = level**0.5, kl**0.5
    distance_V = ((root_V - root) / (NEAR * root)) ** 2
    weight_V = np.exp((distance_V.min() - distance_V) / 2)
    # least squares: the rise over the root is exact where the KL is large, and noise where it is small
    rise = (weight_V * root_V * (y_V - start)).sum() / (weight_V * root_V**2).sum()
    return float(np.clip(start + rise * root, 0.0, 1.0)), reached


def area_under(kl_V: np.ndarray, y_V: np.ndarray, target: float, start: float = 0.5) -> tuple[float, bool]:
    """The mean value over KL from 0 to the target; beyond the largest KL of the path its last value."""
    levels = np.linspace(0.0, target, GRID)
    values = np.array([start, *(value_at(kl_V, y_V, float(level), start)[0] for level in levels[1:])])
    # the trapezoid rule on an even grid
    return float((values[1:] + values[:-1]).mean() / 2), bool(len(kl_V) and kl_V.max() >= target)


def measure(curve: TrialCurve, objective: Objective, target: float, resamples: int, seed: int) -> TrialValue:
    """The value of a trial; 0.5 at KL 0 if it was never validated."""
    if not len(curve):
        return TrialValue(0.5, (0.5, 0.5), 0.0, False, 0.5, 0.0)
    value, reached = _value(curve, objective, target)
    draws = generator(seed, "sweep/bootstrap")
    prompts = curve.kl_VP.shape[1]
    values_R = [
        _value(_take(curve, draws.integers(0, prompts, prompts)), objective, target)[0] for _ in range(resamples)
    ]
    low, high = np.quantile(values_R, [0.025, 0.975])
    lc_V = np.array([_length_controlled(*row) for row in zip(curve.win_VP, curve.length_gap_VP, strict=True)])
    at = target if reached else float(curve.kl_V[-1])
    safety = value_at(curve.kl_V, np.nan_to_num(curve.safety_rise_V), target, 0.0)[0]
    return TrialValue(value, (float(low), float(high)), at, reached, value_at(curve.kl_V, lc_V, target)[0], safety)


def _value(curve: TrialCurve, objective: Objective, target: float) -> tuple[float, bool]:
    how = value_at if objective == "win_rate" else area_under
    return how(curve.kl_V, curve.win_V, target)


@dataclass(frozen=True)
class PairedDifference:
    """Mean difference of two settings over seeds, with an interval."""

    difference: float
    interval: tuple[float, float]
    seeds: int
    prompts: int

    @property
    def shows(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.interval[0] > 0 or self.interval[1] < 0


def paired_difference(
    ours: Sequence[TrialCurve],
    others: Sequence[TrialCurve],
    objective: Objective,
    target: float,
    resamples: int,
    seed: int,
    comparisons: int = 1,
) -> PairedDifference:
    """Ours less the others', a curve for each seed, on the same prompts within a seed.

    Each resample draws seeds, and prompts within a seed, the same for both sides. With several comparisons the interval
    is wider (Bonferroni).
    """
    per_seed = [
        _value(a, objective, target)[0] - _value(b, objective, target)[0] for a, b in zip(ours, others, strict=True)
    ]
    draws = generator(seed, "sweep/paired")
    seeds = len(ours)
    differences_R = []
    for _ in range(resamples):
        total = 0.0
        for s in draws.integers(0, seeds, seeds):
            prompts = ours[s].kl_VP.shape[1]
            index = draws.integers(0, prompts, prompts)
            total += _value(_take(ours[s], index), objective, target)[0]
            total -= _value(_take(others[s], index), objective, target)[0]
        differences_R.append(total / seeds)
    tail = 0.025 / max(comparisons, 1)
    low, high = np.quantile(differences_R, [tail, 1 - tail])
    prompts = sum(curve.kl_VP.shape[1] for curve in ours)
    return PairedDifference(float(np.mean(per_seed)), (float(low), float(high)), seeds, prompts)


def _take(curve: TrialCurve, index_P: np.ndarray) -> TrialCurve:
    return TrialCurve(
        curve.steps,
        curve.kl_VP[:, index_P],
        curve.win_VP[:, index_P],
        curve.length_gap_VP[:, index_P],
        curve.safety_rise_V,
    )


def _mean(win_VP: np.ndarray) -> np.ndarray:
    """Means over judged prompts; 0.5 where none was judged."""
    judged_VP = ~np.isnan(win_VP)
    count_V = judged_VP.sum(1)
    total_V = np.where(judged_VP, win_VP, 0.0).sum(1)
    return np.where(count_V > 0, total_V / np.maximum(count_V, 1), 0.5)


def _length_controlled(win_P: np.ndarray, gap_P: np.ndarray) -> float:
    judged_P = ~np.isnan(win_P)
    return length_controlled(win_P[judged_P], gap_P[judged_P]) if judged_P.any() else 0.5
