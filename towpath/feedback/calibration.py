"""Calibrate a judge against people: map its certainty to the probability that a person agrees.

Routing sends people the hard pairs, so each pair is weighted by the inverse of its propensity, the probability that
a person saw it. Legend: N rows, K knots.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit

from towpath.data.intervals import wilson
from towpath.errors import DataError
from towpath.feedback.aggregation import CHOICES, latest_judgements
from towpath.feedback.agreement import Estimate
from towpath.feedback.rater_quality import PEOPLE
from towpath.hashing import hash_uniform
from towpath.records import Choice, Judgement

FOLDS = 5
MAX_BINS = 10
MIN_PER_BIN = 100
SIMILAR_LENGTH = 0.1  # relative difference below which lengths are alike


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One person's and the judge's choice on one pair; `weight` is the inverse propensity, shared among the people of
    the pair."""

    comparison: str
    judge: Choice
    person: Choice
    certainty: float
    weight: float = 1.0
    strength: int = 1
    domain: str = "general"
    gap: float = 0.0
    """Length of a minus length of b, relative to their mean."""
    orders: tuple[Choice, Choice] | None = None
    """The judge's choice with a shown first, and with b shown first."""

    @property
    def longer(self) -> float:
        """Relative length difference in favour of the judge's choice."""
        return {"a": self.gap, "b": -self.gap}.get(self.judge, 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Non-decreasing map from certainty to the probability of agreement; `n` is the effective number of judgements."""

    certainty_K: np.ndarray
    chance_K: np.ndarray
    n: float
    length_bias: tuple[float, float] = (0.0, 0.0)
    """Length bias in log odds: intercept, and slope per relative length difference of the chosen answer."""

    def chance(self, certainty: float, longer: float = 0.0) -> float:
        """Probability that a person agrees with a verdict of this certainty and length difference."""
        return float(
            expit(
                logit(np.interp(certainty, self.certainty_K, self.chance_K))
                + self.length_bias[0]
                + self.length_bias[1] * longer
            )
        )


@dataclass(frozen=True, slots=True)
class JudgeReport:
    """A judge compared with people, weighted to all pairs; accuracies exclude ties and bad pairs."""

    agreement: Estimate
    accuracy: Estimate
    confusion: dict[str, dict[str, float]]
    """Shares of all pairs by the judge's choice, then the person's choice."""
    by_strength: dict[int, Estimate]
    by_domain: dict[str, Estimate]
    by_length: dict[str, Estimate]
    """Accuracy where the judge chose the longer answer, the shorter, or lengths are alike."""
    longer: tuple[Estimate, Estimate]
    """How often the longer answer won with the judge, and with people."""
    first: Estimate
    """How often the answer shown first won, over both orders."""
    flips: Estimate
    """How often the verdict changed with the order."""
    error_raw: float
    error: float
    """Expected calibration error of the raw certainty, and of the calibrated probability on held-out pairs."""


def certainty(judgement: Judgement) -> float:
    """A judge's certainty from 0 to 1: the share of agreeing votes, scaled by the strength of the verdict."""
    return float(judgement.details.get("confidence", 1.0)) * (0.5 + judgement.strength / 6)


def audit_rows(
    judgements: Iterable[Judgement],
    judge: str,
    propensity: Mapping[str, float] | None = None,
    lengths: Mapping[str, tuple[int, int]] | None = None,
    domains: Mapping[str, str] | None = None,
) -> list[AuditRow]:
    """One row per person and pair that this judge judged too; mappings are by comparison, a missing propensity is 1."""
    rows = []
    for comparison, by_rater in latest_judgements(judgements).items():
        people = [j for j in by_rater.values() if j.kind in PEOPLE]
        verdict = by_rater.get(judge)
        if verdict is None or not people:
            continue
        chance = (propensity or {}).get(comparison, 1.0)
        if not 0 < chance <= 1:
            rule = "a probability above 0 and at most 1"
            raise DataError(f"{comparison}: propensity {chance}", rule, "use the propensity of the pair's route")
        a, b = (lengths or {}).get(comparison, (1, 1))
        gap = 2 * (a - b) / max(a + b, 1)
        domain = (domains or {}).get(comparison, "general")
        weight = 1 / chance / len(people)
        for j in people:
            choices = (verdict.choice, j.choice)
            details = (certainty(verdict), weight, verdict.strength, domain, gap, _orders(verdict))
            rows.append(AuditRow(comparison, *choices, *details))
    return rows


def _orders(judgement: Judgement) -> tuple[Choice, Choice] | None:
    """The judge's choice in both orders, if it was asked in both."""
    orders = judgement.details.get("orders") or {}
    return (orders["ab"], orders["ba"]) if orders.get("ab") in CHOICES and orders.get("ba") in CHOICES else None


def isotonic(x_N: np.ndarray, y_N: np.ndarray, weight_N: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Isotonic regression by pooling adjacent violators: the distinct x, and the fitted value at each."""
    weights = np.ones(len(x_N)) if weight_N is None else weight_N
    knots, knot_N = np.unique(x_N, return_inverse=True)
    masses = np.bincount(knot_N, weights)
    blocks: list[tuple[float, float, int]] = []  # sum of weighted y, mass, how many knots
    for total, mass in zip(np.bincount(knot_N, weights * y_N), masses, strict=True):
        block = (float(total), float(mass), 1)
        while blocks and blocks[-1][0] * block[1] >= block[0] * blocks[-1][1]:
            previous = blocks.pop()
            block = (previous[0] + block[0], previous[1] + block[1], previous[2] + block[2])
        blocks.append(block)
    return knots, np.concatenate([np.full(count, total / mass) for total, mass, count in blocks])


def credit(judge: Choice, person: Choice) -> float:
    """1 if the person agrees with a decided verdict, 0 if they choose the other answer, 0.5 if neither."""
    return 1.0 if judge == person else 0.5 if person in ("tie", "both_bad") else 0.0


def calibrate(rows: Sequence[AuditRow]) -> Calibration:
    """Fit the isotonic map and the length bias; each step is shrunk towards 0.5 by one judgement."""
    decided = [row for row in rows if row.judge in ("a", "b")]
    if not decided:
        value = "no pair was decided by the judge and seen by a person"
        raise DataError(value, "a judge is calibrated on audited pairs", "have people rate some pairs")
    x, y, weight = (
        np.array(column)
        for column in zip(*((r.certainty, credit(r.judge, r.person), r.weight) for r in decided), strict=True)
    )
    effective = float(weight.sum() ** 2 / (weight**2).sum())
    mass = weight * effective / weight.sum()
    knots, height = isotonic(x, y, mass)
    _, step = np.unique(height, return_inverse=True)
    masses = np.bincount(step, np.bincount(np.searchsorted(knots, x), mass))
    smoothed = (np.bincount(step, height) / np.bincount(step) * masses + 0.5) / (masses + 1)
    _, monotone = isotonic(np.arange(len(smoothed)), smoothed, masses + 1)
    height = monotone[step]
    longer = np.array([row.longer for row in decided])
    length_bias = _fit_length_bias(logit(np.interp(x, knots, height)), longer, y, mass)
    return Calibration(knots, height, effective, length_bias)


def _fit_length_bias(
    odds_N: np.ndarray, longer_N: np.ndarray, credit_N: np.ndarray, weight_N: np.ndarray
) -> tuple[float, float]:
    """Intercept and slope of the log odds by length difference, by Newton's method, with standard normal priors."""
    if not longer_N.any():
        return 0.0, 0.0
    x_N2 = np.stack([np.ones_like(longer_N), longer_N], axis=1)
    coefficients = np.zeros(2)
    for _ in range(20):
        chance_N = expit(odds_N + x_N2 @ coefficients)
        gradient = x_N2.T @ (weight_N * (credit_N - chance_N)) - coefficients
        hessian = (x_N2 * (weight_N * chance_N * (1 - chance_N))[:, None]).T @ x_N2 + np.eye(2)
        coefficients += np.linalg.solve(hessian, gradient)
        if np.abs(gradient).max() < 1e-9:
            break
    return float(coefficients[0]), float(coefficients[1])


def held_out_chances(rows: Sequence[AuditRow], seed: int = 0) -> np.ndarray:
    """Cross-validated probability of agreement for each row; NaN where the judge decided nothing."""
    folds = np.array([int(hash_uniform(seed, "calibration", row.comparison) * FOLDS) for row in rows])
    chances = np.full(len(rows), np.nan)
    for fold in np.unique(folds):
        training = [row for row, other in zip(rows, folds, strict=True) if other != fold]
        if any(row.judge in ("a", "b") for row in training):
            calibration = calibrate(training)
            for index, row in enumerate(rows):
                if folds[index] == fold and row.judge in ("a", "b"):
                    chances[index] = calibration.chance(row.certainty, row.longer)
    return chances


def calibration_error(
    chance_N: np.ndarray, credit_N: np.ndarray, weight_N: np.ndarray | None = None, bins: int | None = None
) -> float:
    """Expected calibration error over bins of equal weight; equal probabilities share a bin.

    There are as many bins as keep a hundred effective judgements each, at most ten: with fewer, noise alone gives an
    error of several points.
    """
    if not len(chance_N):
        return float("nan")
    weights = np.ones(len(chance_N)) if weight_N is None else weight_N
    bin_count = bins or int(np.clip(weights.sum() ** 2 / (weights**2).sum() / MIN_PER_BIN, 1, MAX_BINS))
    _, value_N = np.unique(chance_N, return_inverse=True)
    mass = np.bincount(value_N, weights)
    middle = (np.cumsum(mass) - mass / 2) / mass.sum()
    in_bin = np.minimum((middle * bin_count).astype(int), bin_count - 1)[value_N]
    return float(np.abs(np.bincount(in_bin, weights * (chance_N - credit_N))).sum() / weights.sum())


def hajek_estimate(hit_N: np.ndarray, weight_N: np.ndarray) -> Estimate:
    """Hájek estimate of a rate: weights divided by their sum, Wilson's interval at the effective number."""
    if not len(hit_N):
        return Estimate(float("nan"), 0.0, 1.0, 0)
    rate = float((hit_N * weight_N).sum() / weight_N.sum())
    effective = float(weight_N.sum() ** 2 / (weight_N**2).sum())
    return Estimate(rate, *wilson(rate * effective, effective), len(hit_N))


def judge_report(rows: Sequence[AuditRow], seed: int = 0) -> JudgeReport:
    """Compare a judge with people on its audit rows."""
    names: list[str] = list(CHOICES)
    confusion = {judge: dict.fromkeys(names, 0.0) for judge in names}
    total_weight = sum(row.weight for row in rows) or 1.0
    for row in rows:
        confusion[row.judge][row.person] += row.weight / total_weight
    both = [row for row in rows if row.judge in ("a", "b") and row.person in ("a", "b")]
    both_orders = [row for row in rows if row.orders]
    decided = [row for row in rows if row.judge in ("a", "b")]
    decided_N3 = np.array([(row.certainty, credit(row.judge, row.person), row.weight) for row in decided]).reshape(
        -1, 3
    )
    chances = held_out_chances(decided, seed)
    finite = np.isfinite(chances)
    return JudgeReport(
        agreement=_pair_rate(rows, _agrees),
        accuracy=_pair_rate(both, _agrees),
        confusion=confusion,
        by_strength={
            k: _pair_rate([r for r in both if r.strength == k], _agrees) for k in sorted({r.strength for r in both})
        },
        by_domain={
            k: _pair_rate([r for r in both if r.domain == k], _agrees) for k in sorted({r.domain for r in both})
        },
        by_length={
            k: _pair_rate([r for r in both if _chosen_length(r) == k], _agrees) for k in ("longer", "shorter", "alike")
        },
        longer=(
            _pair_rate(_different_lengths(rows, "judge"), lambda r: _is_longer(r, r.judge)),
            _pair_rate(_different_lengths(rows, "person"), lambda r: _is_longer(r, r.person)),
        ),
        first=_first_position_rate(both_orders),
        flips=_pair_rate(both_orders, lambda r: r.orders is not None and r.orders[0] != r.orders[1]),
        error_raw=calibration_error(decided_N3[:, 0], decided_N3[:, 1], decided_N3[:, 2]),
        error=calibration_error(chances[finite], decided_N3[finite, 1], decided_N3[finite, 2]),
    )


def _pair_rate(rows: Sequence[AuditRow], hit: Callable[[AuditRow], bool]) -> Estimate:
    """A weighted share in which several people of one pair count as one pair."""
    pairs: dict[str, tuple[float, float]] = {}
    for row in rows:
        hits, weight = pairs.get(row.comparison, (0.0, 0.0))
        pairs[row.comparison] = (hits + row.weight * hit(row), weight + row.weight)
    totals = np.array(list(pairs.values())).reshape(-1, 2)
    return hajek_estimate(totals[:, 0] / totals[:, 1], totals[:, 1])


def _agrees(row: AuditRow) -> bool:
    return row.judge == row.person


def _is_longer(row: AuditRow, choice: Choice) -> bool:
    return (row.gap > 0) == (choice == "a")


def _chosen_length(row: AuditRow) -> str:
    return "alike" if abs(row.gap) < SIMILAR_LENGTH else "longer" if _is_longer(row, row.judge) else "shorter"


def _different_lengths(rows: Sequence[AuditRow], rater: str) -> list[AuditRow]:
    return [row for row in rows if abs(row.gap) >= SIMILAR_LENGTH and getattr(row, rater) in ("a", "b")]


def _first_position_rate(rows: Sequence[AuditRow]) -> Estimate:
    """How often the answer shown first won; first is a in the one order and b in the other."""
    verdicts = [
        (choice == first, row.weight)
        for row in rows
        for choice, first in zip(row.orders or (), ("a", "b"), strict=True)
        if choice in ("a", "b")
    ]
    return hajek_estimate(np.array([float(hit) for hit, _ in verdicts]), np.array([weight for _, weight in verdicts]))
