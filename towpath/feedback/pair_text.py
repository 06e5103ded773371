"""What is put before a judge or a rule."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Case:
    """One comparison with its texts."""

    comparison: str
    prompt: str
    a: str
    b: str
    round: int = 1
