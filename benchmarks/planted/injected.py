"""Faults that cannot be set in a recipe: the sampler differs from the trained policy."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor
from transformers import Cache

from towpath.data.chat import Chat
from towpath.rollout.engine import SampleOutput, SampleRequest, Tick
from towpath.rollout.local import LocalEngine
from towpath.stages import policy


class Unending(LocalEngine):
    """Never samples EOS."""

    def _logits(self, ids: Tensor, mask: Any, position: Tensor, cache: Cache) -> Tensor:
        logits = super()._logits(ids, mask, position, cache)
        logits[:, self.eos] = float("-inf")
        return logits


class Otherwise(LocalEngine):
    """Samples at a fixed temperature and returns log-probabilities at that temperature."""

    at = 1.0

    def generate(
        self, requests: Sequence[SampleRequest], greedy: bool = False, tick: Tick | None = None
    ) -> list[SampleOutput]:
        """Completions in the order of the requests."""
        requests = [
            replace(request, decoding=request.decoding.model_copy(update={"temperature": self.at}))
            for request in requests
        ]
        return super().generate(requests, greedy, tick)


@contextmanager
def unending() -> Iterator[None]:
    """Rollouts in which EOS is masked out."""
    with _drawing(lambda chat: Unending(None, chat.stops, chat.pad)):
        yield


@contextmanager
def drawn_at(temperature: float) -> Iterator[None]:
    """Rollouts at another temperature than the trainer assumes."""

    def make(chat: Chat) -> LocalEngine:
        engine = Otherwise(None, chat.stops, chat.pad)
        engine.at = temperature
        return engine

    with _drawing(make):
        yield


@contextmanager
def _drawing(make: Callable[[Chat], LocalEngine]) -> Iterator[None]:
    before = policy.load_engine
    policy.load_engine = lambda _section, chat, _folder, _most: make(chat)
    try:
        yield
    finally:
        policy.load_engine = before
