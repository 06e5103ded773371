"""A cable between two network namespaces that delays each packet: `python tests/delayed_link.py A B SECONDS`. It works
where the kernel has no netem."""

import ctypes
import fcntl
import os
import select
import struct
import sys
import time
from collections import deque
from pathlib import Path

CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
TUN_WITHOUT_HEADER = 0x1001


def open_end(namespace: str) -> int:
    """The interface `cable` in a namespace, as a file of packets."""
    with Path("/run/netns", namespace).open() as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), namespace)
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH", b"cable", TUN_WITHOUT_HEADER))
    return end


def forward(ends: list[int], delay: float) -> None:
    """Carry packets until this process is ended; those for an end that is down are lost."""
    other = dict(zip(ends, ends[::-1], strict=True))
    waiting: deque[tuple[float, int, bytes]] = deque()
    while True:
        left = waiting[0][0] - time.monotonic() if waiting else None
        readable, _, _ = select.select(ends, [], [], None if left is None else max(0.0, left))
        for end in readable:
            waiting.append((time.monotonic() + delay, other[end], os.read(end, 65536)))
        while waiting and waiting[0][0] <= time.monotonic():
            _, end, packet = waiting.popleft()
            try:
                os.write(end, packet)
            except OSError:
                continue


if __name__ == "__main__":
    opened = [open_end(namespace) for namespace in sys.argv[1:3]]
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    forward(opened, float(sys.argv[3]))
