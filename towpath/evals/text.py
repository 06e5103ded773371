"""What a set of answers looks like: diversity, repetition, length, how many end."""

from collections.abc import Sequence

from towpath.records import Completion


def distinct(texts: Sequence[Sequence[int]], n: int) -> float:
    """Different n-grams of tokens over all n-grams."""
    grams = [tuple(tokens[i : i + n]) for tokens in texts for i in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition(tokens: Sequence[int], n: int = 3) -> float:
    """Share of an answer's n-grams that it has said before."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def describe(completions: Sequence[Completion]) -> dict[str, float]:
    """The figures of one model's answers."""
    tokens = [c.token_ids for c in completions]
    count = max(len(tokens), 1)
    return {
        **{f"distinct_{n}": distinct(tokens, n) for n in (1, 2, 3)},
        "repetition": sum(repetition(t) for t in tokens) / count,
        "finish_rate": sum(c.finish == "stop" for c in completions) / count,
        "mean_words": sum(len(c.text.split()) for c in completions) / count,
        "mean_tokens": sum(map(len, tokens)) / count,
    }
