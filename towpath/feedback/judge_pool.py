"""Concurrent calls of a judge: one endpoint, one budget, and an end to it where the server does not answer."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from itertools import islice
from typing import Protocol, TypeVar

from towpath.errors import ResourceError
from towpath.feedback.endpoint import Endpoint, JudgeSettings
from towpath.feedback.judge_budget import Budget, SpendingLedger

T = TypeVar("T")
R = TypeVar("R")
GIVE_UP = 20
"""Consecutive items without a reply after which the judge is given up."""


PULSE = 5.0
"""Seconds without a finished item after which progress shows the number of replies."""


class ProgressBar(Protocol):
    """Shows progress."""

    note: str

    def advance(self, units: int = 1, note: str = "") -> None:
        """Add finished units."""
        ...


def call_concurrently(
    settings: JudgeSettings,
    items: Iterable[T],
    call: Callable[[Endpoint, T], R],
    unreachable: Callable[[R], str],
    progress: ProgressBar | None = None,
    ledger: SpendingLedger | None = None,
) -> Iterator[R]:
    """Call the endpoint for every item and yield each result as soon as it is known.

    `unreachable` is the note of a result that has no reply, or an empty string. `ledger` stores the cost of every call;
    what it holds already counts towards the ceiling.
    """
    budget = Budget(settings.ceiling, ledger)
    endpoint = Endpoint(settings, budget)
    queue = iter(items)
    failures = 0
    pool = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="judge")
    try:
        running = [pool.submit(call, endpoint, item) for item in islice(queue, 2 * settings.concurrency)]
        while running:
            done, not_done = wait(running, PULSE, return_when=FIRST_COMPLETED)
            if progress and not done:
                progress.note = f"replies: {endpoint.replies:,}"
            finished = [future for future in running if future in done]  # in the order of the items
            running = [future for future in running if future in not_done]
            running += [pool.submit(call, endpoint, item) for item in islice(queue, len(finished))]
            for result in [future.result() for future in finished]:
                note = unreachable(result)
                failures = failures + 1 if note else 0
                if progress:
                    progress.advance(1, f"${budget.dollars:.2f}" if settings.price_in or settings.price_out else "")
                yield result
                if failures >= GIVE_UP:
                    rule = f"the judge is given up after {GIVE_UP} consecutive pairs without a reply"
                    fix = "check the server, then run again: finished judgements are stored"
                    raise ResourceError(f"{settings.base_url}: {note}", rule, fix)
    finally:
        # Calls in flight are paid for: wait for them, so that their replies reach the cache.
        endpoint.stop()
        pool.shutdown(wait=True, cancel_futures=True)
        endpoint.close()
