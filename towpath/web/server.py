"""`towpath serve`: the web server of one run, for its owner on this machine or for a team."""

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
from towpath.web.application import application
from towpath.web.auth import Authenticator
from towpath.web.connections import RateLimitedLog, bounded_protocol
from towpath.web.proxies import ForwardedHeaders

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    """How the server is reached: address and port, host names, a TLS certificate with its key, and trusted proxies.

    Only a trusted proxy's client address and scheme are used.
    """

    names: tuple[str, ...] = ()
    certificate: Path | None = None
    key: Path | None = None
    proxies: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8000


def serve_run(
    run: Path,
    url: str | None,
    team: bool,
    network: NetworkOptions,
    print_line: Callable[[str], None],
    overrides: Sequence[str] = (),
) -> None:
    """Serve a run's pages until stopped; `url` is a database other than the run's own file. Starts no stage."""
    host = network.host
    require_private(host, team, network)
    require_proxies(network.proxies, team)
    if not run.is_dir():
        raise ResourceError(f"{run}: no such folder", "a run is a folder created by `towpath new`", "correct the path")
    with Store.open(url or run / "towpath.db") as store, open_socket(host, network.port) as listener:
        store.require_writable()
        server, auth = create_server(store, team, network, run, overrides)
        scheme = "https" if network.certificate else "http"
        address = f"{scheme}://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        print_line(startup_message(store, auth, address, network.proxies))
        run_until_stopped(server, listener)


def create_server(
    store: Store,
    team: bool,
    network: NetworkOptions | None = None,
    run: Path | None = None,
    overrides: Sequence[str] = (),
) -> tuple[uvicorn.Server, Authenticator]:
    """Return a server and its authenticator; `run` is the folder that the monitor shows, with recipe `overrides`."""
    network = network or NetworkOptions()
    auth = Authenticator(store, team)
    names = {*LOOPBACK, *network.names} | ({network.host, socket.gethostname()} if team else set())
    app = application(store, auth, names, addresses=team)
    monitor.open_run(app, run, overrides)
    config = uvicorn.Config(
        ForwardedHeaders(app, network.proxies) if network.proxies else app,
        proxy_headers=False,
        http=bounded_protocol(network.proxies),
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=65,
        lifespan="off",
        timeout_graceful_shutdown=10,
        h11_max_incomplete_event_size=16_384,
        ssl_certfile=network.certificate,
        ssl_keyfile=network.key,
    )
    for name in ("uvicorn.error", "asyncio", "towpath.web"):
        log = logging.getLogger(name)
        if not any(isinstance(known, RateLimitedLog) for known in log.filters):
            log.addFilter(RateLimitedLog())
    server = uvicorn.Server(config)
    app.state.stopping = lambda: server.should_exit  # streams end with the server, which waits for them
    return server, auth


def run_until_stopped(server: uvicorn.Server, listener: socket.socket) -> None:
    """Run the server. A short thread switch interval keeps requests responsive; imported objects are excluded from
    garbage collection."""
    sys.setswitchinterval(0.0005)
    gc.collect()
    gc.freeze()
    server.run(sockets=[listener])


def startup_message(store: Store, auth: Authenticator, at: str, proxies: Sequence[str] = ()) -> str:
    """Return the message with the pages' address and the link that signs the first owner in."""
    if not auth.team:
        link = f"{at}/enter?token={auth.link_token()}"
        return f"open {link}\nThe link works once. Ctrl-C stops the server; saved data is kept."
    hint = (
        ""
        if proxies or at.startswith("https")
        else "\nBehind a proxy, set --proxy ADDRESS: without it all clients count as one address."
    )
    ends = f"Ctrl-C stops the server; saved data is kept.{hint}"
    if any(
        account.role == "owner" and account.active and account.password for account in store.read(people.list_accounts)
    ):
        return f"open {at} and sign in. {ends}"
    token = store.submit_write(people.create_invitation, "owner", "towpath serve", time()).result()
    return f"open {at}/join/{token} to create the owner's account.\nThe link works once. {ends}"


def open_socket(host: str, port: int) -> socket.socket:
    """Open a listening socket."""
    try:
        listener = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048
        )
    except OSError as error:
        raise ResourceError(
            f"{host}:{port}: {error.strerror}", "the server needs a free port", "choose another with --port"
        ) from error
    # Inherited by every connection; without it the second packet of a response waits 40 ms for an acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def require_private(host: str, team: bool, network: NetworkOptions) -> None:
    """Require loopback without accounts, and TLS for a team beyond loopback."""
    if is_loopback(host) or (team and network.certificate):
        return
    if not team:
        raise ResourceError(
            f"--host {host}",
            "without accounts the server is reachable from this machine only",
            "omit --host, or add --team",
        )
    fix = "set --certificate and --key, or serve at 127.0.0.1 behind a proxy that terminates TLS"
    raise ResourceError(f"--host {host}", "passwords must be encrypted in transit", fix)


def require_proxies(proxies: Sequence[str], team: bool) -> None:
    """Validate the addresses of trusted proxies."""
    for proxy in proxies:
        try:
            ipaddress.ip_network(proxy)
        except ValueError:
            rule = "a proxy is given by its address or network"
            raise ResourceError(
                f"--proxy {proxy}", rule, "use an address or network, such as 127.0.0.1 or 10.0.0.0/24"
            ) from None
    if proxies and not team:
        raise ResourceError(
            f"--proxy {proxies[0]}",
            "without accounts the server is reachable from this machine only",
            "omit --proxy, or add --team",
        )


def is_loopback(host: str) -> bool:
    """Return whether a host is reachable from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
