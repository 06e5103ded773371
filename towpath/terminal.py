"""PackedBatch for a terminal: whatever texts of models, data or servers they quote, no character of them controls the
terminal."""

import re
import sys

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""All but tab and line feed; among them ESC, which begins what moves the cursor or sets a title, and marks that turn
the reading direction."""


def plain(text: object) -> str:
    """Text without control characters."""
    return _CONTROL.sub("", str(text))


def say(line: object) -> None:
    """A line for the person who reads along."""
    print(plain(line), file=sys.stderr, flush=True)


def out(text: object) -> None:
    """What a command was asked for."""
    print(plain(text), flush=True)
