"""Progress with an estimate of the time left: bars on a terminal, otherwise a plain line at least every ten seconds.

Tasks nest: a stage, its steps, and within a step rollout, scoring and update. A line lists all of them.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from towpath.terminal import print_status, strip_control

LINE_INTERVAL = 8.0
"""Seconds between two lines."""
CACHED_KERNELS = "64"
"""Those of a pass and its gradient; passes of other lengths make their own in any case."""
MIN_SHARE_FOR_ESTIMATE = 0.02
"""Share of the work after which time left is estimated; start-up work would distort an earlier estimate."""
_active: list["Progress"] = []
"""Active tasks of this process, the innermost last."""
_displays: list[Any] = []
"""The open terminal display, if any."""
_receivers: list[Callable[[str], None]] = []
"""Where notes go in a worker process, which shows no progress of its own."""


class Progress:
    """A counter of one task's units, such as steps, pairs or tokens."""

    def __init__(self, title: str, total: int, unit: str = "", start: int = 0) -> None:
        self.title = title
        self.total = max(total, 1) if total else 0
        self.unit = unit
        self.start = start
        self.done = start
        self.note = ""
        self.started_at = self.advanced_at = time.monotonic()
        self._seconds_left: float | None = None

    def advance(self, units: int = 1, note: str = "") -> None:
        """Add completed units."""
        self.done += units
        self.note = note
        self.advanced_at = time.monotonic()
        worked = self.done - self.start
        if self.total and worked >= MIN_SHARE_FOR_ESTIMATE * (self.total - self.start):
            self._seconds_left = (self.advanced_at - self.started_at) * max(self.total - self.done, 0) / worked

    def seconds_left(self) -> float | None:
        """Return the estimated seconds left, or None before an estimate is possible; it decreases between two units."""
        if self._seconds_left is None:
            return None
        return max(self._seconds_left - (time.monotonic() - self.advanced_at), 0.0)

    def amount(self) -> str:
        """Return the count, the percentage where `unit` is set, or the elapsed time where the total is unknown."""
        if not self.total:
            return format_duration(time.monotonic() - self.started_at)
        return f"{self.done:,}/{self.total:,}" if not self.unit else f"{min(100 * self.done / self.total, 100):.0f} %"

    def line(self, within: str = "") -> str:
        """Return title, amount, time left and note; `within` is the outer task's title, which is left out."""
        left = self.seconds_left()
        parts = [
            f"{self.title.removeprefix(f'{within}: ')} {self.amount()}",
            *([f"{format_duration(left)} left"] if left is not None and self.done < self.total else []),
            self.note,
        ]
        return ", ".join(part for part in parts if part)


def print_note(line: str) -> None:
    """Print a line for the user during progress, above the bars if there are any."""
    if _receivers:
        _receivers[-1](line)
    elif _displays:
        _displays[-1].console.print(strip_control(line), markup=False, highlight=False)
    else:
        print_status(f"  {line}")


def redirect(receiver: Callable[[str], None]) -> None:
    """Send this process's notes to another one, and show no progress here."""
    _receivers.append(receiver)


def prepare_libraries() -> None:
    """Settings that libraries read when they are imported: no progress bars and warnings of Hugging Face's, and
    small caches of oneDNN and of torch's part of it, which hold a kernel for each shape, megabytes each."""
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, CACHED_KERNELS)
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "TRANSFORMERS_NO_ADVISORY_WARNINGS", "TQDM_DISABLE"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@contextmanager
def progress(title: str, total: int = 0, unit: str = "", start: int = 0) -> Iterator[Progress]:
    """Show progress during the block.

    `total` 0 means unknown: only the elapsed time is shown. `unit` names units that are shown as a percentage. `start`
    units were completed by an earlier process.
    """
    if _receivers:
        yield Progress(title, total, unit, start)
        return
    if not sys.stderr.isatty():
        with _plain_progress(Progress(title, total, unit, start)) as work:
            yield work
        return
    with _open_display() as display:
        work = Progress(title, total, unit, start)
        task = display.add_task(
            "  " * len(_active) + (title.removeprefix(f"{_active[0].title}: ") if _active else title),
            total=total or None,
            work=work,
        )
        _active.append(work)
        try:
            yield work
        finally:
            _active.remove(work)
            display.remove_task(task)


@contextmanager
def _plain_progress(work: Progress) -> Iterator[Progress]:
    """Register the task; the outermost one starts the thread that prints lines."""
    outermost = not _active
    _active.append(work)
    ended = threading.Event()
    writer = threading.Thread(target=_print_lines, args=(ended,), daemon=True, name="progress")
    if outermost:
        writer.start()
    try:
        yield work
    finally:
        _active.remove(work)
        ended.set()
        if outermost:
            writer.join()


def _print_lines(ended: threading.Event) -> None:
    """Print a line about the active tasks every few seconds, outermost first."""
    while not ended.wait(LINE_INTERVAL):
        tasks = [*_active]
        line = "; ".join(task.line(tasks[0].title if task is not tasks[0] else "") for task in tasks)
        with suppress(ValueError, OSError):  # standard error is closed
            print_status(f"  {line}")


@contextmanager
def _open_display() -> Iterator[Any]:
    """Return this terminal's one display, opened by the outermost task."""
    if _displays:
        yield _displays[-1]
        return
    from rich.console import Console
    from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Display
    from rich.text import Text

    class Amount(ProgressColumn):
        """The amount done and the time left."""

        def render(self, task: Task) -> Text:
            work: Progress = task.fields["work"]
            left = work.seconds_left()
            task.completed = work.done
            time_left = f"  {format_duration(left)} left" if left is not None and work.done < work.total else ""
            return Text(f"{work.amount() if work.total else ''}{time_left}  {work.note}")

    columns = [TextColumn("  {task.description:<30}"), BarColumn(bar_width=24), TimeElapsedColumn(), Amount()]
    with Display(*columns, console=Console(stderr=True), transient=True) as display:
        _displays.append(display)
        try:
            yield display
        finally:
            _displays.remove(display)


def format_duration(seconds: float) -> str:
    """Format seconds as `5 s`, `3 min 20 s` or `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
