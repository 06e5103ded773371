"""Cost of judge calls: tokens to dollars, and a budget that no call exceeds."""

import math
from dataclasses import dataclass
from threading import Condition
from typing import Protocol

MILLION = 1_000_000
BYTES_PER_TOKEN = 4
"""Average of plain text, for servers that report no usage."""


@dataclass(frozen=True, slots=True)
class TokenPrice:
    """Dollars per million prompt tokens and completion tokens."""

    prompt: float = 0.0
    completion: float = 0.0

    def dollars(self, prompt_tokens: int, completion_tokens: int) -> float:
        """The cost of a call."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / MILLION


class BudgetExceeded(Exception):
    """The budget does not allow another call; `dollars` is what earlier calls of the same pair cost."""

    dollars = 0.0


class SpendingLedger(Protocol):
    """Stores the cost of every call, so that a later process continues from it."""

    def total(self) -> float:
        """Dollars already spent."""
        ...

    def reserve(self, dollars: float) -> int:
        """Store a call before it is made, at its maximum cost; returns the number of the entry."""
        ...

    def commit(self, number: int, dollars: float) -> None:
        """Replace the maximum cost of a call by its actual cost."""
        ...


class Budget:
    """Dollars spent and dollars reserved for calls in flight; their sum never exceeds the limit. Thread-safe."""

    def __init__(self, limit: float = 0.0, ledger: SpendingLedger | None = None) -> None:
        self.limit = limit or math.inf
        self.ledger = ledger
        self.dollars = ledger.total() if ledger else 0.0
        self._reserved = 0.0
        self._changed = Condition()

    def reserve(self, maximum: float) -> int:
        """Reserve the maximum cost of a call; returns the number of its ledger entry, 0 without a ledger.

        Waits until calls in flight release enough; raises BudgetExceeded when none is in flight.
        """
        with self._changed:
            while self.dollars + self._reserved + maximum > self.limit:
                if not self._reserved:
                    raise BudgetExceeded
                self._changed.wait()
            self._reserved += maximum
        return self.ledger.reserve(maximum) if self.ledger and maximum else 0

    def commit(self, number: int, maximum: float, cost: float) -> None:
        """Replace the reservation of a call by its actual cost."""
        if self.ledger and number:
            self.ledger.commit(number, cost)
        with self._changed:
            # A rounding error left in the reservation would make other threads wait for ever.
            self._reserved = self._reserved - maximum if self._reserved - maximum > 1e-12 else 0.0
            self.dollars += cost
            self._changed.notify_all()


def estimate_tokens(text: str) -> int:
    """Estimated tokens of a text, for servers that report no usage."""
    return math.ceil(len(text.encode()) / BYTES_PER_TOKEN)


def token_upper_bound(text: str) -> int:
    """An upper bound on the tokens of a text: no tokenizer makes more than one per byte."""
    return len(text.encode())
