"""The process that forks workers on another host: `python -m towpath.runtime.agent`, with the controller's address
and the run's token in its environment.

It shows its versions before it imports anything large, connects again after a broken connection, and ends with the
run: exit code 0 where the controller says so, 1 where the controller is lost.
"""

import math
import os
import signal
import socket
import sys
import time
from typing import Any

from towpath.errors import ResourceError
from towpath.runtime import rendezvous
from towpath.runtime.handshake import JoinRefused, call
from towpath.runtime.versions import facts
from towpath.terminal import print_status

RETRY_SECONDS = 0.5


def join(wait: float) -> tuple[socket.socket, str, str]:
    """A connection to the controller, its address and the token; tried again and again for a time."""
    deadline = time.monotonic() + wait
    local_rank = int(os.environ.get(rendezvous.LOCAL_RANK, "0"))
    hello = {"agent": facts() | {"local_rank": local_rank}, "slot": int(os.environ[rendezvous.SLOT])}
    reason = "nothing was published"
    while True:
        try:
            address, token = rendezvous.read()
            # the file may be one that an earlier run has left
            return call(address, token, hello, math.inf), address, token
        except JoinRefused:
            raise
        except (OSError, ValueError, KeyError) as error:
            reason = f"{os.environ.get(rendezvous.FILE) or os.environ.get(rendezvous.ADDRESS)}: {error}"
        if time.monotonic() > deadline:
            raise ConnectionError(reason)
        time.sleep(RETRY_SECONDS)


def main() -> None:
    """Serve one run."""
    from towpath.runtime import worker

    if os.environ.get(rendezvous.CHILD):
        worker.die_with_parent()
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # CUDA must not be in use before a fork
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # the controller gets it, too, and decides when a run stops
    wait = float(os.environ.get(rendezvous.WAIT, "300"))
    code = 1
    while True:
        try:
            connection, address, token = join(wait)
        except JoinRefused:
            break  # the controller has said why, once for all hosts
        except ConnectionError as error:
            where = f"{socket.gethostname()}, task {os.environ[rendezvous.SLOT]}"
            lost = ResourceError(
                f"{where}: no connection to the run's controller within {wait:g} s: {error}",
                "every host reaches the controller, and knows its token",
                "set cluster.interface to the interface of the controller's host that other hosts reach",
            )
            print_status(f"error: {lost}")
            break
        if _serve(connection, address, token):
            code = 0
            break
        if _is_gone(address):
            break
    sys.stderr.flush()
    os._exit(code)


def _serve(connection: socket.socket, address: str, token: str) -> bool:
    """Fork workers until the connection ends; whether the controller has said that the run is over."""
    from towpath.runtime import worker
    from towpath.runtime.channel import Channel

    worker.import_everything()
    channel = Channel(connection, 60.0)

    def connect(request: Any) -> socket.socket:
        return call(address, token, {"worker": request["worker"], "rank": request["rank"]})

    import torch

    channel.send({"ready": {"pid": os.getpid(), "gpus": torch.cuda.device_count()}})
    return worker.serve_forks(channel, connection, connect)


def _is_gone(address: str) -> bool:
    """Whether the controller's host is there and nothing listens: its process has ended."""
    host, _, port = address.rpartition(":")
    for _ in range(3):
        try:
            socket.create_connection((host, int(port)), 5.0).close()
            return False
        except ConnectionRefusedError:
            time.sleep(RETRY_SECONDS)
        except OSError:
            return False  # out of reach for now
    return True


if __name__ == "__main__":
    main()
