"""Scores of answers from comparisons by raters of unequal care: Bradley and Terry 1952 with a reliability for each
rater.

Legend: K answers, R raters, N comparisons; won_N is 1 where the first answer won, 0 where the second did, 0.5 where
neither.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_expit

from towpath.feedback.aggregation import PREFERS, latest
from towpath.records import Comparison, Judgement

Model = Literal["temperature", "slips"]
SPREAD = 2.0  # deviation of scores thought likely beforehand: keeps an answer that always won finite
TRUST: dict[Model, tuple[float, float]] = {"temperature": (0.0, 1.0), "slips": (2.0, 1.5)}
"""Mean and deviation of a rater's reliability beforehand: the log of the temperature's inverse (1), the log odds of
no slip (88 %)."""


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """Scores with mean zero, a difference being the log odds of an ordinary rater; and how far each rater goes by
    them."""

    answers: tuple[str, ...]
    raters: tuple[str, ...]
    score_K: np.ndarray
    reliability_R: np.ndarray
    converged: bool


def ranking(
    judgements: Iterable[Judgement], comparisons: Iterable[Comparison], model: Model = "temperature"
) -> Ranking:
    """Answers ranked from all comparisons they met in; ties and bad pairs are half a win for each."""
    known = {c.id: c for c in comparisons}
    said = [j for name, by_rater in latest(judgements).items() if name in known for j in by_rater.values()]
    met = [(known[j.comparison].a, known[j.comparison].b) for j in said]
    answers = {name: number for number, name in enumerate(dict.fromkeys(name for pair in met for name in pair))}
    raters = {name: number for number, name in enumerate(dict.fromkeys(j.rater for j in said))}
    pair_N2 = np.array([(answers[a], answers[b]) for a, b in met], dtype=np.intp).reshape(-1, 2)
    rater_N = np.array([raters[j.rater] for j in said], dtype=np.intp)
    won_N = np.array([PREFERS[j.choice] for j in said])
    score_K, reliability_R, converged = fit(pair_N2, won_N, rater_N, (len(answers), len(raters)), model)
    return Ranking(tuple(answers), tuple(raters), score_K, reliability_R, converged)


def fit(
    pair_N2: np.ndarray, won_N: np.ndarray, rater_N: np.ndarray, sizes: tuple[int, int], model: Model = "temperature"
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Scores, reliabilities, and whether the search came to rest; `sizes` are the numbers of answers and of raters.

    temperature: P(first wins) = σ(τ d), the middle rater's τ is 1, 0 tosses a coin. slips: P = η σ(d) + (1 − η)
    σ(−d), which is Crowd-BT (Chen et al. 2013): a rater of η 1 never says the opposite of what they see, ½ tosses a
    coin, 0 always says the opposite.
    """
    answers, raters = sizes
    if not len(won_N):
        return np.zeros(answers), np.full(raters, _reliability(model, np.array(TRUST[model][0]))), True
    free, converged = _top(pair_N2, won_N, rater_N, sizes, model)
    score_K = free[:answers] - free[:answers].mean()
    reliability_R = _reliability(model, free[answers:])
    if model == "temperature":  # only the product of score and temperature is told by the data: the middle rater's is 1
        usual = np.median(reliability_R)
        score_K = score_K * usual
        reliability_R = reliability_R / usual
    return score_K, reliability_R, converged


def _top(
    pair_N2: np.ndarray, won_N: np.ndarray, rater_N: np.ndarray, sizes: tuple[int, int], model: Model
) -> tuple[np.ndarray, bool]:
    """Where the posterior of scores and free reliabilities is highest, and whether the search came to rest there."""
    answers, raters = sizes
    gradient_of = _temperature if model == "temperature" else _slips
    start = np.concatenate([np.zeros(answers), np.full(raters, TRUST[model][0])])
    found = minimize(
        _loss,
        start,
        (pair_N2, won_N, rater_N, answers, TRUST[model], gradient_of),
        "L-BFGS-B",
        jac=True,
        options={"maxiter": 5000, "maxfun": 10000, "ftol": 1e-14, "gtol": 1e-8},
    )
    return found.x, bool(found.success)


def _reliability(model: Model, free: np.ndarray) -> np.ndarray:
    return np.exp(free) if model == "temperature" else expit(free)


Told = tuple[np.ndarray, np.ndarray, np.ndarray]


def _loss(
    free: np.ndarray,
    pair_N2: np.ndarray,
    won_N: np.ndarray,
    rater_N: np.ndarray,
    answers: int,
    trust: tuple[float, float],
    gradient_of: Callable[[np.ndarray, np.ndarray, np.ndarray], Told],
) -> tuple[float, np.ndarray]:
    """Negative log posterior and its gradient by scores and reliabilities."""
    score_K = free[:answers]
    free_R = free[answers:]
    gap_N = score_K[pair_N2[:, 0]] - score_K[pair_N2[:, 1]]
    likelihood_N, by_gap_N, by_rater_N = gradient_of(gap_N, free_R[rater_N], won_N)
    off_R = (free_R - trust[0]) / trust[1]
    gradient_K = (
        np.bincount(pair_N2[:, 0], by_gap_N, answers)
        - np.bincount(pair_N2[:, 1], by_gap_N, answers)
        - score_K / SPREAD**2
    )
    gradient_R = np.bincount(rater_N, by_rater_N, len(free_R)) - off_R / trust[1]
    value = likelihood_N.sum() - 0.5 * ((score_K / SPREAD) ** 2).sum() - 0.5 * (off_R**2).sum()
    return -float(value), -np.concatenate([gradient_K, gradient_R])


def _temperature(gap_N: np.ndarray, free_N: np.ndarray, won_N: np.ndarray) -> Told:
    """Log likelihood of σ(exp(u) d), and its slopes by d and u."""
    odds_N = np.exp(free_N) * gap_N
    slope_N = won_N - expit(odds_N)
    return won_N * log_expit(odds_N) + (1 - won_N) * log_expit(-odds_N), slope_N * np.exp(free_N), slope_N * odds_N


def _slips(gap_N: np.ndarray, free_N: np.ndarray, won_N: np.ndarray) -> Told:
    """Log likelihood of η σ(d) + (1 − η) σ(−d) with η = σ(u), and its slopes by d and u."""
    sees_N = expit(gap_N)
    true_N = expit(free_N)
    first_N = np.clip(true_N * sees_N + (1 - true_N) * (1 - sees_N), 1e-300, 1.0)
    second_N = np.clip(true_N * (1 - sees_N) + (1 - true_N) * sees_N, 1e-300, 1.0)
    slope_N = won_N / first_N - (1 - won_N) / second_N
    by_gap_N = slope_N * (2 * true_N - 1) * sees_N * (1 - sees_N)
    by_rater_N = slope_N * (2 * sees_N - 1) * true_N * (1 - true_N)
    return won_N * np.log(first_N) + (1 - won_N) * np.log(second_N), by_gap_N, by_rater_N
