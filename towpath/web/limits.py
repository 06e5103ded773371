"""How often one account may write, and how many live pages it may have open."""

from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

BURST = 120
REFILL_PER_SECOND = 2.0
"""Writes an account may send at once (an outbox after a lost connection), and how many a second after that."""
MAX_ACCOUNTS = 10_000
MAX_STREAMS = 4
"""Live pages of one account."""


class WriteRate:
    """A token bucket for each account."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, account: str) -> float:
        """Take one write; 0, or how many seconds until one is allowed."""
        now = monotonic()
        tokens, at = self._buckets.pop(account, (float(BURST), now))
        tokens = min(float(BURST), tokens + (now - at) * REFILL_PER_SECOND)
        allowed = tokens >= 1
        self._buckets[account] = (tokens - 1 if allowed else tokens, now)
        if len(self._buckets) > MAX_ACCOUNTS:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - tokens) / REFILL_PER_SECOND


class OpenStreams:
    """Live pages now open, by account."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()

    def full(self, account: str) -> bool:
        """Whether the account has as many as it may."""
        return self._open[account] >= MAX_STREAMS

    @contextmanager
    def open(self, account: str) -> Iterator[None]:
        """Count one more while it lasts."""
        self._open[account] += 1
        try:
            yield
        finally:
            self._open[account] -= 1
            if self._open[account] <= 0:
                del self._open[account]
