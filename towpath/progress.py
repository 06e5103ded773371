"""Progress with an ETA: a bar on a terminal, plain lines elsewhere."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_bars: list[Any] = []
"""Bars on the terminal now, the innermost last."""


class Progress:
    """Counts units of one piece of work."""

    def __init__(self, title: str, total: int, bar: Any = None) -> None:
        self.title, self.total, self.bar = title, max(total, 1), bar
        self.done, self.begun = 0, time.monotonic()
        self._spoken = self.begun
        self._task = bar.add_task(title, total=self.total, note="") if bar else None

    def advance(self, units: int = 1, note: str = "") -> None:
        """So many units are done."""
        self.done += units
        if self.bar:
            self.bar.update(self._task, completed=self.done, note=note)
        elif time.monotonic() - self._spoken > 15:
            self._say(note)

    def _say(self, note: str) -> None:
        self._spoken = time.monotonic()
        elapsed = self._spoken - self.begun
        left = elapsed * (self.total - self.done) / max(self.done, 1)
        print(f"  {self.title}: {self.done}/{self.total}, {left:.0f} s left  {note}".rstrip(), file=sys.stderr, flush=True)


def note(line: str) -> None:
    """A line for the user while work goes on; above the bar, where there is one."""
    if _bars:
        _bars[-1].console.print(line, markup=False, highlight=False)
    else:
        print(f"  {line}", file=sys.stderr, flush=True)


def quiet_libraries() -> None:
    """Libraries speak to the log, not to the user's terminal; to be said before they are loaded."""
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "TRANSFORMERS_NO_ADVISORY_WARNINGS", "TQDM_DISABLE"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@contextmanager
def progress(title: str, total: int) -> Iterator[Progress]:
    """A progress display for the length of the block."""
    if not sys.stderr.isatty():
        yield Progress(title, total)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = [
        TextColumn("  {task.description:<26}"), BarColumn(bar_width=28), MofNCompleteColumn(),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}", style="dim"),
    ]  # fmt: skip
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        _bars.append(bar)
        try:
            yield Progress(title, total, bar)
        finally:
            _bars.remove(bar)
