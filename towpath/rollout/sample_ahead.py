"""The rollout of the next step, sampled by the policy before the optimizer moves it, while it moves or before."""

import time
from collections.abc import Sequence

from towpath.progress import progress
from towpath.rollout.engine import Engine, SampleOutput, SampleRequest
from towpath.rollout.generate import generate, in_parts
from towpath.runtime.background import Background

WAIT_SECONDS = 0.2


class SampledAhead:
    """Completions for one step: there, or under way where workers of their own sample them."""

    def __init__(self, step: int, outputs: list[SampleOutput] | None = None) -> None:
        self.step = step
        self.seconds = 0.0
        """Time that sampling took."""
        self._outputs = outputs or []
        self._background: Background[list[SampleOutput]] | None = None
        self._total = 0
        self._done = 0

    def begin(self, engine: Engine, requests: Sequence[SampleRequest]) -> None:
        """Sample, in the background where the engine has workers of its own."""
        if getattr(engine, "is_apart", False):
            self._total = sum(request.cost for request in requests)
            self._background = Background(lambda: self._sample(engine, requests))
            return
        started = time.monotonic()
        self._outputs = generate(engine, requests, "next rollout")
        self.seconds = time.monotonic() - started

    def _sample(self, engine: Engine, requests: Sequence[SampleRequest]) -> list[SampleOutput]:
        started = time.monotonic()
        outputs = in_parts(engine, requests, False, self._count)
        self.seconds = time.monotonic() - started
        return outputs

    def _count(self, units: int, _ended: int) -> None:
        self._done += units

    def outputs(self) -> list[SampleOutput]:
        """The completions, in the order of their requests; waits for them."""
        if self._background is not None:
            with progress("rollout", self._total, "tokens") as work:
                while not self._background.wait(WAIT_SECONDS):
                    work.advance(self._done - work.done)
            self._outputs = self._background.result()
            self._background = None
        return self._outputs
