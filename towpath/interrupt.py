"""SIGTERM, SIGHUP, SIGUSR1 and Ctrl-C while something trains: a checkpoint at once where one can be made, a
sentence, and the end.

The first signal raises in the main thread, or, within `held`, is left to whoever holds it until a checkpoint is
written, for 25 seconds at most. A second one ends the process at once, by the system: nothing of ours has to run for
that.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from towpath.terminal import say

STATUS = 75
"""The exit status of a run that was stopped and can go on: EX_TEMPFAIL of sysexits.h."""
SIGNALS = [number for name in ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGINT") if (number := getattr(signal, name, None))]
GRACE = 25.0
"""Seconds for a checkpoint after the first signal: schedulers kill after thirty."""


class Stopped(SystemExit):
    """A run was asked to stop; no `except Exception` of a user's code is in the way of it."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(STATUS)


class _Listener:
    """What is known of signals while they are listened to."""

    def __init__(self) -> None:
        self.before: dict[int, Any] = {}
        self.asked = 0
        """The signal that came, 0 for none."""
        self.held = 0
        self.saved = ""
        self.timer: threading.Timer | None = None

    def received(self, number: int, _frame: FrameType | None) -> None:
        """The first signal; from here on the next one ends the process."""
        self.asked = number
        for other in self.before:
            signal.signal(other, signal.SIG_DFL)
        self.timer = threading.Timer(GRACE, self.give_up)
        self.timer.daemon = True
        self.timer.start()
        if not self.held:
            raise _error(number)
        say(
            f"{name_of(number)}: stops as soon as a checkpoint is written, within {GRACE:.0f} s; once more ends it "
            "at once"
        )

    def give_up(self) -> None:
        """No checkpoint could be written in time."""
        say(
            f"{name_of(self.asked)}: stopped. No checkpoint was written within {GRACE:.0f} s: the last one stands. "
            "The same command goes on from it."
        )
        os._exit(STATUS)


_listener: _Listener | None = None


@contextmanager
def listening() -> Iterator[None]:
    """Within the block signals stop what runs, cleanly; afterwards they do what they did before. Signals that are
    ignored (nohup) stay so.

    Only a main thread can listen; elsewhere, and within another such block, nothing changes.

    """
    global _listener
    if _listener is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    _listener = here = _Listener()
    for number in SIGNALS:
        before = signal.getsignal(number)
        if before not in (signal.SIG_IGN, None):
            here.before[number] = before
            signal.signal(number, here.received)
    try:
        yield
    except Stopped as stopped:
        say(
            f"{name_of(stopped.number)}: stopped. {here.saved or 'Nothing that was finished is lost.'} The same "
            "command goes on from here."
        )
        raise
    except KeyboardInterrupt:
        if here.saved:
            say(here.saved)
        raise
    finally:
        _listener = None
        if here.timer is not None:
            here.timer.cancel()
        for number, before in here.before.items():
            signal.signal(number, before)


@contextmanager
def held() -> Iterator[None]:
    """Within the block a signal does not raise: the block asks for it with `raise_if_asked` where it has written a
    checkpoint."""
    with _counted(1):
        yield


@contextmanager
def released() -> Iterator[None]:
    """Within the block a signal raises, though a block around it holds: what is at work here can be broken off."""
    raise_if_asked()
    if _listener is None:
        yield
        return
    with _counted(-_listener.held):
        yield


def asked() -> bool:
    """Whether a signal has come."""
    return _listener is not None and bool(_listener.asked)


def raise_if_asked() -> None:
    """Stop here where a signal has come."""
    if _listener is not None and _listener.asked:
        raise _error(_listener.asked)


def saved(sentence: str) -> None:
    """Say what was written last, to be told where the run stops."""
    if _listener is not None:
        _listener.saved = sentence


def name_of(number: int) -> str:
    """A signal's name."""
    return signal.Signals(number).name


@contextmanager
def _counted(more: int) -> Iterator[None]:
    listener = _listener
    if listener is None:
        yield
        return
    listener.held += more
    try:
        yield
    finally:
        listener.held -= more


def _error(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else Stopped(number)
