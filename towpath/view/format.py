"""Number formats of pages and terminal: numbers, percentages, intervals, durations, sizes, times."""

import math
from datetime import UTC, datetime
from typing import Any

from towpath.store.jsonl import is_interval, is_number

SPACE = "\u00a0"  # keeps a number and its unit on one line
MINUS = "\u2212"
NONE = "–"


def number(value: Any, digits: int = 3) -> str:
    """A number with this many significant digits, without trailing zeros."""
    if not is_number(value):
        return NONE
    size = abs(value)
    if size >= 1e6 or 0 < size < 1e-4:
        text = f"{value:.{max(digits - 1, 0)}e}"
        mantissa, _, power = text.partition("e")
        mantissa = mantissa if "." not in mantissa else mantissa.rstrip("0").rstrip(".")
        return f"{mantissa}e{int(power)}".replace("-", MINUS)
    places = max(digits - 1 - math.floor(math.log10(size)), 0) if size else 0
    text = f"{value:,.{places}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return text.replace("-", MINUS).replace(",", SPACE)


def percent(value: Any, places: int = 0) -> str:
    """A share as a percentage."""
    return f"{value * 100:.{places}f}{SPACE}%".replace("-", MINUS) if is_number(value) else NONE


def percents(interval: Any, places: int = 0) -> str:
    """An interval of shares: 76–85 %."""
    if not is_interval(interval):
        return NONE
    low, high = (f"{end * 100:.{places}f}".replace("-", MINUS) for end in interval)
    return f"{low}–{high}{SPACE}%" if MINUS not in high else f"{low} to {high}{SPACE}%"


def duration(seconds: Any, brief: bool = False) -> str:
    """A duration in at most two units of hours, minutes and seconds; `brief` leaves out seconds from ten minutes on."""
    if not is_number(seconds):
        return NONE
    if seconds < 10:
        return f"{seconds:.1f}{SPACE}s"
    whole = round(seconds)
    hours = whole // 3600
    minutes = whole % 3600 // 60
    rest = whole % 60
    if hours:
        return f"{hours}{SPACE}h{SPACE}{minutes}{SPACE}min"
    if brief and minutes >= 10:
        return f"{round(whole / 60)}{SPACE}min"
    return f"{minutes}{SPACE}min{SPACE}{rest}{SPACE}s" if minutes else f"{rest}{SPACE}s"


def size(count: Any) -> str:
    """Bytes as GiB or MiB."""
    if not is_number(count):
        return NONE
    return f"{count / 2**30:.1f}{SPACE}GiB" if count >= 2**30 else f"{count / 2**20:.0f}{SPACE}MiB"


def moment(value: Any) -> str:
    """A time in UTC to the minute; a text that is not a time is returned unchanged."""
    try:
        at = datetime.fromtimestamp(value, UTC) if is_number(value) else datetime.fromisoformat(str(value))
    except ValueError:
        return NONE if value is None else str(value)
    return at.astimezone(UTC).strftime(f"%Y‑%m‑%d{SPACE}%H:%M{SPACE}UTC")
