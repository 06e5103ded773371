"""Faults that no recipe can say: what draws answers is not what is trained."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor
from transformers import Cache

from towpath.rollout.engine import SampleOutput, SampleRequest
from towpath.rollout.local import LocalEngine
from towpath.stages import experience


class Unending(LocalEngine):
    """Never draws the end."""

    def _logits(self, ids: Tensor, mask: Any, position: Tensor, cache: Cache) -> Tensor:
        logits = super()._logits(ids, mask, position, cache)
        logits[:, self.eos] = float("-inf")
        return logits


class Otherwise(LocalEngine):
    """Draws at a temperature of its own, and tells the log-probabilities of that."""

    at = 1.0

    def generate(
        self, requests: Sequence[SampleRequest], greedy: bool = False, tick: Callable[[int], None] | None = None
    ) -> list[SampleOutput]:
        """Answers in the order of the requests."""
        how = [
            replace(request, decoding=request.decoding.model_copy(update={"temperature": self.at}))
            for request in requests
        ]
        return super().generate(how, greedy, tick)


@contextmanager
def unending() -> Iterator[None]:
    """Rollouts whose end is masked out."""
    with _drawing(lambda job, model, _longest: Unending(model, job.chat.stops, job.chat.pad)):
        yield


@contextmanager
def drawn_at(temperature: float) -> Iterator[None]:
    """Rollouts at a temperature that the trainer does not know of."""

    def made(job: Any, model: Any, _longest: int) -> LocalEngine:
        engine = Otherwise(model, job.chat.stops, job.chat.pad)
        engine.at = temperature
        return engine

    with _drawing(made):
        yield


@contextmanager
def _drawing(made: Callable[[Any, Any, int], LocalEngine]) -> Iterator[None]:
    before = experience.engine
    experience.engine = made
    try:
        yield
    finally:
        experience.engine = before
