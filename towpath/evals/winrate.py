"""Win rate of one model against another: ties, intervals, and length control."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from towpath.data.draws import generator
from towpath.data.intervals import wilson


def win_rate_record(outcomes: Sequence[float], length_gaps: Sequence[int], resamples: int, seed: int) -> dict[str, Any]:
    """The win rate with intervals; outcomes are 1, 0, or 0.5 for a tie, one per prompt."""
    y = np.asarray(outcomes, dtype=float)
    n = len(outcomes)
    gaps = np.asarray(length_gaps, dtype=float)
    draws = generator(seed, "bootstrap")
    rates = []
    for _ in range(resamples):
        index = draws.integers(0, n, n)
        rates.append(length_controlled(y[index], gaps[index]))
    longer = np.where(gaps == 0, 0.5, (gaps > 0).astype(float))
    return {
        "rate": float(y.mean()),
        "interval": list(wilson(float(y.sum()), n)),
        "n": n,
        "rule": "ties count half",
        "wins": int((y == 1).sum()),
        "ties": int((y == 0.5).sum()),
        "losses": int((y == 0).sum()),
        "length_controlled": {
            "rate": length_controlled(y, gaps),
            "interval": [float(q) for q in np.quantile(rates, [0.025, 0.975])],
        },
        "length_only": {"rate": float(longer.mean()), "agrees": guess_accuracy(y, longer)},
    }


def guess_accuracy(outcomes: np.ndarray, guesses: np.ndarray) -> float:
    """Accuracy of a guess on decided outcomes, or of its opposite if that is better."""
    decided = outcomes != 0.5
    if not decided.any():
        return 0.5
    right = np.where(guesses == 0.5, 0.5, (guesses == outcomes).astype(float))[decided].mean()
    return float(max(right, 1 - right))


def length_controlled(y: np.ndarray, gaps: np.ndarray) -> float:
    """Win rate at equal length: logistic regression on tanh of the standardised length gap, evaluated at zero."""
    spread = gaps.std()
    if spread == 0:
        return float(y.mean())
    x = np.stack([np.ones_like(gaps), np.tanh(gaps / spread)], axis=1)
    return float(1 / (1 + np.exp(-fit_logistic(x, y)[0])))


def fit_logistic(x: np.ndarray, y: np.ndarray, ridge: float = 1e-2, rounds: int = 30) -> np.ndarray:
    """Logistic regression by Newton's method; the ridge keeps separable data finite."""
    w = np.zeros(x.shape[1])
    for _ in range(rounds):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
        gradient = x.T @ (y - p) - ridge * w
        hessian = (x * (p * (1 - p))[:, None]).T @ x + ridge * np.eye(len(w))
        step = np.linalg.solve(hessian, gradient)
        w += step
        if np.abs(step).max() < 1e-10:
            break
    return w


def best_of_n(kl: float) -> dict[str, float]:
    """The n whose best-of-n policy has this KL, and its win rate n / (n + 1), as a theoretical reference."""
    if kl <= 0:
        return {"n": 1.0, "kl": 0.0, "rate": 0.5}
    from scipy.optimize import minimize_scalar  # slow to import, and `towpath status` does not need it

    result = minimize_scalar(
        lambda log_n: (log_n - (1 - np.exp(-log_n)) - kl) ** 2, bounds=(0.0, max(2.0, kl + 2)), method="bounded"
    )
    n = float(np.exp(result.x))  # pyright: ignore[reportAttributeAccessIssue]
    return {"n": n, "kl": kl, "rate": n / (n + 1)}
