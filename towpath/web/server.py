"""`towpath serve`: the pages of one run, for its owner on this machine or for a team."""

import gc
import ipaddress
import logging
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import time

import uvicorn

from towpath.errors import ResourceError
from towpath.store import people
from towpath.store.store import Store
from towpath.web import monitor
from towpath.web.app import application
from towpath.web.auth import Authenticator
from towpath.web.connections import RateLimitedLog, bounded_protocol
from towpath.web.proxies import ForwardedHeaders

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    """What a team's server is reached by from outside: names, a certificate with its key, or the addresses of the
    proxy that has them.

    Only a proxy that is named here is believed when it says who asks and whether over TLS.

    """

    names: tuple[str, ...] = ()
    certificate: Path | None = None
    key: Path | None = None
    proxies: tuple[str, ...] = ()


def serve_run(
    run: Path,
    url: str | None,
    host: str,
    port: int,
    team: bool,
    say: Callable[[str], None],
    outside: NetworkOptions | None = None,
    assignments: Sequence[str] = (),
) -> None:
    """Serve the pages of a run until stopped; `url` names a database other than the run's own file. Starts no job."""
    outside = outside or NetworkOptions()
    require_private(host, team, outside)
    require_proxies(outside.proxies, team)
    if not run.is_dir():
        raise ResourceError(f"{run}: no such folder", "a run is a folder that `towpath new` made", "mend the path")
    with Store.open(url or run / "towpath.db") as store, open_socket(host, port) as place:
        store.require_writable()
        server, door = create_server(store, team, host, outside, run, assignments)
        scheme = "https" if outside.certificate else "http"
        at = f"{scheme}://{f'[{host}]' if ':' in host else host}:{place.getsockname()[1]}"
        say(startup_message(store, door, at, outside.proxies))
        run_until_stopped(server, place)


def create_server(
    store: Store,
    team: bool,
    host: str = "127.0.0.1",
    outside: NetworkOptions | None = None,
    run: Path | None = None,
    assignments: Sequence[str] = (),
) -> tuple[uvicorn.Server, Authenticator]:
    """A server that is ready to run, and its door; `run` is the folder that the monitor shows, its recipe laid over
    by `assignments`."""
    outside = outside or NetworkOptions()
    door = Authenticator(store, team)
    names = {*LOOPBACK, *outside.names} | ({host, socket.gethostname()} if team else set())
    app = application(store, door, names, addresses=team)
    monitor.begin(app, run, assignments)
    config = uvicorn.Config(
        ForwardedHeaders(app, outside.proxies) if outside.proxies else app,
        proxy_headers=False,
        http=bounded_protocol(outside.proxies),
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=65,
        lifespan="off",
        timeout_graceful_shutdown=10,
        h11_max_incomplete_event_size=16_384,
        ssl_certfile=outside.certificate,
        ssl_keyfile=outside.key,
    )
    for name in ("uvicorn.error", "asyncio", "towpath.web"):
        log = logging.getLogger(name)
        if not any(isinstance(known, RateLimitedLog) for known in log.filters):
            log.addFilter(RateLimitedLog())
    server = uvicorn.Server(config)
    app.state.stopping = lambda: server.should_exit  # a stream ends with the server, which waits for it
    return server, door


def run_until_stopped(server: uvicorn.Server, place: socket.socket) -> None:
    """Serve. Threads hand over quickly, so that a request does not wait for others' work; what was imported is not
    looked through for garbage."""
    sys.setswitchinterval(0.0005)
    gc.collect()
    gc.freeze()
    server.run(sockets=[place])


def startup_message(store: Store, door: Authenticator, at: str, proxies: Sequence[str] = ()) -> str:
    """What the terminal says: where the pages are, and the link that lets the first owner in."""
    if not door.team:
        return (
            f"open {at}/enter?token={door.link_token()}\nThe link is good once. Ctrl-C stops the server; nothing "
            "that was saved is lost."
        )
    hint = (
        ""
        if proxies or at.startswith("https")
        else "\nBehind a proxy, name it with --proxy ADDRESS: without it everyone counts as one address."
    )
    ends = f"Ctrl-C stops the server; nothing that was saved is lost.{hint}"
    if any(
        account.role == "owner" and account.active and account.password for account in store.read(people.list_accounts)
    ):
        return f"open {at} and sign in. {ends}"
    token = store.submit_write(people.create_invitation, "owner", "towpath serve", time()).result()
    return f"open {at}/join/{token} to make the owner's account.\nThe link is good once. {ends}"


def open_socket(host: str, port: int) -> socket.socket:
    """A socket at a place that is free."""
    try:
        place = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048
        )
    except OSError as error:
        raise ResourceError(
            f"{host}:{port}: {error.strerror}", "the pages need a port of their own", "give another with --port"
        ) from error
    # Inherited by every connection; without it the second packet of an answer waits 40 ms for the first to be
    # acknowledged.
    place.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return place


def require_private(host: str, team: bool, outside: NetworkOptions) -> None:
    """Alone the pages stay on this machine; a team's leave it only encrypted."""
    if is_loopback(host) or (team and outside.certificate):
        return
    if not team:
        raise ResourceError(
            f"--host {host}",
            "without accounts the pages are for this machine alone",
            "leave --host out, or give --team",
        )
    fix = "give a certificate and its key, or serve at 127.0.0.1 behind a proxy that has them"
    raise ResourceError(f"--host {host}", "passwords do not travel in the clear", fix)


def require_proxies(proxies: Sequence[str], team: bool) -> None:
    """A proxy is named by its address or network, for a team."""
    for proxy in proxies:
        try:
            ipaddress.ip_network(proxy)
        except ValueError:
            rule = "a proxy is named by its address, or by the network it is in"
            raise ResourceError(
                f"--proxy {proxy}", rule, "give what this server sees, such as 127.0.0.1 or 10.0.0.0/24"
            ) from None
    if proxies and not team:
        raise ResourceError(
            f"--proxy {proxies[0]}",
            "without accounts the pages are for this machine alone",
            "leave --proxy out, or give --team",
        )


def is_loopback(host: str) -> bool:
    """Whether a host is this machine and no other can reach it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
