"""HTTP requests to external servers, bounded in time and size, and never to link-local or metadata addresses."""

import asyncio
import ipaddress
import os
import random
import re
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from threading import Lock, Thread
from typing import Any
from urllib.parse import urlsplit

import httpx

MAX_RESPONSE_BYTES = 4 * 2**20
"""Largest accepted response body."""
MAX_PAUSE = 60.0
"""Longest pause between two attempts, in seconds."""
MAX_RETRY_AFTER = 300.0
"""Seconds; a request is given up if the server asks for a longer wait."""
METADATA_ADDRESSES = {
    ipaddress.ip_address(text) for text in ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "192.0.0.192")
}
"""Cloud metadata services that are not link-local."""
_SURROGATES = re.compile("[\ud800-\udfff]")


class ConnectFailed(Exception):
    """The server could not be reached; nothing was sent."""


class ResponseFailed(Exception):
    """The request was sent but no complete response arrived: timeout, too large, or a broken connection."""


class ForbiddenAddress(Exception):
    """The address is link-local or a cloud metadata service."""


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """Status, headers and body of a response."""

    status: int
    headers: httpx.Headers
    body: bytes


class HttpClient:
    """A thread-safe HTTP client. Redirects are not followed, so data goes only to the configured address."""

    def __init__(self, timeout: float, connections: int = 4, headers: dict[str, str] | None = None) -> None:
        self._timeout = timeout
        timeouts = httpx.Timeout(timeout, connect=min(10.0, 0.9 * timeout))
        limits = httpx.Limits(max_connections=connections)
        plain = {"accept-encoding": "identity"}  # a compressed response could expand to any size
        self._client = httpx.AsyncClient(
            headers=plain | (headers or {}), timeout=timeouts, limits=limits, follow_redirects=False
        )

    def post(self, address: str, content: bytes) -> HttpResponse:
        """Send a POST request with a JSON body; raise ConnectFailed, ResponseFailed or ForbiddenAddress if no complete
        response arrives within `timeout`."""
        return asyncio.run_coroutine_threadsafe(self._post(address, content), _event_loop()).result()

    def close(self) -> None:
        """Close the connections."""
        asyncio.run_coroutine_threadsafe(self._client.aclose(), _event_loop()).result()

    async def _post(self, address: str, content: bytes) -> HttpResponse:
        part = ""
        try:
            async with asyncio.timeout(self._timeout):
                await require_allowed(address)
                async with self._client.stream(
                    "POST", address, content=content, headers={"content-type": "application/json"}
                ) as response:
                    part = "complete "
                    return HttpResponse(response.status_code, response.headers, await _read_body(response))
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise ConnectFailed(_root_cause(error)) from None
        except (TimeoutError, httpx.TimeoutException):
            raise ResponseFailed(f"no {part}response in {self._timeout:g} s") from None
        except httpx.HTTPError as error:
            raise ResponseFailed(f"the connection broke ({error})") from None


async def _read_body(response: httpx.Response) -> bytes:
    if response.headers.get("content-encoding", "identity") != "identity":
        raise ResponseFailed("a compressed response, which was not requested")
    body = bytearray()
    async for part in response.aiter_raw():
        body += part
        if len(body) > MAX_RESPONSE_BYTES:
            raise ResponseFailed(f"a response of more than {MAX_RESPONSE_BYTES} bytes")
    return bytes(body)


def _root_cause(error: BaseException) -> str:
    """Return the operating system's message, the deepest in a chain of exceptions."""
    message = str(error)
    deepest = error
    while (cause := deepest.__cause__ or deepest.__context__) is not None:
        deepest = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else cause
        if isinstance(deepest, OSError) and deepest.strerror:
            message = deepest.strerror
    return message or type(error).__name__


async def require_allowed(address: str) -> None:
    """Raise ForbiddenAddress if a URL resolves to a link-local or metadata address."""
    parts = urlsplit(address)
    try:
        addresses = await asyncio.get_running_loop().getaddrinfo(
            parts.hostname, parts.port or 80, type=socket.SOCK_STREAM
        )
    except (OSError, UnicodeError):  # a proxy may resolve the name; otherwise connecting reports the error
        return
    for *_, address_info in addresses:
        if is_forbidden(str(address_info[0])):
            raise ForbiddenAddress(f"{parts.hostname} is {address_info[0]}, a link-local or metadata address")


def require_allowed_literal(address: str) -> None:
    """Raise ForbiddenAddress if a URL contains such an IP address in any notation; needs no name lookup."""
    host = urlsplit(address).hostname or ""
    try:
        literal = host if ":" in host else socket.inet_ntoa(socket.inet_aton(host))
    except OSError:  # a name
        return
    if is_forbidden(literal):
        raise ForbiddenAddress(f"{host} is a link-local or metadata address")


def is_forbidden(address: str) -> bool:
    """Return whether an IP address is link-local or a cloud metadata service."""
    ip: Any = ipaddress.ip_address(address.partition("%")[0])
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return ip.is_link_local or ip in METADATA_ADDRESSES


def is_transient(status: int) -> bool:
    """Whether a request that got this status may succeed when it is sent again."""
    return status in (408, 409, 425, 429) or status >= 500


def retry_after(headers: httpx.Headers) -> float:
    """Seconds of a Retry-After header, given as a number or as a date; 0 if there is none."""
    header = headers.get("retry-after", "")
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(header)
    except ValueError:
        return 0.0
    return max(0.0, (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() - datetime.now(UTC).timestamp())


def backoff(attempt: int, first: float) -> float:
    """Seconds before an attempt: up to `first` before the second one, twice as long before every further one, with
    jitter."""
    return min(MAX_PAUSE, first * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0) if attempt else 0.0


def replace_surrogates(text: str) -> str:
    """Replace lone surrogates, which JSON can carry but no database or file can store."""
    return _SURROGATES.sub("\ufffd", text)


def redact(secret: str, text: str) -> str:
    """Remove a secret and lone surrogates from text received from a server."""
    return replace_surrogates(text.replace(secret, "[key]") if secret else text)


def _event_loop() -> asyncio.AbstractEventLoop:
    """Return this process's event loop, which runs in a thread of its own so that timeouts can cancel reads. A fork has
    no threads of its parent and gets a loop of its own."""
    with _starting:
        process = os.getpid()
        if process not in _loops:
            _loops[process] = asyncio.new_event_loop()
            Thread(target=_loops[process].run_forever, name="towpath-http", daemon=True).start()
        return _loops[process]


_loops: dict[int, asyncio.AbstractEventLoop] = {}
_starting = Lock()
os.register_at_fork(before=_starting.acquire, after_in_parent=_starting.release, after_in_child=_starting.release)
