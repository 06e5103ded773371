"""The contract of engines: tokens, their log-probabilities, and why each completion ended."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from towpath.recipe import Decoding


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """One completion wanted: prompt tokens, how to sample, and the uniform numbers that decide every token."""

    prompt: list[int]
    decoding: Decoding
    uniforms: np.ndarray
    """One number per new token; the longest completion is as long as this array."""


@dataclass(frozen=True, slots=True)
class SampleOutput:
    """A completion: its tokens, the EOS that ended it included, and log p of each under the temperature-scaled
    model."""

    token_ids: list[int]
    logprobs: list[float]
    finish: Literal["stop", "length"]


Tick = Callable[[int, int], None]
"""(tokens, completions) since the last call: tokens sampled, or not needed since a completion ended early; completions
that ended. Over all calls the tokens add up to the requests' longest lengths."""


class Engine(Protocol):
    """Samples completions; the same request gives the same completion whatever else is in the batch."""

    def generate(
        self, requests: Sequence[SampleRequest], greedy: bool = False, tick: Tick | None = None
    ) -> list[SampleOutput]:
        """Completions in the order of the requests."""
        ...

    def refresh(self, model: Any, version: int = 0) -> None:
        """Sample from this model, with the weights that it has now; `version` numbers them."""
        ...
