"""Network interfaces of this host and their IPv4 addresses."""

import socket
import struct
from contextlib import suppress

from towpath.errors import ResourceError

SIOCGIFADDR = 0x8915


def interfaces() -> dict[str, str]:
    """The address of each interface that has one."""
    import fcntl

    addresses = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
        for _, name in socket.if_nameindex():
            with suppress(OSError):
                reply = fcntl.ioctl(query.fileno(), SIOCGIFADDR, struct.pack("256s", name[:15].encode()))
                addresses[name] = socket.inet_ntoa(reply[20:24])
    return addresses


def interface_with(address: str) -> str:
    """The name of the interface that has an address, or an empty text."""
    return next((name for name, own in interfaces().items() if own == address), "")


def address_of(interface: str) -> str:
    """The address of an interface that is named, or given by its address."""
    known = interfaces()
    if interface in known.values():
        return interface
    if interface in known:
        return known[interface]
    listed = ", ".join(f"{name} ({address})" for name, address in known.items())
    raise ResourceError(
        f"cluster.interface = {interface!r}: no such interface on {socket.gethostname()}",
        f"one of {listed}",
        "name the interface that the other hosts reach, or leave the key out",
    )


def address_towards(host: str) -> str:
    """This host's own address on the way to another one; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))
        except OSError as error:
            raise ResourceError(
                f"{host}: {error.strerror or error}",
                "the controller listens on the address from which it reaches the other hosts",
                "set cluster.interface to the name of the interface that they reach",
            ) from error
        return str(probe.getsockname()[0])
