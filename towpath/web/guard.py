"""ASGI middleware in front of all routes: checks host, origin, size and sender of a request, and sets response
headers."""

import asyncio
import ipaddress
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from towpath.errors import TowpathError
from towpath.web import error_responses
from towpath.web.limits import WriteRate

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action "
    "'self'; base-uri 'none';"
    " frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=()",
}
SAFE_METHODS = ("GET", "HEAD")
MAX_BODY = 1_000_000
"""Bytes of a request body from a signed-in account."""
MAX_ANONYMOUS_BODY = 16_000
"""Bytes of a request body from anyone: a name and a password."""
BODY_SECONDS = 30.0
"""Time for a request body to arrive."""
OPEN_PATHS = ("/sign-in", "/sign-out", "/join/", "/reset/")
"""Paths that accept a request body without a session."""

_PORT = re.compile(r":\d+\Z")


class BodyTooLarge(Exception):
    """The request body exceeds its limit."""


class Guard:
    """Refuses foreign hosts and origins, and bodies that are too large, too slow or unauthenticated; sets response
    headers."""

    def __init__(self, app: ASGIApp, names: Iterable[str], addresses: bool) -> None:
        self._app = app
        self._names = {name.lower() for name in names}
        self._addresses = addresses
        self._rate = WriteRate()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                host = _PORT.sub("", Headers(scope=scope).get("host", ""))
                # on localhost it would apply to every other server of the machine
                if scope["scheme"] == "https" and host != "localhost":
                    headers.setdefault("strict-transport-security", f"max-age={365 * 86400}")
                headers["cache-control"] = "no-cache" if scope["path"].startswith("/static/") else "no-store"
            await send(message)

        try:
            response, receive = await self._before(scope, receive)
            await (response or self._app)(scope, receive, with_headers)
        except Exception as error:  # server boundary: any error is logged and answered with the same headers
            if started:
                raise
            await error_responses.internal_error(Request(scope), error)(scope, receive, with_headers)

    async def _before(self, scope: Scope, receive: Receive) -> tuple[Response | None, Receive]:
        """Return a refusal, or the body of an accepted request."""
        headers = Headers(scope=scope)
        method = scope["method"]
        if foreign := self._foreign(method, headers):
            return PlainTextResponse(foreign[1], foreign[0], {"connection": "close"}), receive
        request = Request(scope)
        is_open = scope["path"].startswith(OPEN_PATHS)
        largest = MAX_ANONYMOUS_BODY if is_open else MAX_BODY
        if status := malformed_status(scope, headers, largest):
            return error_responses.early_refusal(request, status), receive
        if method in SAFE_METHODS:
            return None, receive
        if not is_open:
            try:
                account = await scope["app"].state.auth.session_account(request)
            except TowpathError as error:
                return error_responses.unavailable(request, error), receive
            if account is None:
                response = error_responses.sign_in_response(request)
                response.headers["connection"] = "close"
                return response, receive
            if wait := self._rate.take(account.name):
                message = "This account has sent too many requests. Try again in a moment."
                return error_responses.rate_limited(request, error_responses.RateLimited(message, wait)), receive
        return await _read_whole_body(request, receive, largest)

    def _foreign(self, method: str, headers: Headers) -> tuple[int, str] | None:
        host = headers.get("host", "")
        origin = headers.get("origin")
        if not self._known(host):
            return 421, f"This server does not answer for {host!r}."
        if origin is None and method not in SAFE_METHODS:
            return 403, "A change must come from a page of this server: the Origin header is missing."
        if origin is not None and origin_host(origin) != host.lower():
            return 403, f"This request came from {origin!r}, not from a page of this server."
        return None

    def _known(self, host: str) -> bool:
        """Return whether a host is accepted: a known name, or for a team an IP address, which DNS cannot redirect."""
        name = _PORT.sub("", host).strip("[]").lower()
        if name in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return self._addresses


def origin_host(origin: str) -> str:
    """Return host and port of an origin; empty if it is invalid."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def malformed_status(scope: Scope, headers: Headers, largest: int) -> int:
    """Return the status for a malformed request, or 0. A body must have exactly one Content-Length and no other
    framing."""
    if "\x00" in scope["path"] or b"%00" in scope.get("query_string", b""):
        return 400
    if "transfer-encoding" in headers or len(headers.getlist("content-length")) > 1:
        return 411
    length = headers.get("content-length")
    if length is None:
        return 0 if scope["method"] in SAFE_METHODS else 411
    if not (length.isascii() and length.isdecimal()):
        return 400
    return 413 if len(length) > 12 or int(length) > largest else 0


async def _read_whole_body(request: Request, receive: Receive, largest: int) -> tuple[Response | None, Receive]:
    """Read the whole body within size and time limits, for the route to receive at once."""
    try:
        body = await asyncio.wait_for(_read_chunks(receive, largest), BODY_SECONDS)
    except TimeoutError:
        return error_responses.early_refusal(request, 408), receive
    except BodyTooLarge:
        return error_responses.early_refusal(request, 413), receive
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return messages.pop() if messages else await receive()

    return None, replayed


async def _read_chunks(receive: Receive, largest: int) -> bytes:
    parts = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b"".join(parts)
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > largest:
            raise BodyTooLarge
        if not message.get("more_body", False):
            return b"".join(parts)
