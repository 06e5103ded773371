"""The first thing every request meets: which host it came for, which page sent it, and the headers that every answer carries."""

import ipaddress
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none';"
    " frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY, "x-content-type-options": "nosniff", "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin", "cross-origin-resource-policy": "same-origin", "permissions-policy": "camera=(), microphone=()",
}  # fmt: skip
SAFE = ("GET", "HEAD")
LARGEST = 1_000_000  # bytes of a request

_PORT = re.compile(r":\d+\Z")


class Guard:
    """Refuses foreign hosts and origins on every method, and requests that are too large; adds the headers."""

    def __init__(self, app: ASGIApp, names: Iterable[str], addresses: bool) -> None:
        self._app = app
        self._names = {name.lower() for name in names}
        self._addresses = addresses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                host = _PORT.sub("", Headers(scope=scope).get("host", ""))
                if scope["scheme"] == "https" and host != "localhost":  # there it would bind every other server of the machine
                    headers.setdefault("strict-transport-security", f"max-age={365 * 86400}")
                headers["cache-control"] = "no-cache" if scope["path"].startswith("/static/") else "no-store"
            await send(message)

        refusal = self._refusal(scope["method"], Headers(scope=scope))
        await (PlainTextResponse(refusal[1], refusal[0]) if refusal else self._app)(scope, receive, told)

    def _refusal(self, method: str, headers: Headers) -> tuple[int, str] | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._known(host):
            return 421, f"This server does not answer for {host!r}."
        if origin is None and method not in SAFE:
            return 403, "A change must come from a page of this server: no Origin was sent."
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return 403, f"This request came from {origin!r}, not from a page of this server."
        length = headers.get("content-length", "0")
        if method not in SAFE and ("content-length" not in headers or not length.isdecimal() or int(length) > LARGEST):
            return 413, f"A request has a stated length of at most {LARGEST} bytes."
        return None

    def _known(self, host: str) -> bool:
        """A name that leads here; or, for a team, an address in numbers, which no foreign name server can point elsewhere."""
        name = _PORT.sub("", host).strip("[]").lower()
        if name in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return self._addresses
