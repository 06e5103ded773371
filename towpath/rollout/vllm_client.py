"""The process that holds vLLM: started, asked and ended. It has a Python of its own and never outlives this process."""

import os
import signal
import socket
import subprocess
import threading
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from towpath.errors import RecipeError, ResourceError
from towpath.rollout.vllm_process.frames import Arrays, FrameError, FrameSocket

SERVE = Path(__file__).with_name("vllm_process") / "serve.py"
LAST_LINES = 6
START_FACTOR = 4.0
"""The first start may be silent for so many times as long as anything else: it loads, compiles and measures."""


class EngineLost(ResourceError):
    """The process ended, fell silent, or sent what is no frame."""


class VllmClient:
    """One process with vLLM, and the socket to it."""

    def __init__(self, python: str, log: Path, limit: float, first: bool = True) -> None:
        self.log = log
        self.limit = limit
        """Seconds of silence after which the process counts as lost."""
        ours, other = socket.socketpair()
        with other:
            try:
                self.process = _start(python, log, other, first)
            except BaseException:
                ours.close()
                raise
        self.channel = FrameSocket(ours)
        self._end = weakref.finalize(self, _end, self.process, ours)

    def ask(
        self, message: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None, factor: float = 1.0
    ) -> tuple[dict[str, Any], Arrays]:
        """Send a request and return its first reply."""
        self.send(message, arrays)
        return self.receive(f"'{message['do']}'", factor)

    def send(self, message: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> None:
        """Send a request."""
        self.channel.socket.settimeout(self.limit)
        try:
            self.channel.send(message, arrays)
        except TimeoutError:
            raise self._lost(f"did not read '{message['do']}' within {self.limit:g} s") from None
        except OSError:
            raise self._lost(f"ended before '{message['do']}'") from None

    def receive(self, what: str, factor: float = 1.0) -> tuple[dict[str, Any], Arrays]:
        """The next reply to a request."""
        limit = self.limit * factor
        try:
            reply, arrays = self.channel.receive(limit)
        except TimeoutError:
            raise self._lost(f"sent nothing for {limit:g} s after {what}") from None
        except FrameError as error:
            raise self._lost(f"sent {error}") from None
        except (EOFError, OSError):
            raise self._lost(f"ended in {what}") from None
        if "failed" in reply:
            raise self._lost(f"failed in {what}: {reply['failed']}")
        return reply, arrays

    def end(self) -> None:
        """End the process now, whatever it does."""
        _kill(self.process)
        self._end()

    def _lost(self, how: str) -> EngineLost:
        code = self._ended()
        lines = _last_lines(self.log)
        value = f"vLLM {how}{code}; the last lines of its log:\n" + "\n".join(f"    {line}" for line in lines)
        rule = f"vLLM runs in a process of its own, which is silent for at most {self.limit:g} s (engine.timeout)"
        return EngineLost(value, rule, f"see {self.log}")

    def _ended(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(1)
        code = self.process.returncode
        return "" if code is None else f" (exit code {code})"


def _start(python: str, log: Path, other: socket.socket, first: bool) -> "subprocess.Popen[bytes]":
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    # one process, unless the model is spread over several GPUs
    environment |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
    log.parent.mkdir(parents=True, exist_ok=True)
    main = threading.current_thread() is threading.main_thread()
    command = [python, "-P", str(SERVE), str(other.fileno()), str(os.getpid()), str(int(main))]
    try:
        with log.open("w" if first else "a") as output:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                pass_fds=[other.fileno()],
                start_new_session=True,
            )
    except OSError as error:
        rule = "vLLM runs in an environment of its own"
        fix = "towpath engine install vllm, and leave engine.python out"
        raise RecipeError(f"engine.python = {python!r}: {error.strerror}", rule, fix) from error


def _last_lines(log: Path) -> list[str]:
    lines = [line.rstrip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-LAST_LINES:] or ["no output"]


def _end(process: "subprocess.Popen[bytes]", ours: socket.socket) -> None:
    """The process ends when its socket does; it is not waited for long, and its own workers end with it."""
    ours.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(5)
    _kill(process)
    process.wait()


def _kill(process: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
