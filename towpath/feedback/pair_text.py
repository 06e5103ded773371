"""The texts of a comparison, as a judge or a rule gets them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PairText:
    """A comparison with its prompt and both answers, without their reasoning."""

    comparison: str
    prompt: str
    """The whole conversation as text."""
    a: str
    b: str
    round: int = 1
