"""Conversion between a side of the page and the answer shown there."""

from typing import Literal

from towpath.records import Choice

Side = Literal["left", "right", "tie", "both_bad"]


def choice_of(side: Side, order: str) -> Choice:
    """Return the answer on a side; `order` is `ab` or `ba`, from left to right."""
    if side in ("tie", "both_bad"):
        return side
    return "a" if (side == "left") == (order == "ab") else "b"


def side_of(choice: Choice, order: str) -> Side:
    """Return the side of an answer."""
    if choice in ("tie", "both_bad"):
        return choice
    return "left" if (choice == "a") == (order == "ab") else "right"
