"""The contract of engines: tokens, their log-probabilities, and why each completion ended.

An engine is a module with `open_engine`: a file of this package, or an import path of your own.
"""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from towpath.errors import RecipeError
from towpath.recipe import Decoding

PROMPT_TOKENS_PER_UNIT = 4
"""Tokens of a prompt that are read in about the time in which one is sampled."""


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """One completion wanted: prompt tokens, how to sample, and the uniform numbers that decide every token."""

    prompt: list[int]
    decoding: Decoding
    uniforms: np.ndarray
    """One number per new token; the longest completion is as long as this array."""

    @property
    def cost(self) -> int:
        """Units of progress: the tokens of the longest completion, and those of the prompt, which cost less."""
        return len(self.uniforms) + prompt_cost(self.prompt)


def prompt_cost(prompt: Sequence[int]) -> int:
    """Units of progress of reading a prompt."""
    return len(prompt) // PROMPT_TOKENS_PER_UNIT


@dataclass(frozen=True, slots=True)
class SampleOutput:
    """A completion: its tokens, the EOS that ended it included, and log p of each under the temperature-scaled
    model."""

    token_ids: list[int]
    logprobs: list[float]
    finish: Literal["stop", "length"]


Tick = Callable[[int, int], None]
"""(units, completions) since the last call: units of progress, which over all calls add up to the requests' costs, as
tokens are sampled or not needed since a completion ended early; completions that ended."""


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


def engine_module(name: str) -> str:
    """The import path of the engine that a recipe names."""
    if "." in name:
        return name
    files = sorted(Path(__file__).parent.glob("*.py"))
    known = [path.stem for path in files if "\ndef open_engine(" in path.read_text(encoding="utf-8")]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5) or ["local"]
        rule = f"one of {', '.join(known)}, or the import path of a module with open_engine, as in package.module"
        raise RecipeError(f"engine.type = {name!r}: no such engine", rule, f"use {near[0]!r}")
    return f"{__package__}.{name}"
