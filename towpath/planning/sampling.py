"""Speeds of sampling from a few samplings that were timed.

seconds = rows * prompt * p + steps * s + tokens * (r + tokens before * c)
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TimedSampling:
    """Answers that were sampled together, which may have ended before they had to."""

    seconds: float
    prompt: float
    """Mean tokens of a prompt."""
    lengths: Sequence[int]
    """Tokens of each answer."""

    @property
    def steps(self) -> int:
        """Token steps: those of the longest answer."""
        return max(self.lengths)

    @property
    def tokens(self) -> int:
        """Of all answers."""
        return sum(self.lengths)

    @property
    def before(self) -> float:
        """Mean tokens before a sampled one."""
        return self.prompt + sum(length**2 for length in self.lengths) / (2 * self.tokens)


@dataclass(frozen=True)
class SamplingSpeed:
    """Seconds of a token step, of a row in it and of each token before that, and of a token of a prompt."""

    step: float
    row: float
    context: float
    prompt: float


def sampling_speed(
    few: tuple[TimedSampling, TimedSampling], many: tuple[TimedSampling, TimedSampling], long: TimedSampling
) -> SamplingSpeed:
    """`few` and `many` rows, each with few tokens and then with more; `long`: answers as long as they get."""
    seconds, steps, tokens = (
        [getattr(pair[1], name) - getattr(pair[0], name) for pair in (few, many)]
        for name in ("seconds", "steps", "tokens")
    )
    determinant = steps[0] * tokens[1] - steps[1] * tokens[0]
    row = max(0.0, (seconds[1] * steps[0] - seconds[0] * steps[1]) / determinant) if determinant > 0 else 0.0
    step = max(0.0, (seconds[0] - tokens[0] * row) / steps[0]) if steps[0] > 0 else 0.0
    brief, more = many
    prompt = max(0.0, brief.seconds - brief.steps * step - brief.tokens * row) / (len(brief.lengths) * brief.prompt)
    rest = long.seconds - len(long.lengths) * long.prompt * prompt - long.steps * step
    further = long.before - more.before
    # few tokens further would divide what is noise
    context = max(0.0, rest / long.tokens - row) / further if further > more.steps / 2 else 0.0
    return SamplingSpeed(step, max(0.0, row - context * more.before), context, prompt)
