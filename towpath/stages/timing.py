"""Seconds of a token that is scored or trained on, of an optimizer step, and of work that is repeated."""

import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

from towpath.data.batch import Batch
from towpath.runtime.contract import Loss, Runtime

ENOUGH = 2.5
"""Seconds after which two batches are enough."""


def token_count(batch: Batch) -> int:
    """Of all rows, prompts included."""
    return sum(len(row.ids) for row in batch.rows)


def fastest(work: Callable[[], Any]) -> float:
    """Seconds of the faster of two runs, after one that is not counted; of one where they take long."""
    seconds: list[float] = []
    while len(seconds) < 3 and (len(seconds) < 2 or sum(seconds) < ENOUGH):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return min(seconds[1:])


def seconds_per_token(batches: Sequence[Batch], work: Callable[[Batch], Any]) -> float:
    """Seconds of a token, over all batches but the first, or as many as are enough."""
    work(batches[0])
    return _rate(batches[1:], work)


def _rate(batches: Sequence[Batch], work: Callable[[Batch], Any]) -> float:
    seconds = 0.0
    tokens = 0
    for number, batch in enumerate(batches):
        if number > 1 and seconds > ENOUGH:
            break
        begin = time.perf_counter()
        work(batch)
        seconds += time.perf_counter() - begin
        tokens += token_count(batch)
    return seconds / tokens


def training_seconds(
    runtime: Runtime, batches: Sequence[Batch], algo: Any, config: Any, roles: Collection[str]
) -> tuple[float, float, float]:
    """Seconds of a token that is trained on by these roles, of an optimizer step, and of the first batch besides, which
    touches memory for the first time."""
    loss = Loss(algo.__name__, config.model_dump(), {"policy_weight": 1.0, "kl_coef": 0.1})
    needs = {role: wants for role, wants in algo.TRAINS.items() if role in roles}
    steps: list[float] = []

    def update(batch: Batch) -> None:
        runtime.forward_backward(needs, batch, loss, algo.weigh(batch, config))
        begin = time.perf_counter()
        runtime.step(1.0, 1.0)
        steps.append(time.perf_counter() - begin)

    begin = time.perf_counter()
    update(batches[0])
    first = time.perf_counter() - begin
    whole = _rate(batches[1:], update)
    tokens = sum(token_count(batch) for batch in batches[1 : len(steps)]) / (len(steps) - 1)
    optimizer = sum(steps[1:]) / (len(steps) - 1)
    return whole - optimizer / tokens, optimizer, max(0.0, first - whole * token_count(batches[0]))
