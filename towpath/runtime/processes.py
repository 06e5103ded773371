"""Workers as processes of this host: forked from one that has imported everything, so that they start, and start
again, at once."""

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from towpath.errors import ResourceError
from towpath.runtime.channel import Channel, ChannelClosed
from towpath.runtime.wire import MessageError

START_SECONDS = 300.0
"""Time in which the process must have imported its libraries."""
EXIT_SECONDS = 2.0
"""Time in which the end of a process is known after its connection has ended."""


class ForkServer:
    """A process that has imported what workers need, and forks them."""

    def __init__(self) -> None:
        mine, peer = socket.socketpair()
        # an import path as this process has it: a checkout that is not installed works, too
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "towpath.runtime.worker", str(peer.fileno())],
            pass_fds=[peer.fileno()],
            env=environment,
        )
        peer.close()
        self.channel = Channel(mine, START_SECONDS)
        self._lock = threading.RLock()
        self.ended: dict[int, int] = {}
        """Exit status by process."""
        weakref.finalize(self, _end, self.process, self.channel)
        self.receive("ready")

    def fork(self, request: Mapping[str, Any], timeout: float) -> tuple[Channel, int]:
        """A new worker: the connection to it, and its process."""
        mine, peer = socket.socketpair()
        with self._lock:
            self.channel.send({"fork": dict(request)})
            socket.send_fds(self.channel.connection, [b"f"], [peer.fileno()])
            peer.close()
            return Channel(mine, timeout), self.receive("forked")

    def receive(self, key: str) -> Any:
        """The server's next message of a kind; those on ended workers are remembered."""
        while True:
            try:
                message = self.channel.receive()
            except (ChannelClosed, MessageError) as error:
                fix = "see the messages above: workers import torch, transformers and towpath as this process does"
                raise ResourceError("worker processes did not start", "a group needs all of them", fix) from error
            if "ended" in message:
                self.ended[message["ended"]] = message["status"]
            if key in message:
                return message[key]

    def exit_status(self, pid: int) -> int | None:
        """How a worker ended, if that is known within a moment."""
        deadline = time.monotonic() + EXIT_SECONDS
        with suppress(ResourceError), self._lock:
            while pid not in self.ended and time.monotonic() < deadline:
                if select.select([self.channel], [], [], 0.1)[0]:
                    self.receive("ended")
        return self.ended.get(pid)

    def kill(self, pids: Sequence[int]) -> None:
        """End workers, also those that are stopped."""
        with suppress(ChannelClosed, ResourceError), self._lock:
            self.channel.send({"kill": list(pids)})
            self.receive("killed")


def _end(process: "subprocess.Popen[bytes]", channel: Channel) -> None:
    """End the server, and with it all workers: the system kills them when it ends."""
    process.kill()
    process.wait()
    channel.close()


_servers: dict[int, ForkServer] = {}
"""The server of this process."""


class Processes:
    """The workers of one group, forked from the server of this process."""

    address = "127.0.0.1"

    def __init__(self) -> None:
        self.server: ForkServer | None = None
        self._pids: list[int] = []

    @property
    def alive(self) -> bool:
        return self.server is not None and self.server.process.poll() is None

    def start(self, devices: Sequence[str], threads: int, timeout: float) -> list[Channel]:
        """Fork a worker for each device."""
        server = _servers.get(os.getpid())
        if server is None or server.process.poll() is not None:
            _servers.clear()
            _servers[os.getpid()] = server = ForkServer()
        self.server = server
        channels = []
        for rank in range(len(devices)):
            request = {
                "rank": rank,
                "world": len(devices),
                "threads": threads,
                "timeout": timeout,
                "environment": dict(os.environ),
            }
            channel, pid = server.fork(request, timeout)
            channels.append(channel)
            self._pids.append(pid)
        return channels

    def why_ended(self, rank: int) -> str:
        """How a worker ended, as the server that forked it says."""
        assert self.server
        return describe_status(self.server.exit_status(self._pids[rank]))

    def end(self) -> None:
        if self.server is not None:
            self.server.kill(self._pids)


def describe_status(status: int | None) -> str:
    """How a process ended, from the status that the system gives its parent."""
    if status is None:
        return "closed its connection"
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        return f"was ended by {name}{'; the system does that where memory runs out' if name == 'SIGKILL' else ''}"
    return f"ended with exit code {os.waitstatus_to_exitcode(status)}"
