"""Signal handling during training: SIGTERM, SIGHUP, SIGUSR1 and Ctrl-C write a checkpoint and stop the process.

The first signal raises in the main thread. Inside `defer_signals` it waits until the block has written a checkpoint,
for at most 25 seconds. A second signal ends the process at once through the system's default handler.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from towpath.terminal import print_status

EXIT_CODE = 75
"""The exit code of a stopped run that can be resumed: EX_TEMPFAIL of sysexits.h."""
SIGNALS = [number for name in ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGINT") if (number := getattr(signal, name, None))]
GRACE_SECONDS = 25.0
"""Time for a checkpoint after the first signal; schedulers kill after thirty seconds."""
RETRY_SECONDS = 0.01
RESUME = "Run the same command to resume."


class Stopped(SystemExit):
    """The run was asked to stop. Not an `Exception`, so user code with `except Exception` does not swallow it."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(EXIT_CODE)


class _SignalState:
    """The state of one `handle_signals` block; `received` is the first signal's number, 0 for none."""

    def __init__(self) -> None:
        self.previous_handlers: dict[int, Any] = {}
        self.received = 0
        self.defer_depth = 0
        self.stop_message = ""
        self.timer: threading.Timer | None = None
        self.previous_hook = sys.unraisablehook

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Handle the first signal; the next one gets the system's default handler."""
        self.received = number
        for other in self.previous_handlers:
            if other in SIGNALS:
                signal.signal(other, signal.SIG_DFL)
        self.timer = threading.Timer(GRACE_SECONDS, self.exit_without_checkpoint)
        self.timer.daemon = True
        self.timer.start()
        if not self.defer_depth:
            raise _error(number)
        print_status(
            f"{signal_name(number)}: stopping after the next checkpoint, within {GRACE_SECONDS:.0f} s; a second signal "
            "stops at once"
        )

    def handle_unraisable(self, unraisable: Any) -> None:
        """Raise again after a finalizer that the signal interrupted, where Python only prints what is raised."""
        is_stop = isinstance(unraisable.exc_value, Stopped | KeyboardInterrupt) and self.received
        if not is_stop or threading.current_thread() is not threading.main_thread():
            self.previous_hook(unraisable)
            return
        signal.signal(signal.SIGALRM, self.raise_again)
        signal.setitimer(signal.ITIMER_REAL, RETRY_SECONDS)

    def raise_again(self, _number: int, _frame: FrameType | None) -> None:
        """Raise for the signal that was received, unless a block defers it."""
        if not self.defer_depth:
            raise _error(self.received)

    def exit_without_checkpoint(self) -> None:
        """End the process when no checkpoint was written within the grace period."""
        print_status(
            f"{signal_name(self.received)}: stopped. No checkpoint was written within {GRACE_SECONDS:.0f} s; the "
            f"previous checkpoint is the newest. {RESUME}"
        )
        os._exit(EXIT_CODE)


_state: _SignalState | None = None


@contextmanager
def handle_signals() -> Iterator[None]:
    """Stop cleanly on signals inside the block, and restore the previous handlers after it.

    Ignored signals (nohup) stay ignored. Outside the main thread, or inside another such block, this does nothing.
    """
    global _state
    if _state is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    _state = state = _SignalState()
    for number in SIGNALS:
        handler = signal.getsignal(number)
        if handler not in (signal.SIG_IGN, None):
            state.previous_handlers[number] = handler
            signal.signal(number, state.handle)
    alarm = getattr(signal, "SIGALRM", None)  # not on Windows
    if alarm is not None and signal.getsignal(alarm) is not None:
        state.previous_handlers[alarm] = signal.getsignal(alarm)
        sys.unraisablehook = state.handle_unraisable
    try:
        yield
    except Stopped as stopped:
        print_status(
            f"{signal_name(stopped.number)}: stopped. {state.stop_message or 'Completed work is saved.'} {RESUME}"
        )
        raise
    except KeyboardInterrupt:
        if state.stop_message:
            print_status(state.stop_message)
        raise
    finally:
        _state = None
        if state.timer is not None:
            state.timer.cancel()
        if sys.unraisablehook == state.handle_unraisable:
            signal.setitimer(signal.ITIMER_REAL, 0)
            sys.unraisablehook = state.previous_hook
        for number, handler in state.previous_handlers.items():
            signal.signal(number, handler)


@contextmanager
def defer_signals() -> Iterator[None]:
    """Defer signals: the block calls `raise_if_stop_requested` after it has written a checkpoint."""
    with _change_depth(1):
        yield


@contextmanager
def allow_signals() -> Iterator[None]:
    """Raise on signals inside the block although an outer block defers them: this work may be interrupted."""
    raise_if_stop_requested()
    if _state is None:
        yield
        return
    with _change_depth(-_state.defer_depth):
        yield


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Raise on a signal only at the end of the block: it must not be left half done. Only the main thread is
    interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with _change_depth(1):
        yield
    if _state is not None and not _state.defer_depth:
        raise_if_stop_requested()


def stop_requested() -> bool:
    """Return whether a signal has arrived."""
    return _state is not None and bool(_state.received)


def raise_if_stop_requested() -> None:
    """Raise if a signal has arrived."""
    if _state is not None and _state.received:
        raise _error(_state.received)


def set_stop_message(message: str) -> None:
    """Set the sentence that is printed when the run stops, such as the last checkpoint."""
    if _state is not None:
        _state.stop_message = message


def signal_name(number: int) -> str:
    """Return a signal's name."""
    return signal.Signals(number).name


@contextmanager
def _change_depth(change: int) -> Iterator[None]:
    state = _state
    if state is None:
        yield
        return
    state.defer_depth += change
    try:
        yield
    finally:
        state.defer_depth -= change


def _error(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else Stopped(number)
