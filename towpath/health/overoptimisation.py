"""Over-optimisation curve R = d(alpha - beta ln d), d the root of KL, fitted to a gold signal (arXiv 2210.10760)."""

from dataclasses import dataclass

import numpy as np

from towpath.health.history import History

MIN_POINTS = 6
"""Points from which a fit of two parameters is used."""


@dataclass(frozen=True)
class OveroptimisationFit:
    """alpha, beta, the KL at which the curve peaks, and the largest KL of the run."""

    alpha: float
    beta: float
    peak: float
    max_kl: float

    @property
    def is_past_peak(self) -> bool:
        """Whether the run has gone beyond the peak."""
        return self.beta > 0 and self.max_kl > self.peak


def fit_overoptimisation(kl: np.ndarray, gold: np.ndarray) -> OveroptimisationFit | None:
    """Least squares of the gain over the first point on d and d ln d; None with too few points."""
    usable = np.isfinite(kl) & np.isfinite(gold) & (kl > 1e-3)
    if usable.sum() < MIN_POINTS:
        return None
    d = np.sqrt(kl[usable])
    gain = gold[usable] - gold[np.isfinite(gold)][0]
    (alpha, minus_beta), *_ = np.linalg.lstsq(np.stack([d, d * np.log(d)], axis=1), gain, rcond=None)
    beta = -float(minus_beta)
    peak = float(np.exp(2 * min(alpha / beta - 1, 20.0))) if beta > 0 else float("inf")
    return OveroptimisationFit(float(alpha), beta, peak, float(kl[usable].max()))


def describe_overoptimisation(history: History, name: str) -> str:
    """A note if the run is past the peak of its curve, by validation where there is enough of it, else by rollouts."""
    for curves in (history.validation, history.train):
        kl = curves.get("kl")
        gold = curves.get(name)
        if kl is None or gold is None or len(kl) != len(gold):
            continue
        fit = fit_overoptimisation(kl.values, gold.values)
        if fit is not None and fit.is_past_peak:
            return f"; the fitted curve d(α − β ln d) peaks at {fit.peak:.2g} nats, the KL has reached {fit.max_kl:.2g}"
    return ""
