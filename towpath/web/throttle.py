"""Rate limits of password attempts, counted before the check: by account, network and known browser."""

import ipaddress
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from threading import Lock
from time import monotonic

from towpath.web import proxies
from towpath.web.passwords import TooManyAttempts

MAX_COUNTERS = 20_000
"""Counters of one kind; the least recently used is dropped."""
RESET_SECONDS = 3600.0
"""Seconds without an attempt after which a counter restarts."""


@dataclass(frozen=True, slots=True)
class Limit:
    """`free` attempts at once, then exponential backoff from `first` up to `most` seconds."""

    free: int
    first: float
    most: float

    def wait(self, tries: int) -> float:
        """Return the seconds to wait after so many attempts."""
        return 0.0 if tries < self.free else min(self.most, self.first * 2.0 ** min(tries - self.free, 30))


BY_ACCOUNT_AND_NETWORK = Limit(5, 30.0, 900.0)
BY_DEVICE = Limit(5, 30.0, 900.0)
BY_NETWORK = Limit(30, 5.0, 60.0)
BY_ACCOUNT = Limit(20, 5.0, 60.0)
"""Attempts at one account from all unknown browsers; known browsers are counted separately."""


@dataclass
class AttemptCounters:
    """Attempts by key under one limit."""

    limit: Limit
    tries: "OrderedDict[Hashable, tuple[int, float]]" = field(default_factory=OrderedDict)

    def seconds_left(self, key: Hashable, now: float) -> float:
        """Return the seconds until the next attempt is allowed."""
        count, last = self.tries.get(key, (0, now))
        return 0.0 if now - last >= RESET_SECONDS else max(0.0, last + self.limit.wait(count) - now)

    def count(self, key: Hashable, now: float) -> None:
        """Count an attempt."""
        count, last = self.tries.pop(key, (0, now))
        self.tries[key] = (1 if now - last >= RESET_SECONDS else count + 1, now)
        while len(self.tries) > MAX_COUNTERS:
            self.tries.popitem(last=False)

    def refund(self, key: Hashable) -> None:
        """Undo one attempt."""
        count, last = self.tries.get(key, (0, 0.0))
        if count > 1:
            self.tries[key] = (count - 1, last)
        else:
            self.tries.pop(key, None)


class Throttle:
    """Counts attempts in this process; refused attempts are not counted, so waiting helps."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._pair = AttemptCounters(BY_ACCOUNT_AND_NETWORK)
        self._device = AttemptCounters(BY_DEVICE)
        self._network = AttemptCounters(BY_NETWORK)
        self._account = AttemptCounters(BY_ACCOUNT)

    def count_attempt(self, account: str, address: str, device: str = "") -> None:
        """Count an attempt or raise TooManyAttempts; `device` is a browser known to the account."""
        now = self._clock()
        keys = self._keys(account, address, device)
        with self._lock:
            left = max(counters.seconds_left(key, now) for counters, key in keys)
            if left > 0:
                raise TooManyAttempts(left)
            for counters, key in keys:
                counters.count(key, now)

    def record_success(self, account: str, address: str, device: str = "") -> None:
        """Undo a successful attempt, and reset the browser's or network's counter for the account."""
        keys = self._keys(account, address, device)
        with self._lock:
            own, own_key = keys[0]
            own.tries.pop(own_key, None)
            for counters, key in keys[1:]:
                counters.refund(key)

    def refund(self, account: str, address: str, device: str = "") -> None:
        """Undo an attempt that was not made."""
        with self._lock:
            for counters, key in self._keys(account, address, device):
                counters.refund(key)

    def _keys(self, account: str, address: str, device: str) -> list[tuple[AttemptCounters, Hashable]]:
        if device:
            return [(self._device, (account, device))]
        network = client_network(address)
        return [(self._pair, (account, network)), (self._network, network), (self._account, account)]


@dataclass
class FixedWindow:
    """At most `most` events in `seconds`."""

    most: int
    seconds: float
    since: float = -RESET_SECONDS
    count: int = 0

    def take(self, now: float) -> int | None:
        """Return the number of events omitted before this one, or None if this one is omitted too."""
        if now - self.since >= self.seconds:
            before = self.count
            self.since = now
            self.count = 1
            return max(0, before - self.most)
        self.count += 1
        return 0 if self.count <= self.most else None


def client_network(address: str) -> str:
    """Return what one person is assumed to control: an IPv4 address, or an IPv6 /64 network."""
    parsed = proxies.parse_address(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((int(parsed), 64), strict=False))
    return str(parsed or "unknown")
