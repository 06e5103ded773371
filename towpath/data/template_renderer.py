"""Render chat templates in a separate process, which is killed if a template takes too much time or memory."""

import json
import os
import select
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from towpath.data import template_worker
from towpath.errors import ModelError

WORKER = Path(template_worker.__file__)
WALL_SECONDS = 60.0
"""Wall-clock limit of a reply. The worker limits its CPU time itself; a loaded machine may take far longer."""
MAX_REPLY = 64 * 2**20
RULE = "a chat template renders a user's message, within 2 s and 512 MiB"
FIX = "use model.template = 'chatml', or a Jinja file that renders one user turn"


class Renderer:
    """One worker process, started on first use and restarted after it was killed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._end: Any = None
        self._lock = threading.Lock()

    def render(
        self,
        template: str,
        template_name: str,
        messages: Sequence[Mapping[str, str]],
        add_generation_prompt: bool,
        variables: Mapping[str, Any],
    ) -> str:
        """The template's text of a conversation; `template_name` is for errors."""
        request = {
            "template": template,
            "messages": list(messages),
            "add_generation_prompt": add_generation_prompt,
            "variables": dict(variables),
        }
        with self._lock:
            reply = self._exchange(json.dumps(request).encode() + b"\n")
        if "text" in reply:
            return reply["text"]
        line = f", line {reply['line']}" if reply.get("line") else ""
        kind = TemplateRaised if reply.get("raised") else TemplateFailed
        raise kind(f"the chat template fails ({template_name}{line}): {reply['error']}", RULE, FIX)

    def _exchange(self, request: bytes) -> dict[str, Any]:
        process = self._started()
        assert process.stdin and process.stdout
        try:
            process.stdin.write(request)
            process.stdin.flush()
            reply = _read_line(process)
        except BrokenPipeError:
            reply = b""
        except BaseException:
            self._stop()  # its late reply would be taken for the reply to the next request
            raise
        if reply is None or not reply.endswith(b"\n"):
            status = self._stop()
            slow = reply is None or status == -signal.SIGPROF
            limit = (
                f"{template_worker.SECONDS:.0f} s"
                if status == -signal.SIGPROF
                else f"{WALL_SECONDS:.0f} s by the clock"
            )
            return {
                "error": f"it has not ended within {limit}"
                if slow
                else f"the process that renders it ended with status {status}"
            }
        return json.loads(reply)

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._process is not None and self._process.poll() is None:
            return self._process
        environment = os.environ | {"TRANSFORMERS_VERBOSITY": "error", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-P", "-W", "ignore", str(WORKER)]
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # so that Ctrl-C does not reach the worker
        )
        self._process, self._end = process, weakref.finalize(self, _end, process, os.getpid())
        return process

    def _stop(self) -> int:
        """Kill the worker and return its exit status."""
        assert self._process is not None
        process = self._process
        self._process = None
        self._end()
        return process.returncode


class TemplateFailed(ModelError):
    """A chat template cannot render a conversation."""


class TemplateRaised(TemplateFailed):
    """A chat template raises an error, as some do for conversations they do not support."""


def _read_line(process: "subprocess.Popen[bytes]") -> bytes | None:
    """One line from the worker; None after the time or size limit; without a line end if the worker ended."""
    assert process.stdout
    line = bytearray()
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN | select.POLLHUP)
    while not line.endswith(b"\n"):
        if not poll.poll(WALL_SECONDS * 1000) or len(line) > MAX_REPLY:
            return None
        part = os.read(process.stdout.fileno(), 2**20)
        if not part:
            process.wait()
            break
        line += part
    return bytes(line)


def _end(process: "subprocess.Popen[bytes]", owner: int) -> None:
    """Kill the worker; does nothing in a forked child of the process that started it."""
    if os.getpid() != owner:
        return
    assert process.stdin and process.stdout
    if process.poll() is None:
        process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        try:
            pipe.close()
        except OSError:
            continue


_renderer: Renderer | None = None


def get_renderer() -> Renderer:
    """The renderer of this process; a forked process has its own."""
    global _renderer
    if _renderer is None:
        _renderer = Renderer()
    return _renderer


def _forget() -> None:
    global _renderer
    _renderer = None


os.register_at_fork(after_in_child=_forget)
