"""How far raters agree, and what that allows a model trained on them."""

from collections import defaultdict
from collections.abc import Iterable
from itertools import combinations
from math import sqrt

from towpath.feedback.aggregation import latest
from towpath.records import Judgement


def pairwise_agreement(judgements: Iterable[Judgement]) -> tuple[float, int]:
    """Share of pairs of raters who chose the same answer of one comparison, ties left out, and how many pairs there are."""
    doubles = [double for pair in _doubles(judgements).values() for double in pair]
    return (sum(a == b for a, b in doubles) / len(doubles), len(doubles)) if doubles else (0.0, 0)


def cohen_kappa(judgements: Iterable[Judgement]) -> float:
    """Agreement beyond chance, each rater with their own leaning; 0 where chance alone would agree. More than two raters: pooled over pairs."""
    observed = chance = count = 0.0
    for doubles in _doubles(judgements).values():
        n = len(doubles)
        first, second = (sum(double[k] == "a" for double in doubles) / n for k in (0, 1))
        observed += sum(a == b for a, b in doubles)
        chance += n * (first * second + (1 - first) * (1 - second))
        count += n
    return (observed - chance) / (count - chance) if count > chance else 0.0


def ceiling(agreement: float) -> float:
    """The best accuracy against one rater's label when two equal raters agree this often."""
    return 0.5 * (1 + sqrt(max(0.0, 2 * agreement - 1)))


def _doubles(judgements: Iterable[Judgement]) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """By pair of raters, their two choices on every comparison that both decided."""
    found: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for by_rater in latest(judgements).values():
        decided = sorted((rater, j.choice) for rater, j in by_rater.items() if j.choice in ("a", "b"))
        for (first, a), (second, b) in combinations(decided, 2):
            found[first, second].append((a, b))
    return found
