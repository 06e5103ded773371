"""A function in a thread of its own, whose result, or exception, is asked for later."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

R = TypeVar("R")


class Background(Generic[R]):
    """The thread ends with the process, whatever it does."""

    def __init__(self, function: Callable[[], R]) -> None:
        self._function = function
        self._results: list[R] = []
        self.error: BaseException | None = None
        """What it raised, once it is done."""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._results.append(self._function())
        except BaseException as error:
            self.error = error

    @property
    def done(self) -> bool:
        """Whether the function has returned or raised."""
        return not self._thread.is_alive()

    def wait(self, seconds: float) -> bool:
        """Wait for at most so long; whether the function is done."""
        self._thread.join(seconds)
        return self.done

    def result(self) -> R:
        """What the function returned; raises what it raised."""
        self._thread.join()
        if self.error is not None:
            raise self.error
        return self._results[0]
