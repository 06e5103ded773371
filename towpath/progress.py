"""Progress with an estimate of the time left: bars on a terminal, plain lines elsewhere, at least one every ten
seconds.

Pieces of work may lie inside each other: a stage, its steps, and within a step rollout, scoring and update. A line
names them all.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from towpath.terminal import plain, say

INTERVAL = 8.0
"""Seconds between two lines; with the clock of the thread that writes them it is never more than ten."""
ENOUGH = 0.02
"""Share of the work from which its pace is known: what comes before the first units, such as reading prompts, would
count for all of them."""
_open: list["Progress"] = []
"""Pieces of work under way in this process, the innermost last."""
_bars: list[Any] = []
"""The display on the terminal, where there is one."""


class Progress:
    """Counts units of one piece of work, such as steps, pairs or tokens."""

    def __init__(self, title: str, total: int, unit: str = "", start: int = 0) -> None:
        self.title = title
        self.total = max(total, 1) if total else 0
        self.unit = unit
        self.start = start
        self.done = start
        self.note = ""
        self.begun = self.advanced = time.monotonic()
        self._left: float | None = None

    def advance(self, units: int = 1, note: str = "") -> None:
        """So many units are done."""
        self.done += units
        self.note = note
        self.advanced = time.monotonic()
        worked = self.done - self.start
        if self.total and worked >= ENOUGH * (self.total - self.start):
            self._left = (self.advanced - self.begun) * max(self.total - self.done, 0) / worked

    def left(self) -> float | None:
        """Seconds left by the pace so far; None until enough work is done to tell. It falls while a unit is under
        way."""
        if self._left is None:
            return None
        return max(self._left - (time.monotonic() - self.advanced), 0.0)

    def amount(self) -> str:
        """How much is done: a count, or a share where the unit is too small to count; the time taken where no total
        is known."""
        if not self.total:
            return _clock(time.monotonic() - self.begun)
        return f"{self.done:,}/{self.total:,}" if not self.unit else f"{min(100 * self.done / self.total, 100):.0f} %"

    def line(self, within: str = "") -> str:
        """Title, amount, time left and note; the title without the name of what it lies in."""
        left = self.left()
        parts = [
            f"{self.title.removeprefix(f'{within}: ')} {self.amount()}",
            *([f"{_clock(left)} left"] if left is not None and self.done < self.total else []),
            self.note,
        ]
        return ", ".join(part for part in parts if part)


def note(line: str) -> None:
    """A line for the user while work goes on; above the bars, where there are any."""
    if _bars:
        _bars[-1].console.print(plain(line), markup=False, highlight=False)
    else:
        say(f"  {line}")


def quiet_libraries() -> None:
    """Libraries speak to the log, not to the user's terminal; to be said before they are loaded."""
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "TRANSFORMERS_NO_ADVISORY_WARNINGS", "TQDM_DISABLE"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@contextmanager
def progress(title: str, total: int = 0, unit: str = "", start: int = 0) -> Iterator[Progress]:
    """A progress display for the length of the block. `total` 0: not known, only time is shown. `unit` names units
    that are shown as a share. `start` units were done before, by an earlier process."""
    if not sys.stderr.isatty():
        with _in_lines(Progress(title, total, unit, start)) as work:
            yield work
        return
    with _display() as display:
        work = Progress(title, total, unit, start)
        task = display.add_task(
            "  " * len(_open) + (title.removeprefix(f"{_open[0].title}: ") if _open else title),
            total=total or None,
            work=work,
        )
        _open.append(work)
        try:
            yield work
        finally:
            _open.remove(work)
            display.remove_task(task)


@contextmanager
def _in_lines(work: Progress) -> Iterator[Progress]:
    """The work among what is under way; the outermost brings the thread that writes lines."""
    outermost = not _open
    _open.append(work)
    ended = threading.Event()
    writer = threading.Thread(target=_write_lines, args=(ended,), daemon=True, name="progress")
    if outermost:
        writer.start()
    try:
        yield work
    finally:
        _open.remove(work)
        ended.set()
        if outermost:
            writer.join()


def _write_lines(ended: threading.Event) -> None:
    """A line every few seconds on what is under way, outermost first."""
    while not ended.wait(INTERVAL):
        works = [*_open]
        line = "; ".join(work.line(works[0].title if work is not works[0] else "") for work in works)
        with suppress(ValueError, OSError):  # standard error was closed
            say(f"  {line}")


@contextmanager
def _display() -> Iterator[Any]:
    """The one display of bars on this terminal, opened with the outermost piece of work."""
    if _bars:
        yield _bars[-1]
        return
    from rich.console import Console
    from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Display
    from rich.text import Text

    class Amount(ProgressColumn):
        """What is done, and how long the rest takes."""

        def render(self, task: Task) -> Text:
            work: Progress = task.fields["work"]
            left = work.left()
            task.completed = work.done
            time_left = f"  {_clock(left)} left" if left is not None and work.done < work.total else ""
            return Text(f"{work.amount() if work.total else ''}{time_left}  {work.note}")

    columns = [TextColumn("  {task.description:<30}"), BarColumn(bar_width=24), TimeElapsedColumn(), Amount()]
    with Display(*columns, console=Console(stderr=True), transient=True) as display:
        _bars.append(display)
        try:
            yield display
        finally:
            _bars.remove(display)


def _clock(seconds: float) -> str:
    """Seconds as people say them."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
