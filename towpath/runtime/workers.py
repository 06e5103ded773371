"""Worker processes as their controller sees them: started, asked, watched, and ended together.

Nothing waits without a limit: a worker that sends no heartbeat, or makes no progress, is named with its last stack.
"""

import os
import selectors
import socket
import time
import uuid
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, NoReturn, Protocol

import torch.distributed as dist

from towpath import errors, interrupt
from towpath.errors import TowpathError, WorkerLost
from towpath.progress import print_note
from towpath.runtime.channel import Channel, ChannelClosed, Frame
from towpath.runtime.processes import Processes
from towpath.runtime.wire import MessageError
from towpath.runtime.worker_states import Usage, WorkersFile, WorkerState

Part = Literal["all", "training", "sampling"]
"""The workers of a stage: all of them, or those that train and those that only sample."""
PROGRESS_FACTOR = 10.0
"""Times the heartbeat's limit that a verb may take without progress."""
SLOWER = 5.0
"""Times as long as its slowest success that a verb may take, where that is more."""


class Launcher(Protocol):
    """Starts worker processes somewhere, and ends them."""

    address: str
    """Of this process, as workers reach it."""

    @property
    def alive(self) -> bool:
        """Whether what holds the workers still runs."""
        ...

    def start(self, devices: Sequence[str], threads: int, timeout: float) -> list[Channel]:
        """Start a worker for each device; connections to them in order of rank."""
        ...

    def why_ended(self, rank: int) -> str:
        """How a worker ended whose connection is closed, such as `was ended by SIGKILL`."""
        ...

    def end(self) -> None:
        """End all workers, at once and for certain."""
        ...


class WorkerFailed(RuntimeError):
    """An exception of a worker; its traceback is a note of this one."""

    errno: int | None = None
    """Of the worker's exception, such as that of a full disk."""


class Workers:
    """A group of processes, started together and ended together."""

    def __init__(self, devices: Sequence[str], threads: int, timeout: float, launcher: Launcher | None = None) -> None:
        self.launcher = launcher or Processes()
        self.devices = list(devices)
        self.threads = threads
        self.timeout = timeout
        self.channels: list[Channel] = []
        self.states: list[WorkerState] = []
        self.longest: dict[str, float] = {}
        """Seconds of the slowest success, by method or function."""
        self.lost: WorkerLost | None = None
        self._busy = False
        self._request = 0
        self._file: WorkersFile | None = None
        self._others: Sequence[WorkerState] = ()
        self._abandoned: BaseException | None = None
        self._dropped: list[int] = []
        """Runtimes of which workers must still let go."""
        self._store: Any = None
        self._start()

    @property
    def count(self) -> int:
        return len(self.devices)

    @property
    def backend(self) -> str:
        """Of collectives."""
        return "nccl" if self.devices[0].startswith("cuda") else "gloo"

    @property
    def busy(self) -> bool:
        """Whether a request is under way, or was broken off."""
        return self._busy

    @property
    def alive(self) -> bool:
        """Whether the group can be asked."""
        return self.lost is None and self._abandoned is None and self.launcher.alive

    def device_shares(self) -> list[int]:
        """For each worker how many use its device."""
        used = Counter((state.host, state.device) for state in self.states)
        return [used[state.host, state.device] for state in self.states]

    # Beginning and end

    def _start(self) -> None:
        self.channels = self.launcher.start(self.devices, self.threads, self.timeout)
        self.states = [WorkerState(rank, device=device) for rank, device in enumerate(self.devices)]
        self._finalizer = weakref.finalize(self, _end, self.launcher, self.channels)
        self._connect()

    def _connect(self) -> None:
        """Workers meet at a store of this process, and add some numbers, before anything is loaded."""
        port = 0
        if self.count > 1:
            self._store, port = self.open_store()
        shared = {
            "backend": self.backend,
            "address": self.launcher.address,
            "port": port,
            "prefix": uuid.uuid4().hex,
            # collectives must not give up before this process has named who is missing
            "timeout": 3600.0,
        }
        arguments = [{**shared, "device": device} for device in self.devices]
        for state, (host, pid) in zip(self.states, self.ask("connect", arguments), strict=True):
            state.host = host
            state.pid = pid

    def abandon(self, error: BaseException) -> None:
        """End the group, and the request that is under way, from another thread: what it waits for will not come."""
        self._abandoned = error

    def open_store(self) -> tuple[Any, int]:
        """A store of this process where workers can meet, and its port."""
        # on this address alone: a store listens on all of a host's networks otherwise, and asks for no token
        listener = socket.create_server((self.launcher.address, 0))
        port = listener.getsockname()[1]
        store = dist.TCPStore(
            self.launcher.address,
            port,
            None,
            True,
            timedelta(seconds=self.timeout),
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )
        return store, port

    def close(self) -> None:
        """End all workers at once, also those that are stopped."""
        self._finalizer()

    def record(self, path: Path, others: Sequence[WorkerState] = ()) -> None:
        """Keep a file with the state of all workers, and of others, from now on."""
        if self._file is None or self._file.path != path:
            self._others = others
            self._file = WorkersFile(path, [*self.states, *others], self.timeout)
        self._write_file()

    def _write_file(self, lost: str = "", last: bool = False) -> None:
        if self._file is not None:
            self._file.write([*self.states, *self._others], lost, last)

    # Messages

    def ask(
        self,
        verb: str,
        arguments: Sequence[Mapping[str, Any] | None],
        count: Callable[[int], None] = lambda units: None,
    ) -> list[Any]:
        """One message to each worker whose arguments are not None; the replies, None for the others."""
        self._begin()
        frames: dict[int, Frame] = {}
        try:
            # all are encoded before any is sent, and the same arguments for several workers once
            for rank, own in enumerate(arguments):
                if own is not None and id(own) not in frames:
                    frames[id(own)] = self._frame(verb, own, rank)
            waiting = {rank for rank, own in enumerate(arguments) if own is not None}
            for rank in waiting:
                own = arguments[rank]
                assert own is not None
                self._send(rank, frames[id(own)], name_of(verb, own))
        finally:
            for frame in frames.values():
                frame.close()
        replies: list[Any] = [None] * self.count
        for rank, reply in self._replies(waiting, count):
            replies[rank] = reply
        self._busy = False
        self._drop_runtimes()
        return replies

    def _begin(self) -> None:
        """A new request: what workers still answer to an earlier one, which was interrupted, is not for it."""
        self._require_alive()
        self._busy = True
        self._request += 1

    def _frame(self, verb: str, arguments: Mapping[str, Any], rank: int) -> Frame:
        message = {"verb": verb, "arguments": arguments, "request": self._request}
        return Frame(message, self.channels[rank].shared)

    def drop(self, runtime: int) -> None:
        """Let workers go of a runtime, now or when they are not busy: this may be called at any moment."""
        self._dropped.append(runtime)
        if not self._busy:
            with suppress(WorkerLost):  # whoever asks next finds out
                self._drop_runtimes()

    def _drop_runtimes(self) -> None:
        if self._dropped and self.lost is None and self.channels[0].fileno() >= 0:
            dropped, self._dropped = self._dropped, []
            self.ask("drop", [{"runtimes": dropped}] * self.count)
            self._write_file(last=True)

    def ask_idle(
        self, verb: str, arguments: Sequence[Mapping[str, Any]], count: Callable[[int], None] = lambda units: None
    ) -> Iterator[tuple[int, Any]]:
        """Messages in their order, each to whichever worker is idle; (number, reply) as they come."""
        self._begin()
        number_of: dict[int, int] = {}
        todo = list(range(len(arguments)))[::-1]
        waiting: set[int] = set()

        def give(rank: int) -> None:
            if todo:
                number_of[rank] = todo.pop()
                frame = self._frame(verb, arguments[number_of[rank]], rank)
                self._send(rank, frame, name_of(verb, arguments[number_of[rank]]))
                frame.close()
                waiting.add(rank)

        for rank in range(self.count):
            give(rank)
        for rank, reply in self._replies(waiting, count):
            number = number_of[rank]
            give(rank)
            yield number, reply
        self._busy = False

    def _send(self, rank: int, frame: Frame, name: str) -> None:
        state = self.states[rank]
        state.verb = name
        state.started = state.last_heard = state.progressed = time.monotonic()
        try:
            with interrupt.uninterrupted():
                self.channels[rank].send_frame(frame)
        except ChannelClosed:
            self._lose(rank, self.launcher.why_ended(rank))

    def _replies(self, waiting: set[int], count: Callable[[int], None]) -> Iterator[tuple[int, Any]]:
        """(rank, reply) of the workers in `waiting`, to which more may be added between two replies."""
        failures: list[tuple[int, Mapping[str, Any]]] = []
        with selectors.DefaultSelector() as selector:
            for rank, channel in enumerate(self.channels):
                selector.register(channel, selectors.EVENT_READ, rank)
            while waiting:
                for key, _ in selector.select(0.2):
                    rank = key.data
                    message = self._receive(rank)
                    self._note(rank, message, count)
                    if "seconds" not in message or message["request"] != self._request:
                        continue
                    waiting.discard(rank)
                    name = self._finish(rank, message)
                    if "error" in message:
                        failures.append((rank, message["error"]))
                    else:
                        self.longest[name] = max(self.longest.get(name, 0.0), message["seconds"])
                        yield rank, message["reply"]
                self._write_file()
                self._require_partner()
                self._require_progress(waiting, failures)
        self._busy = False
        if failures:
            raise self._error(*failures[0])

    def _finish(self, rank: int, message: Mapping[str, Any]) -> str:
        """Add a verb to what a worker has done; its name."""
        state = self.states[rank]
        name, state.verb = state.verb, ""
        state.seconds[name] = state.seconds.get(name, 0.0) + message["seconds"]
        state.usage = Usage(**message["usage"])
        return name

    def _receive(self, rank: int) -> Mapping[str, Any]:
        try:
            with interrupt.uninterrupted():
                message = self.channels[rank].receive()
        except ChannelClosed:
            self._lose(rank, self.launcher.why_ended(rank))
        except MessageError as error:
            self._lose(rank, f"answered with {error}")
        if not isinstance(message, dict):
            self._lose(rank, f"answered with {message!r:.60}")
        return message

    def _note(self, rank: int, message: Mapping[str, Any], count: Callable[[int], None]) -> None:
        state = self.states[rank]
        state.last_heard = time.monotonic()
        if "beat" in message:
            state.memory_bytes = message["beat"]["memory"]
            state.peak_memory_bytes = max(state.peak_memory_bytes, state.memory_bytes)
            state.stack = message["beat"]["stack"]
            return
        state.progressed = state.last_heard
        if "tick" in message and message["request"] == self._request:
            count(message["tick"])
        if "note" in message:
            print_note(message["note"])

    def _require_progress(self, waiting: set[int], failures: Sequence[tuple[int, Mapping[str, Any]]]) -> None:
        """Lose the worker that is silent, or makes no progress; where one has failed, do not wait for the others."""
        now = time.monotonic()
        silent = [rank for rank in waiting if now - self.states[rank].last_heard > self.timeout]
        if silent:
            rank = min(silent, key=lambda rank: self.states[rank].last_heard)
            if failures:
                raise self._ended_by(failures[0])
            self._lose(rank, f"has sent no heartbeat for {self.timeout:g} s")
        if failures and waiting and all(now - self.states[rank].progressed > 5.0 for rank in waiting):
            raise self._ended_by(failures[0])  # the others wait for the one that failed
        for rank in waiting:
            limit = max(self.timeout * PROGRESS_FACTOR, SLOWER * self.longest.get(self.states[rank].verb, 0.0))
            if now - self.states[rank].progressed > limit:
                self._lose(rank, f"has made no progress for {limit:.0f} s")

    def _require_partner(self) -> None:
        """End the group where other workers, of which it needs something, are lost."""
        if self._abandoned is not None:
            self.lost = WorkerLost("the group of workers was ended", "workers that it needs were lost")
            self.close()
            raise self._abandoned

    def _ended_by(self, failure: tuple[int, Mapping[str, Any]]) -> Exception:
        """The exception of a worker that the others wait for in vain: the group cannot be used again."""
        error = self._error(*failure)
        self.lost = WorkerLost("the group of workers was ended", "one worker failed while others waited for it")
        self.close()
        return error

    def _lose(self, rank: int, why: str) -> NoReturn:
        state = self.states[rank]
        where = f"worker {rank + 1} of {self.count} ({state.host or 'starting'}, {state.device}, process {state.pid})"
        stack = "\n  last seen at:\n" + "\n".join(state.stack) if state.stack else ""
        self.lost = WorkerLost(
            f"{where} {why}, during {state.verb or 'a verb'}{stack}",
            "all workers of a group are needed for each step",
            "the stage resumes from its last checkpoint; see cluster.restarts and cluster.timeout",
        )
        self._write_file(f"{where} {why}")
        self.close()
        raise self.lost

    def _require_alive(self) -> None:
        if self.lost is not None:
            raise self.lost

    def _error(self, rank: int, described: Mapping[str, Any]) -> Exception:
        """A worker's exception: one that a user can act on as it is, another with its traceback."""
        state = self.states[rank]
        kind = getattr(errors, described["type"], None)
        if described["parts"] and isinstance(kind, type) and issubclass(kind, TowpathError):
            return kind(*described["parts"])
        where = f"worker {rank + 1} of {self.count} ({state.host}, {state.device})"
        failed = WorkerFailed(f"{where}: {described['type']}: {described['text']}")
        failed.add_note(described["traceback"])
        failed.errno = described["errno"]
        return failed


def _end(launcher: Launcher, channels: Sequence[Channel]) -> None:
    launcher.end()
    for channel in channels:
        channel.close()


def name_of(verb: str, arguments: Mapping[str, Any]) -> str:
    """The method of a runtime or the function that a message is about, or else its verb."""
    return arguments.get("method") or arguments.get("function", verb).rpartition(":")[2]


_shared: dict[tuple[Any, ...], Workers] = {}
"""Groups that are running, by what they were started with: stages of one run use the same processes."""


def shared_workers(
    devices: Sequence[str],
    threads: int,
    timeout: float,
    launcher: Callable[[], Launcher] = Processes,
    hosts: tuple[int, ...] = (),
    part: Part = "all",
) -> Workers:
    """The workers of this process with these settings on these hosts, started when they are first wanted, or wanted
    after a loss. Groups of all workers and of parts of them are not there at the same time."""
    key = (tuple(devices), threads, timeout, hosts, os.getpid(), part)
    for other in [other for other in _shared if (other[-1] == "all") != (part == "all")]:
        _shared.pop(other).close()
    workers = _shared.get(key)
    if workers is None or not workers.alive:
        if workers is not None:
            workers.close()
        _shared[key] = workers = Workers(devices, threads, timeout, launcher())
    return workers


def close_shared_workers() -> None:
    """End all workers of this process."""
    while _shared:
        _shared.popitem()[1].close()
