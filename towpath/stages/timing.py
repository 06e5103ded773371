"""Seconds of a token that is scored or trained on, of an optimizer step, and of work that is repeated."""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from towpath.data.batch import Batch
from towpath.runtime.contract import Loss, Runtime

T = TypeVar("T")
ENOUGH = 2.5
"""Seconds after which no further batch is timed."""


def token_count(batch: Batch) -> int:
    """Of all rows, prompts included."""
    return sum(len(row.ids) for row in batch.rows)


def once(work: Callable[[], T]) -> tuple[float, T]:
    """Seconds, and the result."""
    begin = time.perf_counter()
    result = work()
    return time.perf_counter() - begin, result


def fastest(work: Callable[[], T]) -> tuple[float, T]:
    """Seconds of the faster of two runs, after one that is not counted, or of one where they take long; and the result
    of the last."""
    seconds: list[float] = []
    while True:
        taken, result = once(work)
        seconds.append(taken)
        if len(seconds) == 3 or (len(seconds) == 2 and sum(seconds) >= ENOUGH):
            return min(seconds[1:]), result


def seconds_per_token(batches: Sequence[Batch], work: Callable[[Batch], Any]) -> float:
    """Seconds of a token, over all batches but the first, or as many as are enough."""
    work(batches[0])
    return _rate(batches[1:], work)


def _rate(batches: Sequence[Batch], work: Callable[[Batch], Any]) -> float:
    seconds = 0.0
    tokens = 0
    for batch in batches:
        if seconds > ENOUGH:
            break
        seconds += once(lambda batch=batch: work(batch))[0]
        tokens += token_count(batch)
    return seconds / tokens


@dataclass(frozen=True)
class TrainingSeconds:
    """What a stage that trains takes."""

    token: float
    """That is trained on."""
    step: float
    """Of the optimizer."""
    first: float
    """Of the first batch besides, which touches memory for the first time."""
    checkpoint: float = 0.0
    export: float = 0.0
    """Of the model, once it is trained."""


def training_seconds(
    runtime: Runtime, batches: Sequence[Batch], algo: Any, config: Any, roles: Collection[str]
) -> TrainingSeconds:
    """Seconds of training of these roles."""
    loss = Loss(algo.__name__, config.model_dump(), {"policy_weight": 1.0, "kl_coef": 0.1})
    needs = {role: wants for role, wants in algo.TRAINS.items() if role in roles}
    steps: list[float] = []

    def update(batch: Batch) -> None:
        runtime.forward_backward(needs, batch, loss, algo.weigh(batch, config))
        steps.append(once(lambda: runtime.step(1.0, 1.0))[0])

    first, _ = once(lambda: update(batches[0]))
    whole = _rate(batches[1:], update)
    tokens = sum(token_count(batch) for batch in batches[1 : len(steps)]) / (len(steps) - 1)
    optimizer = sum(steps[1:]) / (len(steps) - 1)
    return TrainingSeconds(whole - optimizer / tokens, optimizer, max(0.0, first - whole * token_count(batches[0])))
