"""Client address and scheme from trusted proxies."""

import ipaddress
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class ForwardedHeaders:
    """Applies `X-Forwarded-For` and `X-Forwarded-Proto` of trusted proxies only.

    It takes the last entry, which the proxy itself appended. Earlier entries are the client's claim: skipping those
    that look like proxies would let a client in the proxy's network claim any address.
    """

    def __init__(self, app: ASGIApp, named: Iterable[str]) -> None:
        self._app = app
        self._networks = [ipaddress.ip_network(one) for one in named]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and is_within((scope.get("client") or ("", 0))[0], self._networks):
            scope = {**scope, **_forwarded(Headers(scope=scope))}
        await self._app(scope, receive, send)


def is_within(host: str, networks: Iterable[Network]) -> bool:
    """Return whether an address is in one of the networks."""
    parsed = parse_address(host)
    return parsed is not None and any(parsed in network for network in networks)


def parse_address(text: str) -> Address | None:
    """Parse an address without brackets, port or zone, IPv4-mapped as IPv4; None if invalid."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        parsed = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (parsed.ipv4_mapped or parsed) if isinstance(parsed, ipaddress.IPv6Address) else parsed


def _forwarded(headers: Headers) -> dict[str, object]:
    """Return client and scheme of a proxied request; missing headers change nothing."""
    changes: dict[str, object] = {}
    client = ",".join(headers.getlist("x-forwarded-for")).split(",")[-1].strip()
    scheme = ",".join(headers.getlist("x-forwarded-proto")).split(",")[-1].strip().lower()
    if client:
        changes["client"] = (str(parse_address(client) or "unknown"), 0)
    if scheme in ("http", "https"):
        changes["scheme"] = scheme
    return changes
