"""The curve of over-optimisation: R = d(alpha - beta ln d), d the root of KL, fitted to a gold signal (arXiv
2210.10760)."""

from dataclasses import dataclass

import numpy as np

from towpath.health.history import History

LEAST = 6
"""Points that a fit of two numbers is trusted from."""


@dataclass(frozen=True)
class Fit:
    """alpha, beta, the KL at which the fitted curve is highest, and the largest KL seen."""

    alpha: float
    beta: float
    peak: float
    seen: float

    @property
    def past(self) -> bool:
        """Whether the run has gone beyond its peak."""
        return self.beta > 0 and self.seen > self.peak


def fitted(kl: np.ndarray, gold: np.ndarray) -> Fit | None:
    """Least squares of the gain over the first point on d and d ln d; none where there is too little to fit."""
    keep = np.isfinite(kl) & np.isfinite(gold) & (kl > 1e-3)
    if keep.sum() < LEAST:
        return None
    d = np.sqrt(kl[keep])
    gain = gold[keep] - gold[np.isfinite(gold)][0]
    (alpha, minus_beta), *_ = np.linalg.lstsq(np.stack([d, d * np.log(d)], axis=1), gain, rcond=None)
    beta = -float(minus_beta)
    peak = float(np.exp(2 * min(alpha / beta - 1, 20.0))) if beta > 0 else float("inf")
    return Fit(float(alpha), beta, peak, float(kl[keep].max()))


def told(history: History, name: str) -> str:
    """Words on where the run stands on its curve, if it can be fitted; gold from looks where there are enough, else
    from rollouts."""
    for curves in (history.looks, history.train):
        kl = curves.get("kl")
        gold = curves.get(name)
        if kl is not None and gold is not None and len(kl) == len(gold):
            fit = fitted(kl.values, gold.values)
            if fit is not None and fit.past:
                return (
                    f"; the fitted curve d(α − β ln d) peaks at {fit.peak:.2g} nats, and {fit.seen:.2g} have been seen"
                )
    return ""
