"""Statistics of a set of answers: diversity, repetition, length, share that ended."""

from collections.abc import Sequence

from towpath.data.ngrams import distinct, repetition
from towpath.reasoning import final_answer
from towpath.records import Completion


def text_statistics(completions: Sequence[Completion]) -> dict[str, float]:
    """The statistics of one model's answers."""
    tokens = [c.token_ids for c in completions]
    count = max(len(tokens), 1)
    return {
        **{f"distinct_{n}": distinct(tokens, n) for n in (1, 2, 3)},
        "repetition": sum(repetition(t) for t in tokens) / count,
        "finish_rate": sum(c.finish == "stop" for c in completions) / count,
        "mean_words": sum(len(final_answer(c.text).split()) for c in completions) / count,
        "mean_tokens": sum(map(len, tokens)) / count,
    }
