"""HTTP connections: a deadline for request headers, and a limit on open connections."""

import asyncio
import ipaddress
import logging
import resource
import traceback
from collections.abc import Sequence
from time import monotonic
from typing import Any, ClassVar, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from towpath.terminal import strip_control
from towpath.web import proxies

HEADER_SECONDS = 15.0
"""Time for a request's headers after its first byte, or after the connection was opened."""
MAX_CONNECTIONS = 1000
"""Open connections of the server."""
MAX_PER_ADDRESS = 100
"""Open connections per address; trusted proxies and this machine are limited by MAX_CONNECTIONS alone."""
LOOPBACK = ("127.0.0.0/8", "::1")
LINGER_SECONDS = 2.0
"""Time for a client to finish sending a request that was answered before its end, and to read the answer."""
LINGER_BYTES = 4 * 2**20
"""Bytes of such a request that are read and dropped."""
RESERVED_DESCRIPTORS = 128
"""File descriptors reserved for the ledger, logs and the run's files."""


class LingeringTransport:
    """A transport whose `close` lets the client read the response to a request that is refused before its end.

    Closing a socket with unread data resets the connection: a client, or a proxy such as Caddy, that is still sending
    would get an error in place of the response. So only the writing side is closed, and what arrives is dropped.
    """

    def __init__(self, transport: asyncio.Transport, protocol: "BoundedProtocol") -> None:
        self._transport = transport
        self._protocol = protocol
        self._dropped = 0
        self._lingers = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """Whether no further request is accepted."""
        return self._lingers or self._transport.is_closing()

    def close(self) -> None:
        """Close after pending writes; after those and the rest of the request where it is still arriving."""
        if self.is_closing():
            return
        # over TLS a half-closed connection does not exist
        if self._protocol.conn.their_state is not h11.SEND_BODY or not self._transport.can_write_eof():
            self._transport.close()
            return
        self._lingers = True
        self._transport.write_eof()
        self._transport.resume_reading()
        self._protocol.loop.call_later(LINGER_SECONDS, self._transport.abort)

    def drop(self, data: bytes) -> None:
        """Drop data of a refused request."""
        self._dropped += len(data)
        if self._dropped > LINGER_BYTES:
            self._transport.abort()


class BoundedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 protocol with limits, so that slow or numerous connections do not block other clients."""

    most: ClassVar[int] = MAX_CONNECTIONS
    shared: ClassVar[tuple[proxies.Network, ...]] = ()
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._lingering = LingeringTransport(transport, self)
        super().connection_made(cast("asyncio.Transport", self._lingering))
        if self._too_many():
            self.connections.discard(self)
            transport.abort()
            return
        self._expect_headers()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            self._lingering.drop(data)
            return
        if self._deadline is None and self.conn.their_state is h11.IDLE:
            self._expect_headers()
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._cancel_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_deadline()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is not h11.IDLE:  # a pipelined request has begun
            self._cancel_deadline()

    def _too_many(self) -> bool:
        if len(self.connections) > self.most:
            return True
        address = self.client[0] if self.client else ""
        if proxies.is_within(address, self.shared):
            return False
        others: list[H11Protocol] = [one for one in self.connections if isinstance(one, H11Protocol)]
        return sum(one.client is not None and one.client[0] == address for one in others) > MAX_PER_ADDRESS

    def _expect_headers(self) -> None:
        self._deadline = self.loop.call_later(HEADER_SECONDS, self._headers_late)

    def _headers_late(self) -> None:
        self._deadline = None
        self.transport.abort()

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class RateLimitedLog(logging.Filter):
    """Passes a log message once per minute, so that a client cannot fill the log by repeating it.

    Errors raised at different places are different messages. Control characters are removed.
    """

    def __init__(self, seconds: float = 60.0) -> None:
        super().__init__()
        self._seconds = seconds
        self._last: dict[str, tuple[float, int]] = {}
        """Time of the last pass and number of suppressed messages, by message kind."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether no message of this kind passed recently."""
        kind = _message_kind(record)
        now = monotonic()
        at, suppressed = self._last.get(kind, (-self._seconds, 0))
        if now - at < self._seconds:
            self._last[kind] = at, suppressed + 1
            return False
        if len(self._last) > 1000:
            self._last.clear()
        self._last[kind] = now, 0
        more = f" ({suppressed} more like this before)" if suppressed else ""
        record.msg = strip_control(record.getMessage()) + more
        record.args = ()
        return True


def _message_kind(record: logging.LogRecord) -> str:
    """Return where an error was raised, or the message, which contains nothing from a client."""
    error = record.exc_info[1] if record.exc_info else None
    if error is None or error.__traceback__ is None:
        return f"{record.name}: {record.getMessage()[:200]}"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{record.name}: {type(error).__name__} at {frame.filename}:{frame.lineno}"


def bounded_protocol(named: Sequence[str] = ()) -> type[BoundedProtocol]:
    """Return the protocol with as many connections as this process's file descriptors allow."""
    shared = tuple(ipaddress.ip_network(one) for one in (*LOOPBACK, *named))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + RESERVED_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    most = (
        MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else max(8, min(MAX_CONNECTIONS, soft - RESERVED_DESCRIPTORS))
    )
    return type("Bounded", (BoundedProtocol,), {"most": most, "shared": shared})
