"""Repetition and diversity of token n-grams."""

from collections.abc import Sequence

Gram = tuple[int, ...]


def grams(tokens: Sequence[int], n: int) -> list[Gram]:
    """All n-grams of a token sequence."""
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def repetition(tokens: Sequence[int], n: int = 3) -> float:
    """Share of an answer's n-grams that occurred before in it."""
    ngrams = grams(tokens, n)
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def distinct(answers: Sequence[Sequence[int]], n: int) -> float:
    """Distinct n-grams of all answers divided by all n-grams."""
    ngrams = [gram for tokens in answers for gram in grams(tokens, n)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0
