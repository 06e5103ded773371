"""A number of a plan: its range, and where it is from."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Source = Literal["measured", "formula", "table", "assumption", "data", "recipe"]
"""Where a number is from: measured on this machine or in this run; by formula from a data sheet and the model's shape;
from a table with a date; assumed until it is measured; counted in the data; set in the recipe."""
TRUST: tuple[Source, ...] = ("assumption", "formula", "table", "measured", "data", "recipe")
"""The least certain first."""


@dataclass(frozen=True)
class Amount:
    """Low, likely and high."""

    low: float
    likely: float
    high: float
    source: Source
    basis: str = ""
    """The measurement, formula or assumption in words."""

    def times(self, factor: float) -> "Amount":
        """The amount times a number that is known."""
        return Amount(self.low * factor, self.likely * factor, self.high * factor, self.source, self.basis)


def exactly(value: float, source: Source, basis: str = "") -> Amount:
    """An amount without a range."""
    return Amount(value, value, value, source, basis)


NOTHING = exactly(0.0, "recipe")


def total(amounts: Iterable[Amount]) -> Amount:
    """The sum of amounts, with the source that is the least certain among those that are not 0."""
    known = [amount for amount in amounts if amount.high]
    if not known:
        return NOTHING
    least = min(known, key=lambda amount: TRUST.index(amount.source))
    low, likely, high = (sum(getattr(amount, name) for amount in known) for name in ("low", "likely", "high"))
    return Amount(low, likely, high, least.source, least.basis)
