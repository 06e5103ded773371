"""Chat templates rendered in a process of their own, which is ended where a template takes too long or too much."""

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
WALL = 60.0
"""Seconds for a reply by the clock: the worker limits its processor time; a machine with much else to do may take
far longer."""
LARGEST_REPLY = 64 * 2**20
RULE = "a chat template renders a user's message, within 2 s and 512 MiB"
FIX = "use model.template = 'chatml', or a Jinja file that renders one user turn"


class Renderer:
    """One worker, started when it is first asked and again after it was ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._end: Any = None
        self._asking = threading.Lock()

    def render(
        self,
        template: str,
        place: str,
        messages: Sequence[Mapping[str, str]],
        waits: bool,
        variables: Mapping[str, Any],
    ) -> str:
        """The template's text of a conversation; `waits` for an answer, or not. `place` is what errors call the
        template."""
        request = {"template": template, "messages": list(messages), "waits": waits, "variables": dict(variables)}
        with self._asking:
            reply = self._asked(json.dumps(request).encode() + b"\n")
        if "text" in reply:
            return reply["text"]
        line = f", line {reply['line']}" if reply.get("line") else ""
        kind = TemplateRaised if reply.get("raised") else TemplateFailed
        raise kind(f"the chat template fails ({place}{line}): {reply['error']}", RULE, FIX)

    def _asked(self, request: bytes) -> dict[str, Any]:
        process = self._started()
        assert process.stdin and process.stdout
        try:
            process.stdin.write(request)
            process.stdin.flush()
            reply = _line(process)
        except BrokenPipeError:
            reply = b""
        except BaseException:
            self._stop()  # what it still says would be taken for the answer to the next question
            raise
        if reply is None or not reply.endswith(b"\n"):
            status = self._stop()
            slow = reply is None or status == -signal.SIGPROF
            limit = f"{template_worker.SECONDS:.0f} s" if status == -signal.SIGPROF else f"{WALL:.0f} s by the clock"
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
            start_new_session=True,  # Ctrl-C is for this process alone
        )
        self._process, self._end = process, weakref.finalize(self, _end, process, os.getpid())
        return process

    def _stop(self) -> int:
        """End the worker; its exit status."""
        assert self._process is not None
        process = self._process
        self._process = None
        self._end()
        return process.returncode


class TemplateFailed(ModelError):
    """A chat template cannot render what it is given."""


class TemplateRaised(TemplateFailed):
    """A chat template raises an error, as some do at a conversation they are not made for."""


def _line(process: "subprocess.Popen[bytes]") -> bytes | None:
    """A line of the worker's; None where it takes too long or says too much; without its end where the worker has
    ended."""
    assert process.stdout
    found = bytearray()
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN | select.POLLHUP)
    while not found.endswith(b"\n"):
        if not poll.poll(WALL * 1000) or len(found) > LARGEST_REPLY:
            return None
        part = os.read(process.stdout.fileno(), 2**20)
        if not part:
            process.wait()
            break
        found += part
    return bytes(found)


def _end(process: "subprocess.Popen[bytes]", owner: int) -> None:
    """End the worker; in a process that was forked from the one that started it there is nothing to end."""
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
    """The one of this process; a process that was forked has its own."""
    global _renderer
    if _renderer is None:
        _renderer = Renderer()
    return _renderer


def _forget() -> None:
    global _renderer
    _renderer = None


os.register_at_fork(after_in_child=_forget)
