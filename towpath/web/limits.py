"""Limits per account: write rate and open live streams."""

from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

BURST = 120
REFILL_PER_SECOND = 2.0
"""Writes per second after a burst (an outbox after a lost connection)."""
MAX_ACCOUNTS = 10_000
MAX_STREAMS = 4
"""Live pages of one account."""


class WriteRate:
    """A token bucket per account."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, account: str) -> float:
        """Take one write and return 0, or the seconds until one is allowed."""
        now = monotonic()
        tokens, at = self._buckets.pop(account, (float(BURST), now))
        tokens = min(float(BURST), tokens + (now - at) * REFILL_PER_SECOND)
        allowed = tokens >= 1
        self._buckets[account] = (tokens - 1 if allowed else tokens, now)
        if len(self._buckets) > MAX_ACCOUNTS:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - tokens) / REFILL_PER_SECOND


class OpenStreams:
    """Open live streams by account."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()

    def is_full(self, account: str) -> bool:
        """Return whether the account has reached its limit."""
        return self._open[account] >= MAX_STREAMS

    @contextmanager
    def open(self, account: str) -> Iterator[None]:
        """Count one more stream during the block."""
        self._open[account] += 1
        try:
            yield
        finally:
            self._open[account] -= 1
            if self._open[account] <= 0:
                del self._open[account]
