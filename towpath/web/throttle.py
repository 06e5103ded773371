"""How often a password may be tried: counted before it is checked, by account, by network and by known browser."""

import ipaddress
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from threading import Lock
from time import monotonic

from towpath.web import proxies
from towpath.web.passwords import TooManyAttempts

MAX_COUNTERS = 20_000
"""Counters of one kind; the one that was not used for longest is dropped."""
RESET_SECONDS = 3600.0
"""Seconds without a try after which a counter starts again."""


@dataclass(frozen=True, slots=True)
class Limit:
    """So many tries at once; then one after `first` seconds, and each wait is twice the one before, `most` at the
    longest."""

    free: int
    first: float
    most: float

    def wait(self, tries: int) -> float:
        """Seconds between the last of so many tries and the next one."""
        return 0.0 if tries < self.free else min(self.most, self.first * 2.0 ** min(tries - self.free, 30))


BY_ACCOUNT_AND_NETWORK = Limit(5, 30.0, 900.0)
BY_DEVICE = Limit(5, 30.0, 900.0)
BY_NETWORK = Limit(30, 5.0, 60.0)
BY_ACCOUNT = Limit(20, 5.0, 60.0)
"""All strangers' tries at one account, from wherever; a browser that it signed in from before is counted apart."""


@dataclass
class AttemptCounters:
    """Tries by key under one limit."""

    limit: Limit
    tries: "OrderedDict[Hashable, tuple[int, float]]" = field(default_factory=OrderedDict)

    def left(self, key: Hashable, now: float) -> float:
        """Seconds until the next try is allowed; 0 for now."""
        count, last = self.tries.get(key, (0, now))
        return 0.0 if now - last >= RESET_SECONDS else max(0.0, last + self.limit.wait(count) - now)

    def count(self, key: Hashable, now: float) -> None:
        """One more try."""
        count, last = self.tries.pop(key, (0, now))
        self.tries[key] = (1 if now - last >= RESET_SECONDS else count + 1, now)
        while len(self.tries) > MAX_COUNTERS:
            self.tries.popitem(last=False)

    def refund(self, key: Hashable) -> None:
        """One try less: it was right."""
        count, last = self.tries.get(key, (0, 0.0))
        if count > 1:
            self.tries[key] = (count - 1, last)
        else:
            self.tries.pop(key, None)


class Throttle:
    """Counts tries in this process; a try that is refused is not counted, so that waiting helps."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._pair = AttemptCounters(BY_ACCOUNT_AND_NETWORK)
        self._device = AttemptCounters(BY_DEVICE)
        self._network = AttemptCounters(BY_NETWORK)
        self._account = AttemptCounters(BY_ACCOUNT)

    def enter(self, account: str, address: str, device: str = "") -> None:
        """Count a try, or refuse it. `device` is a browser that this account signed in from before."""
        now = self._clock()
        keys = self._keys(account, address, device)
        with self._lock:
            left = max(counters.left(key, now) for counters, key in keys)
            if left > 0:
                raise TooManyAttempts(left)
            for counters, key in keys:
                counters.count(key, now)

    def right(self, account: str, address: str, device: str = "") -> None:
        """The try was right: it counts for nothing, and this browser or network starts again with the account."""
        keys = self._keys(account, address, device)
        with self._lock:
            own, own_key = keys[0]
            own.tries.pop(own_key, None)
            for counters, key in keys[1:]:
                counters.refund(key)

    def take_back(self, account: str, address: str, device: str = "") -> None:
        """The try was not made: it counts for nothing."""
        with self._lock:
            for counters, key in self._keys(account, address, device):
                counters.refund(key)

    def _keys(self, account: str, address: str, device: str) -> list[tuple[AttemptCounters, Hashable]]:
        if device:
            return [(self._device, (account, device))]
        place = client_network(address)
        return [(self._pair, (account, place)), (self._network, place), (self._account, account)]


@dataclass
class FixedWindow:
    """So many at most in so many seconds."""

    most: int
    seconds: float
    since: float = -RESET_SECONDS
    count: int = 0

    def take(self, now: float) -> int | None:
        """How many were left out before this one; None when this one is left out too."""
        if now - self.since >= self.seconds:
            before = self.count
            self.since = now
            self.count = 1
            return max(0, before - self.most)
        self.count += 1
        return 0 if self.count <= self.most else None


def client_network(address: str) -> str:
    """What one person is taken to have: an IPv4 address, or an IPv6 network of 64 bits."""
    found = proxies.parse_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((int(found), 64), strict=False))
    return str(found or "unknown")
