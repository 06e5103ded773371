"""One HTTP exchange with somebody else's server: within a total time, within a size, to no address that a server of
ours must not reach."""

import asyncio
import ipaddress
import os
import re
import socket
from dataclasses import dataclass
from functools import cache
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

import httpx

LARGEST_REPLY = 4 * 2**20
"""Bytes of a reply's body."""
METADATA = {ipaddress.ip_address(text) for text in ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "192.0.0.192")}
"""Addresses beyond link-local ones at which clouds serve credentials."""
_HALF_CHARACTERS = re.compile("[\ud800-\udfff]")


class NoConnection(Exception):
    """The server could not be reached; nothing was sent."""


class BrokenOff(Exception):
    """The request was sent, and no whole reply came: too late, too large, or the connection broke."""


class Forbidden(Exception):
    """An address that is never asked."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered."""

    status: int
    headers: httpx.Headers
    body: bytes


class Client:
    """A client of one server for many threads. Redirects are not followed: what is sent goes to the address that was
    named, or nowhere."""

    def __init__(self, timeout: float, connections: int = 4, headers: dict[str, str] | None = None) -> None:
        self._timeout = timeout
        times = httpx.Timeout(timeout, connect=min(10.0, 0.9 * timeout))
        limits = httpx.Limits(max_connections=connections)
        plain = {"accept-encoding": "identity"}  # a compressed reply could be of any size
        self._client = httpx.AsyncClient(
            headers=plain | (headers or {}), timeout=times, limits=limits, follow_redirects=False
        )

    def post(self, address: str, content: bytes) -> Reply:
        """POST JSON and wait for the whole reply, `timeout` seconds in all; NoConnection, BrokenOff or Forbidden
        where there is none."""
        return asyncio.run_coroutine_threadsafe(self._posted(address, content), _loop(os.getpid())).result()

    def close(self) -> None:
        """Let go of the connections."""
        asyncio.run_coroutine_threadsafe(self._client.aclose(), _loop(os.getpid())).result()

    async def _posted(self, address: str, content: bytes) -> Reply:
        part = ""
        try:
            async with asyncio.timeout(self._timeout):
                await require_allowed(address)
                async with self._client.stream(
                    "POST", address, content=content, headers={"content-type": "application/json"}
                ) as response:
                    part = "whole "
                    return Reply(response.status_code, response.headers, await _body(response))
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise NoConnection(_reason(error)) from None
        except (TimeoutError, httpx.TimeoutException):
            raise BrokenOff(f"no {part}answer in {self._timeout:g} s") from None
        except httpx.HTTPError as error:
            raise BrokenOff(f"the connection broke ({error})") from None


async def _body(response: httpx.Response) -> bytes:
    if response.headers.get("content-encoding", "identity") != "identity":
        raise BrokenOff("a compressed answer, which was not asked for")
    body = bytearray()
    async for part in response.aiter_raw():
        body += part
        if len(body) > LARGEST_REPLY:
            raise BrokenOff(f"an answer of more than {LARGEST_REPLY} bytes")
    return bytes(body)


def _reason(error: BaseException) -> str:
    """What the operating system said, which lies deepest in a chain of errors."""
    found = str(error)
    deepest = error
    while (cause := deepest.__cause__ or deepest.__context__) is not None:
        deepest = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else cause
        if isinstance(deepest, OSError) and deepest.strerror:
            found = deepest.strerror
    return found or type(error).__name__


async def require_allowed(address: str) -> None:
    """Forbidden where an address leads to this network's own link or to a cloud's credentials."""
    parts = urlsplit(address)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # a proxy may know the name; otherwise connecting says what is wrong
        return
    for *_, place in found:
        if forbidden(str(place[0])):
            raise Forbidden(f"{parts.hostname} is {place[0]}, a link-local or metadata address")


def require_allowed_literal(address: str) -> None:
    """Forbidden where an address names such an IP address itself, in whatever form: known without asking anyone, so
    before a run begins."""
    host = urlsplit(address).hostname or ""
    try:
        literal = host if ":" in host else socket.inet_ntoa(socket.inet_aton(host))
    except OSError:  # a name
        return
    if forbidden(literal):
        raise Forbidden(f"{host} is a link-local or metadata address")


def forbidden(address: str) -> bool:
    """Whether an IP address is link-local or a cloud's metadata service."""
    found: Any = ipaddress.ip_address(address.partition("%")[0])
    found = getattr(found, "ipv4_mapped", None) or found
    return found.is_link_local or found in METADATA


def storable(text: str) -> str:
    """Text without half characters, which JSON can carry and nothing can store."""
    return _HALF_CHARACTERS.sub("\ufffd", text)


def without(secret: str, text: str) -> str:
    """Storable text of a server, in which a secret that we sent it is hidden."""
    return storable(text.replace(secret, "[key]") if secret else text)


@cache
def _loop(_process: int) -> asyncio.AbstractEventLoop:
    """The loop of all exchanges of a process, in a thread of its own: only there can a deadline end a read. A fork
    has no thread of its parent."""
    loop = asyncio.new_event_loop()
    Thread(target=loop.run_forever, name="towpath-http", daemon=True).start()
    return loop
