"""What an engine promises: tokens, their log-probabilities, and why each answer ended."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from towpath.recipe import Decoding


@dataclass(frozen=True, slots=True)
class Request:
    """One answer wanted: the prompt's tokens, how to draw, and the uniform numbers that decide every token."""

    prompt: list[int]
    decoding: Decoding
    uniforms: np.ndarray
    """One number per new token; the longest answer is as long as this array."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """An answer: tokens up to and with the EOS that ended it (a model may have several), and log p of each under the
    temperature-scaled model."""

    token_ids: list[int]
    logprobs: list[float]
    finish: Literal["stop", "length"]


Tick = Callable[[int, int], None]
"""(tokens, ended): so many tokens were drawn or, of answers that ended early, will never be; so many answers ended.
In all, the tokens are the sum of the requests' longest lengths."""


class Engine(Protocol):
    """Draws answers; the same request gives the same answer whatever else is in the batch."""

    def generate(self, requests: Sequence[Request], greedy: bool = False, tick: Tick | None = None) -> list[Drawn]:
        """Answers in the order of the requests."""
        ...

    def refresh(self, model: Any) -> None:
        """Draw from this model, with the weights that it has now."""
        ...
