"""Runs of tokens within an answer: what it says twice, and how much that differs several of them hold."""

from collections.abc import Sequence

Gram = tuple[int, ...]


def grams(tokens: Sequence[int], n: int) -> list[Gram]:
    """Every n tokens that follow each other."""
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def repetition(tokens: Sequence[int], n: int = 3) -> float:
    """Share of an answer's n-grams that it has said before."""
    said = grams(tokens, n)
    return 1 - len(set(said)) / len(said) if said else 0.0


def distinct(answers: Sequence[Sequence[int]], n: int) -> float:
    """Different n-grams of all answers over all n-grams."""
    said = [gram for tokens in answers for gram in grams(tokens, n)]
    return len(set(said)) / len(said) if said else 0.0
