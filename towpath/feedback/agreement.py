"""Inter-rater agreement: percent agreement, Cohen's and Fleiss' kappa, Krippendorff's alpha, with bootstrap
intervals.

Legend: I items (comparisons), C categories, P distinct patterns of items, B resamples. Every statistic is a function
of how often each pattern occurs, so a bootstrap over items is a multinomial draw of those counts, and its cost does
not grow with the number of items.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from math import isfinite
from typing import Literal

import numpy as np

from towpath.data.draws import generator
from towpath.data.intervals import wilson
from towpath.feedback.aggregation import CHOICES, latest_judgements
from towpath.records import Judgement

SCALE = np.arange(-3, 4)  # b strongly … no difference … a strongly
MAX_DRAWS = 4_000_000
"""Counts of a bootstrap held in memory at once."""
LatestJudgements = Mapping[str, Mapping[str, Judgement]]
Statistic = Callable[[np.ndarray], np.ndarray]
Metric = Literal["nominal", "ordinal", "interval"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval and the number of observations."""

    value: float
    low: float
    high: float
    n: int


def pairwise_agreement(judgements: Iterable[Judgement]) -> tuple[float, int]:
    """Share of pairs of raters with the same choice, ties excluded, and the number of pairs."""
    decided = _count_categories(latest_judgements(judgements), 4, _choice)[:, :2]
    pairs = decided.sum(1) * (decided.sum(1) - 1) / 2
    agreeing = (decided * (decided - 1) / 2).sum(1)
    return (float(agreeing.sum() / pairs.sum()), int(pairs.sum())) if pairs.sum() else (0.0, 0)


def proportion(hits: float, n: int) -> Estimate:
    """A share with Wilson's interval; NaN with interval [0, 1] if n is 0."""
    return Estimate(hits / n if n else float("nan"), *wilson(hits, n), n)


def measure_agreement(judgements: Iterable[Judgement], seed: int = 0, resamples: int = 1000) -> dict[str, Estimate]:
    """All agreement statistics, each with a bootstrap interval over comparisons.

    Keys: percent, percent_without_ties, cohen_kappa, cohen_kappa_without_ties, fleiss_kappa, alpha, alpha_ordinal,
    alpha_interval. The last two use strengths, from −3 (b, strongly) to 3 (a, strongly). A statistic that is
    undefined (no pair judged twice, no variation) is left out.
    """
    latest = latest_judgements(judgements)
    all_IC = _count_categories(latest, len(CHOICES), _choice)
    (choices, choice_count), (decided, decided_count) = _patterns(all_IC), _patterns(all_IC[:, :2])
    strengths, strength_count = _patterns(_count_categories(latest, len(SCALE), _strength_level))
    figures = {
        "percent": (_percent(choices), choice_count),
        "percent_without_ties": (_percent(decided), decided_count),
        "cohen_kappa": _cohen(latest, len(CHOICES)),
        "cohen_kappa_without_ties": _cohen(latest, 2),
        "fleiss_kappa": (_fleiss(choices), choice_count),
        "alpha": (_alpha(choices, np.arange(len(CHOICES)), "nominal"), choice_count),
        "alpha_ordinal": (_alpha(strengths, SCALE, "ordinal"), strength_count),
        "alpha_interval": (_alpha(strengths, SCALE, "interval"), strength_count),
    }
    estimates = {
        name: _estimate(figure, count_P, name, seed, resamples)
        for name, (figure, count_P) in figures.items()
        if len(count_P)
    }
    return {name: estimate for name, estimate in estimates.items() if estimate is not None}


def _choice(judgement: Judgement) -> int | None:
    return CHOICES.index(judgement.choice)


def _strength_level(judgement: Judgement) -> int | None:
    """Index into SCALE; None for a pair where both are bad."""
    if judgement.choice == "both_bad":
        return None
    sign = {"a": 1, "b": -1, "tie": 0}[judgement.choice]
    return 3 + sign * judgement.strength


def _count_categories(
    latest: LatestJudgements, categories: int, category: Callable[[Judgement], int | None]
) -> np.ndarray:
    """Number of raters per comparison and category."""
    rows = np.zeros((len(latest), categories))
    for row, by_rater in zip(rows, latest.values(), strict=True):
        for judgement in by_rater.values():
            column = category(judgement)
            if column is not None:
                row[column] += 1
    return rows


def _judged_twice(counts_IC: np.ndarray) -> np.ndarray:
    """Items with at least two judgements."""
    return np.asarray(counts_IC, dtype=float)[np.asarray(counts_IC).sum(1) >= 2]


def _patterns(counts_IC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows among items judged at least twice, and how many items have each."""
    rows_PC, count_P = np.unique(_judged_twice(counts_IC), axis=0, return_counts=True)
    return rows_PC, count_P.astype(float)


def _estimate(figure: Statistic, count_P: np.ndarray, name: str, seed: int, resamples: int) -> Estimate | None:
    """A statistic with its bootstrap interval; None if it is undefined."""
    value = float(figure(count_P[None])[0])
    total = int(count_P.sum())
    if not isfinite(value):
        return None
    draws = generator(seed, "bootstrap/agreement", name)
    block = max(1, MAX_DRAWS // len(count_P))
    blocks = [min(block, resamples - begin) for begin in range(0, resamples, block)]
    samples = np.concatenate([figure(draws.multinomial(total, count_P / total, size).astype(float)) for size in blocks])
    samples = samples[np.isfinite(samples)]
    low, high = np.quantile(samples, [0.025, 0.975]) if len(samples) else (float("nan"), float("nan"))
    # without any disagreement (or agreement) all resamples are equal
    if name.startswith("percent") and low == high:
        low, high = wilson(value * total, total)
    return Estimate(value, float(low), float(high), total)


def _safe_divide(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=np.abs(bottom) > 1e-12)


def _percent(rows_PC: np.ndarray) -> Statistic:
    """Share of rater pairs on one item with the same choice."""
    raters_P = rows_PC.sum(1)
    pairs_P = raters_P * (raters_P - 1)
    agreeing_P = (rows_PC * (rows_PC - 1)).sum(1)
    return lambda weight_BP: _safe_divide(weight_BP @ agreeing_P, weight_BP @ pairs_P)


def _fleiss(rows_PC: np.ndarray) -> Statistic:
    """Fleiss 1971: mean agreement of rater pairs per item, against the overall share of each category."""
    raters_P = rows_PC.sum(1)
    agreement_P = (rows_PC * (rows_PC - 1)).sum(1) / (raters_P * (raters_P - 1))

    def figure(weight_BP: np.ndarray) -> np.ndarray:
        observed_B = _safe_divide(weight_BP @ agreement_P, weight_BP.sum(1))
        chance_B = (
            _safe_divide(weight_BP @ rows_PC, np.repeat((weight_BP @ raters_P)[:, None], rows_PC.shape[1], 1)) ** 2
        ).sum(1)
        return _safe_divide(observed_B - chance_B, 1 - chance_B)

    return figure


def _alpha(rows_PC: np.ndarray, values_C: np.ndarray, metric: Metric) -> Statistic:
    """Krippendorff 2011: one minus observed over expected disagreement, from the coincidence matrix."""
    size = rows_PC.shape[1]
    pairs_PCC = (rows_PC[:, :, None] * rows_PC[:, None, :] - np.eye(size) * rows_PC[:, :, None]) / (rows_PC.sum(1) - 1)[
        :, None, None
    ]

    def figure(weight_BP: np.ndarray) -> np.ndarray:
        coincidence_BCC = (weight_BP @ pairs_PCC.reshape(len(rows_PC), size**2)).reshape(-1, size, size)
        total_BC = coincidence_BCC.sum(2)
        if metric == "nominal":
            distance_BCC = np.broadcast_to(1.0 - np.eye(size), coincidence_BCC.shape)
        else:  # the ordinal distance of two values is that of their mean ranks among all values
            rank_BC = (
                np.cumsum(total_BC, 1) - total_BC / 2
                if metric == "ordinal"
                else np.broadcast_to(values_C.astype(float), total_BC.shape)
            )
            distance_BCC = (rank_BC[:, :, None] - rank_BC[:, None, :]) ** 2
        observed_B = (coincidence_BCC * distance_BCC).sum((1, 2))
        expected_B = (total_BC[:, :, None] * total_BC[:, None, :] * distance_BCC).sum((1, 2))
        return 1 - (total_BC.sum(1) - 1) * _safe_divide(observed_B, expected_B)

    return figure


def _cohen(latest: LatestJudgements, categories: int) -> tuple[Statistic, np.ndarray]:
    """Cohen 1960, pooled over pairs of raters; a pattern is who chose what on one item. With two categories only a and
    b count."""
    patterns: dict[tuple[tuple[str, int], ...], int] = defaultdict(int)
    for by_rater in latest.values():
        choices = sorted(
            (rater, CHOICES.index(j.choice)) for rater, j in by_rater.items() if CHOICES.index(j.choice) < categories
        )
        if len(choices) >= 2:
            patterns[tuple(choices)] += 1
    pairs: dict[tuple[str, str], int] = {}
    rows = []
    for number, pattern in enumerate(patterns):
        for (first, x), (second, y) in combinations(pattern, 2):
            pair = pairs.setdefault((first, second), len(pairs))
            rows.append((number, (pair * categories + x) * categories + y))
    pattern_D, cell_D = np.array(rows, dtype=np.intp).reshape(-1, 2).T

    def kappa(weight_P: np.ndarray) -> float:
        tables = np.bincount(cell_D, weight_P[pattern_D], len(pairs) * categories**2).reshape(
            -1, categories, categories
        )
        n = tables.sum((1, 2))
        chance = np.nansum(_safe_divide((tables.sum(2) * tables.sum(1)).sum(1), n))
        room = n.sum() - chance
        return float((np.trace(tables, axis1=1, axis2=2).sum() - chance) / room) if room > 1e-12 else float("nan")

    return (lambda weight_BP: np.array([kappa(weight_P) for weight_P in weight_BP])), np.array(
        list(patterns.values()), dtype=float
    )
