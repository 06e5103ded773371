"""A number of a plan: its range, and where it is from."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Source = Literal["measured", "formula", "table", "assumption", "data", "recipe"]
"""Where a number is from: measured on this machine or in this run; by formula from a data sheet and the model's shape;
from a table with a date; assumed until it is measured; counted in the data; set in the recipe."""
TRUST: tuple[Source, ...] = ("assumption", "formula", "table", "measured", "data", "recipe")
"""The least certain first."""


DAY = 86_400


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


def span(seconds: float) -> str:
    """A time span of a plan in one unit, to two or three digits."""
    for name, unit, least in (("days", DAY, 2 * DAY), ("h", 3600, 2 * 3600), ("min", 60, 120)):
        if seconds >= least:
            amount = seconds / unit
            return f"{amount:,.0f} {name}" if amount >= 10 else f"{amount:.1f} {name}"
    return f"{seconds:.0f} s"


def spans(amount: Amount) -> str:
    """Likely, and from low to high; the unit once where it is the same."""
    if not amount.high:
        return "–"
    likely, low, high = (span(getattr(amount, name)) for name in ("likely", "low", "high"))
    if low == high:
        return likely
    number, _, unit = low.partition(" ")
    return f"{likely} ({number if high.endswith(f' {unit}') else low} to {high})"
