"""How weights reach an engine: the same GPU's memory, NCCL between GPUs, or a file in shared memory."""

import mmap
import os
import socket
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from towpath.rollout.vllm_process import network

SHARED_MEMORY = Path("/dev/shm")


class Transport(Protocol):
    """A buffer of bytes here that the engine's workers can read."""

    name: str

    def connect(self) -> dict[str, Any]:
        """What the workers need to connect."""
        ...

    def accept(self) -> None:
        """Complete the connection, while the workers connect."""
        ...

    def buffer(self, size: int) -> Tensor:
        """Room for so many bytes."""
        ...

    def source(self, size: int) -> dict[str, Any]:
        """Where a worker finds the first bytes of the buffer."""
        ...

    def send(self, size: int) -> None:
        """Send them, while the workers receive."""
        ...

    def release(self) -> None:
        """Free the buffer."""
        ...


class SharedMemory:
    """A file in /dev/shm, removed after each update: for CPUs, and where nothing faster works."""

    name = "shm"

    def __init__(self, folder: Path) -> None:
        self.folder = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else folder
        self.path: Path | None = None
        self.mapped: mmap.mmap | None = None
        self.bytes = torch.zeros(0, dtype=torch.uint8)

    def connect(self) -> dict[str, Any]:
        return {}

    def accept(self) -> None:
        pass

    def buffer(self, size: int) -> Tensor:
        if len(self.bytes) < size:
            self.release()
            descriptor, path = tempfile.mkstemp(prefix=f"towpath-{os.getpid()}-", suffix=".weights", dir=self.folder)
            self.path = Path(path)
            try:
                os.truncate(descriptor, size)
                self.mapped = mmap.mmap(descriptor, size)
            finally:
                os.close(descriptor)
            self.bytes = torch.frombuffer(self.mapped, dtype=torch.uint8)
        return self.bytes[:size]

    def source(self, size: int) -> dict[str, Any]:
        return {"file": str(self.path)}

    def send(self, size: int) -> None:
        pass

    def release(self) -> None:
        self.bytes = torch.zeros(0, dtype=torch.uint8)
        self.mapped = None
        if self.path is not None:
            with suppress(FileNotFoundError):
                self.path.unlink()
            self.path = None


class SameGpu:
    """CUDA memory of this process, by handle: for an engine on the same GPU."""

    name = "ipc"

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes = torch.zeros(0, dtype=torch.uint8)
        self.handle: dict[str, Any] = {}

    def connect(self) -> dict[str, Any]:
        return {}

    def accept(self) -> None:
        pass

    def buffer(self, size: int) -> Tensor:
        if len(self.bytes) < size:
            self.bytes = torch.empty(size, dtype=torch.uint8, device=self.device)
            self.handle = network.make_handle(self.bytes)
        return self.bytes[:size]

    def source(self, size: int) -> dict[str, Any]:
        torch.cuda.synchronize(self.device)
        return self.handle

    def send(self, size: int) -> None:
        pass

    def release(self) -> None:
        self.bytes = torch.zeros(0, dtype=torch.uint8)
        torch.cuda.ipc_collect()


class Nccl:
    """A broadcast from this process to the engine's workers: for engines on other GPUs. On CPUs it is gloo's."""

    name = "nccl"

    def __init__(self, device: torch.device, workers: int, seconds: float) -> None:
        self.device = device
        self.workers = workers
        self.seconds = seconds
        self.group: Any = None
        self.bytes = torch.zeros(0, dtype=torch.uint8)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]

    def connect(self) -> dict[str, Any]:
        return {"address": "127.0.0.1", "port": self.port, "size": self.workers + 1, "seconds": self.seconds}

    def accept(self) -> None:
        self.group = network.open_group(**self.connect(), rank=0, device=self.device)

    def buffer(self, size: int) -> Tensor:
        if len(self.bytes) < size:
            self.bytes = torch.empty(size, dtype=torch.uint8, device=self.device)
        return self.bytes[:size]

    def source(self, size: int) -> dict[str, Any]:
        return {}

    def send(self, size: int) -> None:
        network.broadcast(self.group, self.bytes[:size])

    def release(self) -> None:
        self.bytes = torch.zeros(0, dtype=torch.uint8)


def candidates(
    device: torch.device, workers: list[dict[str, Any]], folder: Path, seconds: float, wanted: str = "auto"
) -> list[Transport]:
    """Transports to try, the fastest first."""
    here = os.uname().nodename
    on_gpus = device.type == "cuda" and all(worker["type"] == "cuda" for worker in workers)
    transports: list[Transport] = []
    if on_gpus and wanted in ("auto", "ipc"):
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        if all(worker["uuid"] == uuid and worker["host"] == here for worker in workers):
            transports.append(SameGpu(device))
    if (on_gpus and wanted == "auto") or wanted == "nccl":
        transports.append(Nccl(device, len(workers), seconds))
    if wanted in ("auto", "shm") and all(worker["host"] == here for worker in workers):
        transports.append(SharedMemory(folder))
    return transports
