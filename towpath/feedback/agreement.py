"""How far raters agree beyond chance, how sure that is, and what it allows a model trained on them.

Legend: I items (comparisons), C categories, P distinct patterns of items, B resamples. Every figure is a function of
how often each pattern occurs, so a bootstrap over items is a multinomial draw of those counts: its cost does not
grow with the number of items.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from math import isfinite, sqrt
from typing import Literal

import numpy as np

from towpath.data.draws import generator
from towpath.data.intervals import wilson
from towpath.feedback.aggregation import CHOICES, latest_judgements
from towpath.records import Judgement

SCALE = np.arange(-3, 4)  # b strongly … no difference … a strongly
BLOCK = 4_000_000  # counts drawn at once
Said = Mapping[str, Mapping[str, Judgement]]
Figure = Callable[[np.ndarray], np.ndarray]
Metric = Literal["nominal", "ordinal", "interval"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval, and how many observations it stands on."""

    value: float
    low: float
    high: float
    n: int


def pairwise_agreement(judgements: Iterable[Judgement]) -> tuple[float, int]:
    """Share of pairs of raters who chose the same answer of one comparison, ties left out, and how many pairs there
    are."""
    decided = _counts(latest_judgements(judgements), 4, _choice)[:, :2]
    pairs = decided.sum(1) * (decided.sum(1) - 1) / 2
    agreeing = (decided * (decided - 1) / 2).sum(1)
    return (float(agreeing.sum() / pairs.sum()), int(pairs.sum())) if pairs.sum() else (0.0, 0)


def cohen_kappa(judgements: Iterable[Judgement], ties: bool = False) -> float:
    """Agreement beyond chance, each rater with their own leaning; 0 where chance alone would agree. More than two
    raters: pooled over pairs."""
    figure, patterns = _cohen(latest_judgements(judgements), 4 if ties else 2)
    kappa = float(figure(patterns[None])[0]) if len(patterns) else 0.0
    return kappa if isfinite(kappa) else 0.0


def fleiss_kappa(counts_IC: np.ndarray) -> float:
    """Agreement of many raters beyond chance, all with one leaning; rows of one judgement say nothing. NaN where
    chance alone would agree."""
    kept = _doubled(counts_IC)
    return float(_fleiss(kept)(np.ones((1, len(kept))))[0])


def krippendorff_alpha(counts_IC: np.ndarray, values: np.ndarray | None = None, metric: Metric = "nominal") -> float:
    """One less observed over expected disagreement, for any number of raters and gaps; `values` are the categories'
    places on an interval scale."""
    kept = _doubled(counts_IC)
    places = np.arange(kept.shape[1]) if values is None else values
    return float(_alpha(kept, places, metric)(np.ones((1, len(kept))))[0])


def accuracy_ceiling(agreement: float) -> float:
    """The best accuracy against one rater's label when two equal raters agree this often."""
    return 0.5 * (1 + sqrt(max(0.0, 2 * agreement - 1)))


def proportion(hits: float, n: int) -> Estimate:
    """A share with Wilson's interval; NaN of nothing, with an interval that knows nothing."""
    return Estimate(hits / n if n else float("nan"), *wilson(hits, n), n)


def measure_agreement(judgements: Iterable[Judgement], seed: int = 0, resamples: int = 1000) -> dict[str, Estimate]:
    """Every figure of agreement that the judgements can tell, each with a bootstrap interval over comparisons.

    Keys: percent, percent_without_ties, cohen_kappa, cohen_kappa_without_ties, fleiss_kappa, alpha, alpha_ordinal,
    alpha_interval. Those on strengths read a judgement as a place from −3 (b, strongly) to 3 (a, strongly). A figure
    that is undefined (nothing judged twice, no variation) is left out.
    """
    said = latest_judgements(judgements)
    all_IC = _counts(said, len(CHOICES), _choice)
    (choices, often), (decided, how_often) = _patterns(all_IC), _patterns(all_IC[:, :2])
    places, times = _patterns(_counts(said, len(SCALE), _place))
    figures = {
        "percent": (_percent(choices), often),
        "percent_without_ties": (_percent(decided), how_often),
        "cohen_kappa": _cohen(said, len(CHOICES)),
        "cohen_kappa_without_ties": _cohen(said, 2),
        "fleiss_kappa": (_fleiss(choices), often),
        "alpha": (_alpha(choices, np.arange(len(CHOICES)), "nominal"), often),
        "alpha_ordinal": (_alpha(places, SCALE, "ordinal"), times),
        "alpha_interval": (_alpha(places, SCALE, "interval"), times),
    }
    found = {
        name: _estimate(figure, count_P, name, seed, resamples)
        for name, (figure, count_P) in figures.items()
        if len(count_P)
    }
    return {name: estimate for name, estimate in found.items() if estimate is not None}


def _choice(judgement: Judgement) -> int | None:
    return CHOICES.index(judgement.choice)


def _place(judgement: Judgement) -> int | None:
    """A judgement's place among SCALE; a pair that is bad on both sides has none."""
    if judgement.choice == "both_bad":
        return None
    sign = {"a": 1, "b": -1, "tie": 0}[judgement.choice]
    return 3 + sign * judgement.strength


def _counts(said: Said, categories: int, category: Callable[[Judgement], int | None]) -> np.ndarray:
    """How many raters put each comparison into each category."""
    rows = np.zeros((len(said), categories))
    for row, by_rater in zip(rows, said.values(), strict=True):
        for judgement in by_rater.values():
            place = category(judgement)
            if place is not None:
                row[place] += 1
    return rows


def _doubled(counts_IC: np.ndarray) -> np.ndarray:
    """Items that at least two raters judged."""
    return np.asarray(counts_IC, dtype=float)[np.asarray(counts_IC).sum(1) >= 2]


def _patterns(counts_IC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different rows among items judged at least twice, and how many items look so."""
    rows_PC, count_P = np.unique(_doubled(counts_IC), axis=0, return_counts=True)
    return rows_PC, count_P.astype(float)


def _estimate(figure: Figure, count_P: np.ndarray, name: str, seed: int, resamples: int) -> Estimate | None:
    """A figure of patterns by how often each occurs, and what resampling the items makes of it."""
    value = float(figure(count_P[None])[0])
    total = int(count_P.sum())
    if not isfinite(value):
        return None
    draws = generator(seed, "bootstrap/agreement", name)
    block = max(1, BLOCK // len(count_P))
    blocks = [min(block, resamples - begin) for begin in range(0, resamples, block)]
    told = np.concatenate([figure(draws.multinomial(total, count_P / total, size).astype(float)) for size in blocks])
    told = told[np.isfinite(told)]
    low, high = np.quantile(told, [0.025, 0.975]) if len(told) else (float("nan"), float("nan"))
    # no pair apart (or none alike): resampling cannot see what was never drawn
    if name.startswith("percent") and low == high:
        low, high = wilson(value * total, total)
    return Estimate(value, float(low), float(high), total)


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=np.abs(bottom) > 1e-12)


def _percent(rows_PC: np.ndarray) -> Figure:
    """Of all pairs of raters on one item, the share that said the same."""
    raters_P = rows_PC.sum(1)
    pairs_P = raters_P * (raters_P - 1)
    alike_P = (rows_PC * (rows_PC - 1)).sum(1)
    return lambda weight_BP: _ratio(weight_BP @ alike_P, weight_BP @ pairs_P)


def _fleiss(rows_PC: np.ndarray) -> Figure:
    """Fleiss 1971: the mean over items of agreeing pairs, against categories drawn by their overall shares."""
    raters_P = rows_PC.sum(1)
    alike_P = (rows_PC * (rows_PC - 1)).sum(1) / (raters_P * (raters_P - 1))

    def figure(weight_BP: np.ndarray) -> np.ndarray:
        observed_B = _ratio(weight_BP @ alike_P, weight_BP.sum(1))
        chance_B = (
            _ratio(weight_BP @ rows_PC, np.repeat((weight_BP @ raters_P)[:, None], rows_PC.shape[1], 1)) ** 2
        ).sum(1)
        return _ratio(observed_B - chance_B, 1 - chance_B)

    return figure


def _alpha(rows_PC: np.ndarray, values_C: np.ndarray, metric: Metric) -> Figure:
    """Krippendorff 2011: disagreement in the table of coincidences, against the same values paired at random."""
    size = rows_PC.shape[1]
    pairs_PCC = (rows_PC[:, :, None] * rows_PC[:, None, :] - np.eye(size) * rows_PC[:, :, None]) / (rows_PC.sum(1) - 1)[
        :, None, None
    ]

    def figure(weight_BP: np.ndarray) -> np.ndarray:
        met_BCC = (weight_BP @ pairs_PCC.reshape(len(rows_PC), size**2)).reshape(-1, size, size)
        total_BC = met_BCC.sum(2)
        if metric == "nominal":
            apart_BCC = np.broadcast_to(1.0 - np.eye(size), met_BCC.shape)
        else:  # the ordinal distance of two ranks is that of their mean places in the row of all values
            place_BC = (
                np.cumsum(total_BC, 1) - total_BC / 2
                if metric == "ordinal"
                else np.broadcast_to(values_C.astype(float), total_BC.shape)
            )
            apart_BCC = (place_BC[:, :, None] - place_BC[:, None, :]) ** 2
        seen_B = (met_BCC * apart_BCC).sum((1, 2))
        expected_B = (total_BC[:, :, None] * total_BC[:, None, :] * apart_BCC).sum((1, 2))
        return 1 - (total_BC.sum(1) - 1) * _ratio(seen_B, expected_B)

    return figure


def _cohen(said: Said, categories: int) -> tuple[Figure, np.ndarray]:
    """Cohen 1960, pooled over pairs of raters; a pattern is who said what of one item. With two categories only a
    and b count."""
    patterns: dict[tuple[tuple[str, int], ...], int] = defaultdict(int)
    for by_rater in said.values():
        kept = sorted(
            (rater, CHOICES.index(j.choice)) for rater, j in by_rater.items() if CHOICES.index(j.choice) < categories
        )
        if len(kept) >= 2:
            patterns[tuple(kept)] += 1
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
        chance = np.nansum(_ratio((tables.sum(2) * tables.sum(1)).sum(1), n))
        room = n.sum() - chance
        return float((np.trace(tables, axis1=1, axis2=2).sum() - chance) / room) if room > 1e-12 else float("nan")

    return (lambda weight_BP: np.array([kappa(weight_P) for weight_P in weight_BP])), np.array(
        list(patterns.values()), dtype=float
    )
