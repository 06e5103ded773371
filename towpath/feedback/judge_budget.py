"""What calls cost: tokens to dollars, and a ceiling that no call may pass."""

import math
from dataclasses import dataclass
from threading import Condition
from typing import Protocol

PER = 1_000_000
BYTES_A_TOKEN = 4
"""Of plain text, on average; only where a server does not count."""


@dataclass(frozen=True, slots=True)
class Price:
    """Dollars for a million tokens read and written."""

    read: float = 0.0
    written: float = 0.0

    def of(self, read: int, written: int) -> float:
        """Dollars for so many tokens."""
        return (read * self.read + written * self.written) / PER


class Spent(Exception):
    """The ceiling does not allow the next call; what the calls before it cost."""

    dollars = 0.0


class Account(Protocol):
    """Where the cost of every call is written down, so that a later process knows it."""

    def total(self) -> float:
        """Dollars spent so far."""
        ...

    def reserve(self, dollars: float) -> int:
        """A call is about to be made that costs at most so much; the number of its entry."""
        ...

    def commit(self, number: int, dollars: float) -> None:
        """The call has ended, and cost so much."""
        ...


class Purse:
    """Dollars spent and dollars held for calls under way; together they stay under the ceiling. For many threads."""

    def __init__(self, ceiling: float = 0.0, account: Account | None = None) -> None:
        self.ceiling = ceiling or math.inf
        self.account = account
        self.spent = account.total() if account else 0.0
        self._held = 0.0
        self._changed = Condition()

    def open_call(self, worst: float) -> int:
        """Hold what a call may cost at worst and write it down; the number of its entry, 0 where there is none."""
        self.hold(worst)
        return self.account.reserve(worst) if self.account and worst else 0

    def close_call(self, number: int, worst: float, cost: float) -> None:
        """Put what a call did cost in place of what was held for it."""
        if self.account and number:
            self.account.commit(number, cost)
        self.settle(worst, cost)

    def hold(self, dollars: float) -> None:
        """Set aside what a call may cost at worst; waits for calls under way to leave room, and raises Spent when
        they cannot."""
        with self._changed:
            while self.spent + self._held + dollars > self.ceiling:
                if not self._held:
                    raise Spent
                self._changed.wait()
            self._held += dollars

    def settle(self, held: float, cost: float) -> None:
        """Give back what was set aside and note what the call did cost."""
        with self._changed:
            # So that rounding leaves nothing behind that others would wait for.
            self._held = self._held - held if self._held - held > 1e-12 else 0.0
            self.spent += cost
            self._changed.notify_all()


def estimated(text: str) -> int:
    """Tokens of a text where nobody counted them."""
    return math.ceil(len(text.encode()) / BYTES_A_TOKEN)


def at_most(text: str) -> int:
    """More tokens than a text can have: no tokenizer makes more than one a byte."""
    return len(text.encode())
