"""How far raters agree, and what that allows a model trained on them."""

from collections.abc import Iterable
from itertools import combinations
from math import sqrt

from towpath.records import Judgement


def _doubles(judgements: Iterable[Judgement]) -> list[tuple[str, str]]:
    """Every pair of decided choices that two raters made on one comparison."""
    by_comparison: dict[str, dict[str, str]] = {}
    for j in judgements:
        if j.choice in ("a", "b"):
            by_comparison.setdefault(j.comparison, {})[j.rater] = j.choice
    return [pair for said in by_comparison.values() for pair in combinations(said.values(), 2)]


def pairwise_agreement(judgements: Iterable[Judgement]) -> tuple[float, int]:
    """Share of doubly judged comparisons on which two raters chose the same answer, and how many there are."""
    doubles = _doubles(judgements)
    return (sum(a == b for a, b in doubles) / len(doubles), len(doubles)) if doubles else (0.0, 0)


def kappa(judgements: Iterable[Judgement]) -> float:
    """Cohen's kappa: agreement beyond what two coins of the same bias would show."""
    doubles = _doubles(judgements)
    if not doubles:
        return 0.0
    observed = sum(a == b for a, b in doubles) / len(doubles)
    share = sum((a == "a") + (b == "a") for a, b in doubles) / (2 * len(doubles))
    chance = share**2 + (1 - share) ** 2
    return (observed - chance) / (1 - chance) if chance < 1 else 1.0


def ceiling(agreement: float) -> float:
    """The best accuracy against one rater's label when two equal raters agree this often."""
    return 0.5 * (1 + sqrt(max(0.0, 2 * agreement - 1)))
