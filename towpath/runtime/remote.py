"""Workers on other hosts: an agent on each host connects to this process and forks them; each worker connects, too.

Messages and arrays go through these connections, gradients through those of torch.distributed.
"""

import os
import select
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from towpath.errors import ResourceError
from towpath.runtime.channel import Channel, ChannelClosed
from towpath.runtime.handshake import HANDSHAKE_SECONDS, HandshakeFailed, answer, send_json
from towpath.runtime.processes import START_SECONDS, describe_status
from towpath.runtime.wire import MessageError

LIMIT = 5.0
"""Seconds within which an agent that is alive answers: it computes nothing."""
MOST_STRANGERS = 64
"""Connections that may be in their handshake at one time."""
FORWARDED = ("TOWPATH_", "HF_HUB_OFFLINE", "PYTHONHASHSEED")
"""Variables of this process that workers elsewhere get, by the beginning of their name."""
PRIVATE = "TOWPATH_CLUSTER_"
"""Those that belong to one host."""


class Listener:
    """Where agents and workers connect to."""

    def __init__(self, address: str, port: int, token: str) -> None:
        self.host = address
        self.token = token
        try:
            self._socket = socket.create_server((address, port), backlog=128)
        except OSError as error:
            raise ResourceError(
                f"{address}:{port}: {error.strerror}",
                "the controller listens for its workers on an address of this host",
                "set cluster.interface to an interface of this host",
            ) from error
        self.port = self._socket.getsockname()[1]
        self._arrived: list[tuple[dict[str, Any], socket.socket]] = []
        self._condition = threading.Condition()
        self._strangers = threading.Semaphore(MOST_STRANGERS)
        self.refused: list[str] = []
        """Addresses that connected in vain, with the reason."""
        threading.Thread(target=self._accept, daemon=True, name="listener").start()

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._socket.close()
        for _, connection in self._arrived:
            connection.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, peer = self._socket.accept()
            except OSError:
                return
            if not self._strangers.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(target=self._greet, args=(connection, peer[0]), daemon=True, name="handshake").start()

    def _greet(self, connection: socket.socket, peer: str) -> None:
        """A handshake in a thread of its own: whoever is slow does not delay the others."""
        try:
            hello = answer(connection, self.token)
        except (OSError, HandshakeFailed) as error:
            connection.close()
            with self._condition:
                self.refused = [*self.refused[-9:], f"{peer}: {error}"]
            return
        finally:
            self._strangers.release()
        with self._condition:
            self._arrived.append((hello | {"peer": peer}, connection))
            self._condition.notify_all()

    def take(
        self, wanted: Callable[[Mapping[str, Any]], bool], deadline: float
    ) -> tuple[dict[str, Any], socket.socket] | None:
        """The next connection of a kind, or None when the time is over."""
        with self._condition:
            while True:
                for number, (hello, connection) in enumerate(self._arrived):
                    if wanted(hello):
                        del self._arrived[number]
                        return hello, connection
                left = deadline - time.monotonic()
                if left <= 0 or not self._condition.wait(left):
                    return None

    def forget_workers(self) -> None:
        """Close connections of workers that came too late for their group."""
        with self._condition:
            late = [connection for hello, connection in self._arrived if "worker" in hello]
            self._arrived = [(hello, connection) for hello, connection in self._arrived if "agent" in hello]
        for connection in late:
            connection.close()


class Agent:
    """The process on another host, or for one task of torchrun or srun, that forks workers there."""

    def __init__(self, hello: Mapping[str, Any], connection: socket.socket) -> None:
        self.facts: Mapping[str, Any] = hello["agent"]
        self.slot = int(hello["slot"])
        self.peer = str(hello["peer"])
        self.channel: Channel | None = None
        self.gpus = 0
        self.lost = False
        self.ended: dict[int, int] = {}
        """Exit status by process."""
        self._connection = connection

    @property
    def name(self) -> str:
        return f"{self.facts['host']} ({self.peer})"

    def welcome(self) -> None:
        """Let it import its libraries."""
        with suppress(OSError):
            send_json(self._connection, {})
        self.channel = Channel(self._connection, START_SECONDS)

    def refuse(self, reason: str) -> None:
        """Send it away."""
        with suppress(OSError):
            send_json(self._connection, {"refused": reason})
        self._connection.close()

    def ready(self, deadline: float) -> None:
        """Wait until it can fork workers."""
        self.gpus = int(self.receive("ready", deadline - time.monotonic())["gpus"])

    @property
    def alive(self) -> bool:
        """Whether the connection stands, as far as is known without asking."""
        if self.lost or self.channel is None:
            return False
        try:
            readable, _, _ = select.select([self.channel], [], [], 0)
            if readable and not self._connection.recv(1, socket.MSG_PEEK):
                self.drop()
        except OSError:
            self.drop()
        return not self.lost

    def answers(self) -> bool:
        """Whether it answers within its limit."""
        if not self.alive:
            return False
        with suppress(ResourceError):
            self.send({"ping": True})
            self.receive("pong", LIMIT)
        return not self.lost

    def drop(self) -> None:
        """Give it up; it ends its workers when it finds out."""
        self.lost = True
        self._connection.close()

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message; ResourceError where the host is lost."""
        assert self.channel
        try:
            self.channel.send(dict(message))
        except ChannelClosed as error:
            self.drop()
            raise ResourceError(f"{self.name}: the connection to this host was lost: {error}") from error

    def receive(self, key: str, limit: float) -> Any:
        """Its next message of a kind within a limit; those on ended workers are remembered."""
        assert self.channel
        deadline = time.monotonic() + limit
        try:
            while select.select([self.channel], [], [], max(0.0, deadline - time.monotonic()))[0]:
                message = self.channel.receive()
                if "ended" in message:
                    self.ended[message["ended"]] = message["status"]
                if key in message:
                    return message[key]
        except (ChannelClosed, MessageError, ValueError, OSError) as error:
            self.drop()
            raise ResourceError(f"{self.name}: the connection to this host was lost: {error}") from error
        if key != "ended":
            self.drop()
            raise ResourceError(f"{self.name}: no answer within {limit:.0f} s")
        return None

    def exit_status(self, pid: int) -> int | None:
        """How a worker ended, if that is known within a moment."""
        deadline = time.monotonic() + 2.0
        with suppress(ResourceError):
            while self.alive and pid not in self.ended and time.monotonic() < deadline:
                self.receive("ended", 0.2)
        return self.ended.get(pid)

    def end(self) -> None:
        """The run is over: the agent's process ends in peace."""
        if not self.lost:
            with suppress(ResourceError):
                self.send({"end": True}) if self.channel else self.refuse("the run is over")
            self.drop()


_lock = threading.RLock()
"""Of the messages to agents, which the groups of their workers share."""


class Remote:
    """The workers of one group, each forked by one of the agents."""

    def __init__(self, listener: Listener, agents: Sequence[Agent], interface: str = "") -> None:
        self.listener = listener
        self.agents = list(agents)
        """Of each worker, by rank."""
        self.address = listener.host
        self.interface = interface
        self._pids: list[int] = []

    @property
    def alive(self) -> bool:
        return all(agent.alive for agent in self.agents)

    def start(self, devices: Sequence[str], threads: int, timeout: float) -> list[Channel]:
        """Have a worker forked for each device, and wait until all have connected."""
        key = uuid.uuid4().hex
        self.listener.forget_workers()
        self._pids = []
        environment = {
            name: text
            for name, text in os.environ.items()
            if name.startswith(FORWARDED) and not name.startswith(PRIVATE)
        }
        for rank, agent in enumerate(self.agents):
            request = {
                "rank": rank,
                "world": len(devices),
                "threads": threads,
                "timeout": timeout,
                "environment": environment,
                "worker": key,
            }
            with _lock:
                agent.send({"fork": request})
                self._pids.append(agent.receive("forked", max(LIMIT, timeout)))
        deadline = time.monotonic() + max(timeout, HANDSHAKE_SECONDS)
        return [self._channel(key, rank, deadline, timeout) for rank in range(len(devices))]

    def _channel(self, key: str, rank: int, deadline: float, timeout: float) -> Channel:
        arrived = self.listener.take(lambda hello: hello.get("worker") == key and hello.get("rank") == rank, deadline)
        if arrived is None:
            self.end()
            raise ResourceError(
                f"worker {rank + 1} of {len(self.agents)} on {self.agents[rank].name} did not connect to "
                f"{self.listener.address}",
                "every worker has a connection to the controller",
                "set cluster.interface to the network interface of this host that the other hosts reach",
            )
        send_json(arrived[1], {})
        return Channel(arrived[1], timeout)

    def why_ended(self, rank: int) -> str:
        """How a worker ended, as its agent says."""
        with _lock:
            status = self.agents[rank].exit_status(self._pids[rank])
        if not self.agents[rank].alive:
            return f"was lost with its host {self.agents[rank].name}"
        return describe_status(status)

    def end(self) -> None:
        """End all workers; an agent that does not answer is given up, and ends its own."""
        with _lock:
            self._end()

    def _end(self) -> None:
        pending = []
        for agent in dict.fromkeys(self.agents):
            pids = [pid for pid, owner in zip(self._pids, self.agents, strict=False) if owner is agent]
            if agent.alive and pids:
                with suppress(ResourceError):
                    agent.send({"kill": pids})
                    pending.append(agent)
        deadline = time.monotonic() + LIMIT
        for agent in pending:
            with suppress(ResourceError):
                agent.receive("killed", max(0.1, deadline - time.monotonic()))
        self._pids = []
