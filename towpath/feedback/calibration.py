"""A judge held against people on the pairs both judged, and its certainty turned into the chance that a person
agrees.

Which pairs people see is not chance alone: routing sends them the hard ones. So each pair weighs the inverse of its
propensity, the probability that a person saw it. Legend: N rows, K knots.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit

from towpath.data.draws import hash_uniform
from towpath.data.intervals import Z, wilson
from towpath.errors import DataError
from towpath.feedback.aggregation import CHOICES, latest_judgements
from towpath.feedback.agreement import Estimate
from towpath.feedback.rater_quality import PEOPLE
from towpath.records import Choice, Judgement

FOLDS = 5
BINS = 10  # of the calibration error: at most so many bins, of at least so many judgements
EACH = 100
ALIKE = 0.1  # lengths that differ by less than a tenth of their mean are called alike


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One person's word beside the judge's on one pair; `weight` is the inverse propensity, shared among the people
    of the pair."""

    comparison: str
    judge: Choice
    person: Choice
    certainty: float
    weight: float = 1.0
    strength: int = 1
    domain: str = "general"
    gap: float = 0.0
    """How much longer a is than b, in parts of their mean."""
    orders: tuple[Choice, Choice] | None = None
    """What the judge said with a shown first, and with b shown first."""

    @property
    def longer(self) -> float:
        """How much longer the answer is that the judge chose."""
        return {"a": self.gap, "b": -self.gap}.get(self.judge, 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """A non-decreasing map from a judge's certainty to the chance that a person agrees; `n` is the effective number
    of judgements behind it."""

    certainty_K: np.ndarray
    chance_K: np.ndarray
    n: float
    lean: tuple[float, float] = (0.0, 0.0)
    """What a judge's liking for length changes, in log odds: always, and by how much longer the chosen answer is in
    parts of the mean length."""

    def chance(self, certainty: float, longer: float = 0.0) -> float:
        """The chance that a person agrees with a verdict of this certainty for an answer so much longer than the
        other."""
        return float(
            expit(logit(np.interp(certainty, self.certainty_K, self.chance_K)) + self.lean[0] + self.lean[1] * longer)
        )


@dataclass(frozen=True, slots=True)
class JudgeReport:
    """A judge beside people, weighted to all pairs. Accuracies leave out what either called a tie or bad."""

    agreement: Estimate
    accuracy: Estimate
    confusion: dict[str, dict[str, float]]
    """Shares of all pairs: what the judge said, then what a person said."""
    by_strength: dict[int, Estimate]
    by_domain: dict[str, Estimate]
    by_length: dict[str, Estimate]
    """By what the judge chose: the longer answer, the shorter, or lengths alike."""
    longer: tuple[Estimate, Estimate]
    """How often the longer answer won with the judge, and with people."""
    first: Estimate
    """How often the answer shown first won, over both orders."""
    flips: Estimate
    """How often the verdict turned with the order."""
    error_raw: float
    error: float
    """Expected calibration error of the judge's own certainty, and of the fitted chance on pairs left out of the
    fit."""


def certainty(judgement: Judgement) -> float:
    """How sure a judge is, from 0 to 1: the share of its votes that agree, told apart by the strength of the
    verdict."""
    return float(judgement.details.get("confidence", 1.0)) * (0.5 + judgement.strength / 6)


def audit_rows(
    judgements: Iterable[Judgement],
    judge: str,
    propensity: Mapping[str, float] | None = None,
    lengths: Mapping[str, tuple[int, int]] | None = None,
    domains: Mapping[str, str] | None = None,
) -> list[AuditRow]:
    """Every person's word on every pair that this judge judged too; the mappings are by comparison, and a missing
    propensity is 1."""
    rows = []
    for comparison, by_rater in latest_judgements(judgements).items():
        people = [j for j in by_rater.values() if j.kind in PEOPLE]
        said = by_rater.get(judge)
        if said is None or not people:
            continue
        chance = (propensity or {}).get(comparison, 1.0)
        if not 0 < chance <= 1:
            raise DataError(
                f"{comparison}: propensity {chance}",
                "a probability above 0 and at most 1",
                "take it from the route of the pair",
            )
        a, b = (lengths or {}).get(comparison, (1, 1))
        gap = 2 * (a - b) / max(a + b, 1)
        domain = (domains or {}).get(comparison, "general")
        weight = 1 / chance / len(people)
        sure = certainty(said)
        orders = _orders(said)
        rows += [
            AuditRow(comparison, said.choice, j.choice, sure, weight, said.strength, domain, gap, orders)
            for j in people
        ]
    return rows


def _orders(judgement: Judgement) -> tuple[Choice, Choice] | None:
    """What a judge said in either order, where it was asked in both."""
    told = judgement.details.get("orders") or {}
    return (told["ab"], told["ba"]) if told.get("ab") in CHOICES and told.get("ba") in CHOICES else None


def isotonic(x_N: np.ndarray, y_N: np.ndarray, weight_N: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The distinct x, and at each the height of the non-decreasing steps nearest to y in weighted squares:
    neighbours that fall are pooled."""
    weights = np.ones(len(x_N)) if weight_N is None else weight_N
    knots, place = np.unique(x_N, return_inverse=True)
    masses = np.bincount(place, weights)
    blocks: list[tuple[float, float, int]] = []  # sum of weighted y, mass, how many knots
    for total, mass in zip(np.bincount(place, weights * y_N), masses, strict=True):
        block = (float(total), float(mass), 1)
        while blocks and blocks[-1][0] * block[1] >= block[0] * blocks[-1][1]:
            before = blocks.pop()
            block = (before[0] + block[0], before[1] + block[1], before[2] + block[2])
        blocks.append(block)
    return knots, np.concatenate([np.full(count, total / mass) for total, mass, count in blocks])


def credit(judge: Choice, person: Choice) -> float:
    """1 where a person agrees with a decided verdict, 0 where they say the opposite, a half where they see no
    difference."""
    return 1.0 if judge == person else 0.5 if person in ("tie", "both_bad") else 0.0


def calibrate(rows: Sequence[AuditRow]) -> Calibration:
    """The isotonic map of a judge's certainty, with its lean to length; each step is drawn towards a half by one
    judgement: few are no certainty."""
    kept = [row for row in rows if row.judge in ("a", "b")]
    if not kept:
        raise DataError(
            "no pair was decided by the judge and seen by a person",
            "a judge is calibrated on an audit slice",
            "have people rate some pairs",
        )
    x, y, weight = (
        np.array(column)
        for column in zip(*((r.certainty, credit(r.judge, r.person), r.weight) for r in kept), strict=True)
    )
    effective = float(weight.sum() ** 2 / (weight**2).sum())
    mass = weight * effective / weight.sum()
    knots, height = isotonic(x, y, mass)
    _, step = np.unique(height, return_inverse=True)
    masses = np.bincount(step, np.bincount(np.searchsorted(knots, x), mass))
    drawn = (np.bincount(step, height) / np.bincount(step) * masses + 0.5) / (masses + 1)
    _, settled = isotonic(np.arange(len(drawn)), drawn, masses + 1)
    height = settled[step]
    lean = _lean(logit(np.interp(x, knots, height)), np.array([row.longer for row in kept]), y, mass)
    return Calibration(knots, height, effective, lean)


def _lean(odds_N: np.ndarray, longer_N: np.ndarray, credit_N: np.ndarray, weight_N: np.ndarray) -> tuple[float, float]:
    """Intercept and slope by length of the log odds of agreement beside what certainty says, by Newton's method;
    normal priors of deviation 1."""
    if not longer_N.any():
        return 0.0, 0.0
    x_N2 = np.stack([np.ones_like(longer_N), longer_N], axis=1)
    lean = np.zeros(2)
    for _ in range(20):
        chance_N = expit(odds_N + x_N2 @ lean)
        slope = x_N2.T @ (weight_N * (credit_N - chance_N)) - lean
        bend = (x_N2 * (weight_N * chance_N * (1 - chance_N))[:, None]).T @ x_N2 + np.eye(2)
        lean += np.linalg.solve(bend, slope)
        if np.abs(slope).max() < 1e-9:
            break
    return float(lean[0]), float(lean[1])


def held_out_chances(rows: Sequence[AuditRow], seed: int = 0) -> np.ndarray:
    """For each row the fitted chance that a person agrees, by a map that saw other pairs only; NaN where the judge
    decided nothing."""
    folds = np.array([int(hash_uniform(seed, "calibration", row.comparison) * FOLDS) for row in rows])
    chances = np.full(len(rows), np.nan)
    for fold in np.unique(folds):
        rest = [row for row, other in zip(rows, folds, strict=True) if other != fold]
        if any(row.judge in ("a", "b") for row in rest):
            fitted = calibrate(rest)
            for place, row in enumerate(rows):
                if folds[place] == fold and row.judge in ("a", "b"):
                    chances[place] = fitted.chance(row.certainty, row.longer)
    return chances


def calibration_error(
    chance_N: np.ndarray, credit_N: np.ndarray, weight_N: np.ndarray | None = None, bins: int | None = None
) -> float:
    """Expected calibration error: the mean distance of told from seen, over bins of equal weight; equal chances
    share a bin.

    As many bins as keep a hundred effective judgements each, and at most ten: with fewer, chance alone makes an
    error of several points.
    """
    if not len(chance_N):
        return float("nan")
    weights = np.ones(len(chance_N)) if weight_N is None else weight_N
    many = bins or int(np.clip(weights.sum() ** 2 / (weights**2).sum() / EACH, 1, BINS))
    _, place = np.unique(chance_N, return_inverse=True)
    mass = np.bincount(place, weights)
    middle = (np.cumsum(mass) - mass / 2) / mass.sum()
    in_bin = np.minimum((middle * many).astype(int), many - 1)[place]
    return float(np.abs(np.bincount(in_bin, weights * (chance_N - credit_N))).sum() / weights.sum())


def hajek(values: Sequence[float], propensity: Sequence[float]) -> Estimate:
    """A rate among all, from those that were seen: weights of inverse propensity, divided by their sum. Wilson's
    interval at the effective number."""
    return _weighed(np.asarray(values, float), 1 / np.asarray(propensity, float))


def horvitz_thompson(values: Sequence[float], propensity: Sequence[float], population: int) -> Estimate:
    """A rate among `population`, from those that were seen: values over propensity, divided by the known number.
    Normal interval."""
    y = np.asarray(values, float)
    chance = np.asarray(propensity, float)
    rate = float((y / chance).sum() / population)
    spread = np.sqrt(((1 - chance) * (y / chance) ** 2).sum()) / population
    drawn = np.sqrt(max(rate * (1 - rate), 0.0) / population)
    off = Z * float(np.hypot(spread, drawn))
    return Estimate(rate, max(0.0, rate - off), min(1.0, rate + off), len(y))


def _weighed(hit_N: np.ndarray, weight_N: np.ndarray) -> Estimate:
    if not len(hit_N):
        return Estimate(float("nan"), 0.0, 1.0, 0)
    rate = float((hit_N * weight_N).sum() / weight_N.sum())
    effective = float(weight_N.sum() ** 2 / (weight_N**2).sum())
    return Estimate(rate, *wilson(rate * effective, effective), len(hit_N))


def judge_report(rows: Sequence[AuditRow], seed: int = 0) -> JudgeReport:
    """Everything an audit slice tells of a judge."""
    names: list[str] = list(CHOICES)
    confusion = {judge: dict.fromkeys(names, 0.0) for judge in names}
    whole = sum(row.weight for row in rows) or 1.0
    for row in rows:
        confusion[row.judge][row.person] += row.weight / whole
    both = [row for row in rows if row.judge in ("a", "b") and row.person in ("a", "b")]
    asked = [row for row in rows if row.orders]
    decided = [row for row in rows if row.judge in ("a", "b")]
    told = np.array([(row.certainty, credit(row.judge, row.person), row.weight) for row in decided]).reshape(-1, 3)
    chances = held_out_chances(decided, seed)
    seen = np.isfinite(chances)
    return JudgeReport(
        agreement=_rate(rows, _right),
        accuracy=_rate(both, _right),
        confusion=confusion,
        by_strength={
            k: _rate([r for r in both if r.strength == k], _right) for k in sorted({r.strength for r in both})
        },
        by_domain={k: _rate([r for r in both if r.domain == k], _right) for k in sorted({r.domain for r in both})},
        by_length={k: _rate([r for r in both if _chose(r) == k], _right) for k in ("longer", "shorter", "alike")},
        longer=(
            _rate(_uneven(rows, "judge"), lambda r: _is_longer(r, r.judge)),
            _rate(_uneven(rows, "person"), lambda r: _is_longer(r, r.person)),
        ),
        first=_first(asked),
        flips=_rate(asked, lambda r: r.orders is not None and r.orders[0] != r.orders[1]),
        error_raw=calibration_error(told[:, 0], told[:, 1], told[:, 2]),
        error=calibration_error(chances[seen], told[seen, 1], told[seen, 2]),
    )


def _rate(rows: Sequence[AuditRow], hit: Callable[[AuditRow], bool]) -> Estimate:
    """A weighted share in which several people of one pair count as one pair."""
    pairs: dict[str, tuple[float, float]] = {}
    for row in rows:
        hits, weight = pairs.get(row.comparison, (0.0, 0.0))
        pairs[row.comparison] = (hits + row.weight * hit(row), weight + row.weight)
    found = np.array(list(pairs.values())).reshape(-1, 2)
    return _weighed(found[:, 0] / found[:, 1], found[:, 1])


def _right(row: AuditRow) -> bool:
    return row.judge == row.person


def _is_longer(row: AuditRow, choice: Choice) -> bool:
    return (row.gap > 0) == (choice == "a")


def _chose(row: AuditRow) -> str:
    return "alike" if abs(row.gap) < ALIKE else "longer" if _is_longer(row, row.judge) else "shorter"


def _uneven(rows: Sequence[AuditRow], who: str) -> list[AuditRow]:
    return [row for row in rows if abs(row.gap) >= ALIKE and getattr(row, who) in ("a", "b")]


def _first(asked: Sequence[AuditRow]) -> Estimate:
    """Both orders of each pair are told one after the other: shown first is a in the one and b in the other."""
    seen = [
        (said == first, row.weight)
        for row in asked
        for said, first in zip(row.orders or (), ("a", "b"), strict=True)
        if said in ("a", "b")
    ]
    return _weighed(np.array([float(hit) for hit, _ in seen]), np.array([weight for _, weight in seen]))
