"""The side of the page on which an answer lay, and the answer that it was."""

from typing import Literal

from towpath.records import Choice

Side = Literal["left", "right", "tie", "both_bad"]


def choice_of(side: Side, shown: str) -> Choice:
    """The answer that lay on a side; `shown` is `ab` or `ba`, from left to right."""
    if side in ("tie", "both_bad"):
        return side
    return "a" if (side == "left") == (shown == "ab") else "b"


def side_of(choice: Choice, shown: str) -> Side:
    """The side on which an answer lay."""
    if choice in ("tie", "both_bad"):
        return choice
    return "left" if (choice == "a") == (shown == "ab") else "right"
