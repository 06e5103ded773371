"""A worker process: it serves the verbs of the runtime contract over a connection to its controller.

`python -m towpath.runtime.worker FD` imports everything once and then forks a worker for each request on the socket
FD, so that a group starts, and starts again, in a fraction of a second. Workers end with their controller.
"""

import ctypes
import faulthandler
import importlib
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

from towpath.runtime.worker_states import Usage

BEAT_SECONDS = 0.5
TICK_SECONDS = 0.1
STACK_LINES = 8
PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG


class Abandoned(Exception):
    """The controller no longer waits for what is computed: its run is being stopped."""


class Worker:
    """Serves one controller until its connection ends."""

    def __init__(self, channel: Any, rank: int, world: int) -> None:
        self.channel = channel
        self.rank = rank
        self.world = world
        self.runtimes: dict[int, Any] = {}
        self.handles: dict[int, dict[int, Any]] = {}
        """What each runtime keeps for its controller, by number; it goes with the runtime."""
        self.verb = ""
        """What is being computed, empty between two verbs."""
        self.request = 0
        """The controller's number of it, which the answers have, too."""
        self.started = 0.0
        self._next_handle = 0
        self._units = 0
        self._noted = 0.0
        self._main = threading.main_thread().ident
        self._parent = os.getppid()
        self.device: Any = None
        self.usage = Usage()
        """Of all its runtimes."""

    def serve(self) -> None:
        """Answer messages in their order; ends when the controller does."""
        from towpath.runtime.channel import ChannelClosed

        threading.Thread(target=self._beat, daemon=True).start()
        while True:
            try:
                select.select([self.channel], [], [])
                message = self.channel.receive()
            except ChannelClosed:
                return
            self.verb = message["verb"]
            self.request = message["request"]
            self.started = time.monotonic()
            try:
                self._fault(f"begin-{self._name(message)}")
                reply = {"reply": getattr(self, f"do_{self.verb}")(**message["arguments"])}
            except BaseException as error:
                reply = {"error": _describe(error)}
            self._fault(f"end-{self._name(message)}")
            seconds = time.monotonic() - self.started
            self.verb = ""
            with suppress(ChannelClosed):
                facts = {"request": self.request, "seconds": seconds, "usage": asdict(self.usage)}
                self.channel.send(reply | facts)

    def _name(self, message: Mapping[str, Any]) -> str:
        """The method of a runtime that a message is about, or else its verb."""
        return message["arguments"].get("method") or message["arguments"].get("function", self.verb).rpartition(":")[2]

    def _fault(self, point: str) -> None:
        from towpath.runtime.worker_faults import worker_fault

        worker_fault(self.rank, point, self.channel.fileno())

    def _beat(self) -> None:
        """Tell the controller, while a verb is computed, that this process lives, and where it is."""
        from towpath.runtime.channel import ChannelClosed
        from towpath.runtime.process import resident_bytes

        while True:
            time.sleep(BEAT_SECONDS)
            if not self.verb:
                if os.getppid() != self._parent:
                    os._exit(1)
                continue
            frame = sys._current_frames().get(self._main or 0)
            stack = [line.rstrip() for line in traceback.format_stack(frame)[-STACK_LINES:]] if frame else []
            try:
                self.channel.send({"beat": {"verb": self.verb, "stack": stack, "memory": resident_bytes()}})
            except ChannelClosed:
                os._exit(1)

    def tick(self, units: int) -> None:
        """Progress of the present verb, a few times a second; Abandoned where the controller wants something else."""
        self._units += units
        now = time.monotonic()
        if now - self._noted >= TICK_SECONDS:
            if select.select([self.channel], [], [], 0)[0]:
                raise Abandoned(f"{self.verb} was interrupted")
            self.channel.send({"tick": self._units, "request": self.request})
            self._units = 0
            self._noted = now

    # Verbs on the process

    def do_connect(
        self, backend: str, address: str, port: int, prefix: str, device: str, timeout: float
    ) -> tuple[str, int]:
        """Meet the other workers; this host and process."""
        import torch
        import torch.distributed as dist

        self.device = torch.device(device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        limit = timedelta(seconds=timeout)
        store: Any = dist.HashStore() if self.world == 1 else dist.TCPStore(address, port, None, False, limit)
        dist.init_process_group(
            backend, store=dist.PrefixStore(prefix, store), rank=self.rank, world_size=self.world, timeout=limit
        )
        total = torch.ones(64 * 256, device=self.device)
        dist.all_reduce(total)
        assert float(total.sum()) == total.numel() * self.world
        return socket.gethostname(), os.getpid()

    def do_probe(self, folder: Path, name: str, needed: Path) -> dict[str, Any]:
        """What this host sees of the run's folder, and whether a folder is here; then 64 KiB added over all workers."""
        import torch
        import torch.distributed as dist

        file = folder / name
        content = file.read_text(encoding="ascii") if file.is_file() else ""
        if content:
            (folder / f"{name}-{self.rank}").write_text(content, encoding="ascii")
        total = torch.ones(64 * 256, device=self.device)
        dist.all_reduce(total)
        assert float(total.sum()) == total.numel() * self.world
        return {"content": content, "needed": needed.is_dir()}

    def do_launch(self, runtime: int, model: Any, settings: Mapping[str, Any]) -> None:
        """Make the runtime that a stage works with."""
        import torch

        from towpath.runtime.launch import local
        from towpath.runtime.replica import Replica
        from towpath.runtime.sharded import Sharded

        sys.path += [entry for entry in settings["path"] if entry not in sys.path]
        kind = Sharded if settings["sharded"] else Replica
        dtype = getattr(torch, settings["dtype"])
        self.runtimes[runtime] = local(
            kind, model, settings["pad"], settings["packing"], settings["training"], dtype, self.device
        )
        self.runtimes[runtime].usage = self.usage
        self.runtimes[runtime].device_share = settings["device_share"]

    def do_drop(self, runtimes: list[int]) -> None:
        """Let go of runtimes."""
        from towpath.runtime.process import release_memory

        for runtime in runtimes:
            self.runtimes.pop(runtime, None)
            self.handles.pop(runtime, None)
        release_memory()

    def do_capacity(self) -> float:
        """Bytes of this worker's GPU; on a CPU no limit by which weights would be divided."""
        import torch

        if self.device.type != "cuda":
            return float("inf")
        return float(torch.cuda.get_device_properties(self.device).total_memory)

    def do_memory(self) -> float:
        """Bytes in use."""
        from towpath.runtime.process import memory_in_use

        return memory_in_use(self.device)

    # Verbs on a runtime

    def do_call(self, runtime: int, method: str, arguments: Mapping[str, Any], free: list[int]) -> Any:
        """A method of the runtime contract. Handles go out as numbers and come in as numbers."""
        handles = self.handles.setdefault(runtime, {})
        for number in free:
            handles.pop(number, None)
        replica = self.runtimes[runtime]
        arguments = {name: _with_handles(x, handles) for name, x in arguments.items()}
        if method == "forward_backward":
            arguments |= {"count": self.tick}
        result = getattr(replica, method)(**arguments)
        if method in ("snapshot", "read_state"):
            return None if result is None else self._number(result, handles)
        return self._without_handles(result, handles)

    def do_run(self, runtime: int, function: str, arguments: Mapping[str, Any]) -> Any:
        """`package.module:function` with the runtime, a counter of progress, and plain data."""
        module, _, name = function.partition(":")
        called: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return called(self.runtimes[runtime], self.tick, **arguments)

    def _without_handles(self, x: Any, handles: dict[int, Any]) -> Any:
        from dataclasses import replace

        from towpath.algos.contract import Outputs
        from towpath.data.batch import Batch

        if isinstance(x, Outputs) and x.features is not None:
            return replace(x, features=self._number(x.features, handles))
        if isinstance(x, Batch):  # the rows are known where they came from
            return {name: self._number(handle, handles) for name, handle in x.handles.items()}
        return x

    def _number(self, handle: Any, handles: dict[int, Any]) -> int:
        for number, known in handles.items():
            if known is handle:
                return number
        self._next_handle += 1
        handles[self._next_handle] = handle
        return self._next_handle


def _with_handles(x: Any, handles: Mapping[int, Any]) -> Any:
    from dataclasses import replace

    from towpath.data.batch import Batch

    if isinstance(x, Batch):
        return replace(x, handles={name: handles[number] for name, number in x.handles.items()})
    if isinstance(x, dict) and "handle" in x:
        return handles[x["handle"]]
    return x


def _describe(error: BaseException) -> dict[str, Any]:
    """An exception as plain data."""
    from towpath.errors import TowpathError

    parts = [error.value, error.rule, error.fix] if isinstance(error, TowpathError) else None
    lines = traceback.format_exception(error)
    return {
        "type": type(error).__name__,
        "text": str(error),
        "parts": parts,
        "errno": getattr(error, "errno", None),
        "traceback": "".join(lines),
    }


def die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)


def _work(request: Mapping[str, Any], connect: Callable[[Mapping[str, Any]], socket.socket]) -> None:
    """The life of a forked worker."""
    die_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # the controller decides when a run stops
    connection = connect(request)
    on_one_host = connection.family == socket.AF_UNIX
    if on_one_host:  # another host has an environment of its own
        os.environ.clear()
    os.environ.update(request["environment"] | {"OMP_NUM_THREADS": str(request["threads"])})
    _name_interface("127.0.0.1" if on_one_host else connection.getsockname()[0])
    from towpath import progress
    from towpath.runtime.channel import Channel
    from towpath.runtime.process import exempt_imports_from_gc, prepare_process

    prepare_process()
    exempt_imports_from_gc()
    channel = Channel(connection, request["timeout"])
    progress.redirect(lambda line: channel.send({"note": line}))
    Worker(channel, request["rank"], request["world"]).serve()


def _name_interface(address: str) -> None:
    """Collectives go where the controller is reached, unless the host says otherwise: a host's name, which they would
    take, may stand for another network or for none."""
    from towpath.runtime.interfaces import interface_with

    name = interface_with(address)
    if name:
        for library in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", name)


def _kill(pids: set[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def import_everything() -> None:
    """The libraries of a worker, before any of their threads exist."""
    from towpath.progress import prepare_libraries

    prepare_libraries()
    for name in ("towpath.runtime.sharded", "towpath.runtime.launch", "towpath.rollout.local", "towpath.rollout.pool"):
        importlib.import_module(name)


def serve_forks(channel: Any, control: socket.socket, connect: Callable[[Mapping[str, Any]], socket.socket]) -> bool:
    """Fork workers as they are asked for, until the connection ends; whether the controller has said that the run is
    over. Workers of a lost controller are ended."""
    from towpath.runtime.channel import ChannelClosed

    children: set[int] = set()
    while True:
        readable, _, _ = select.select([channel], [], [], 0.2)
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                children.discard(ended[0])
                with suppress(ChannelClosed):
                    channel.send({"ended": ended[0], "status": ended[1]})
        if not readable:
            continue
        try:
            message = channel.receive()
            if "end" in message:
                _kill(children)
                return True
            if "ping" in message:
                channel.send({"pong": True})
            elif "kill" in message:
                _kill(children & set(message["kill"]))
                channel.send({"killed": True})
            else:
                children.add(pid := _fork(message["fork"], control, connect))
                channel.send({"forked": pid})
        except ChannelClosed:
            _kill(children)
            return False


def _fork(
    request: Mapping[str, Any], control: socket.socket, connect: Callable[[Mapping[str, Any]], socket.socket]
) -> int:
    """A new worker's process."""
    from towpath.runtime.channel import ChannelClosed

    fds: list[int] = []
    if control.family == socket.AF_UNIX:  # its connection comes with the request
        try:
            _, fds, _, _ = socket.recv_fds(control, 1, 1)
        except OSError as error:
            raise ChannelClosed(str(error)) from error
    pid = os.fork()
    if pid == 0:
        control.close()
        try:
            _work(request, lambda request: socket.socket(fileno=fds[0]) if fds else connect(request))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    for fd in fds:
        os.close(fd)
    return pid


def main() -> None:
    """Fork workers of this host as they are asked for; end with the controller."""
    from towpath.runtime.channel import Channel

    faulthandler.enable()
    die_with_parent()
    connection = socket.socket(fileno=int(sys.argv[1]))
    channel = Channel(connection, 60.0)
    import_everything()
    channel.send({"ready": os.getpid()})

    def connect(request: Mapping[str, Any]) -> socket.socket:
        raise ConnectionError("a worker of this host has its connection from the controller")

    serve_forks(channel, connection, connect)
    os._exit(0)


if __name__ == "__main__":
    main()
