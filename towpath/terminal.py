"""Terminal output. Control characters in text from models, data or servers never reach the terminal."""

import re
import sys

# All control characters but tab and line feed (ESC starts cursor and title sequences), and bidirectional overrides.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def strip_control(text: object) -> str:
    """Return text without control characters."""
    return _CONTROL.sub("", str(text))


def print_status(line: object) -> None:
    """Print a status line to standard error."""
    print(strip_control(line), file=sys.stderr, flush=True)


def print_output(text: object) -> None:
    """Print the result of a command to standard output."""
    print(strip_control(text), flush=True)
