"""Weights between processes with GPUs: a NCCL group beside torch's own, and CUDA memory by handle."""

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def open_group(address: str, port: int, size: int, seconds: float, rank: int, device: torch.device) -> Any:
    """A process group of the trainer, rank 0, and the engine's workers; on CPUs it is one of gloo."""
    limit = timedelta(seconds=seconds)
    store = dist.TCPStore(address, port, size, is_master=rank == 0, timeout=limit, wait_for_workers=False)
    if device.type == "cuda":
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = limit
        return dist.ProcessGroupNCCL(store, rank, size, options)
    return dist.ProcessGroupGloo(store, rank, size, limit)


def broadcast(group: Any, buffer: Tensor) -> None:
    """Bytes of rank 0 on all ranks."""
    options = dist.BroadcastOptions()
    options.rootRank = 0
    group.broadcast([buffer], options).wait()
    if buffer.is_cuda:
        torch.cuda.synchronize(buffer.device)


def make_handle(buffer: Tensor) -> dict[str, Any]:
    """A CUDA buffer of bytes as plain data, for another process on the same GPU."""
    from torch.multiprocessing.reductions import reduce_tensor

    settings: Any = reduce_tensor(buffer)[1]
    _, size, stride, offset, _, _, _, handle, count, start, _, counter, slot, event, event_sync = settings
    return {
        "size": list(size),
        "stride": list(stride),
        "offset": offset,
        "handle": handle.hex(),
        "bytes": count,
        "start": start,
        "counter": counter.hex(),
        "slot": slot,
        "event": event.hex(),
        "event_sync": event_sync,
    }


def open_handle(source: dict[str, Any], device: torch.device) -> Tensor:
    """The CUDA buffer of another process."""
    from torch.multiprocessing.reductions import rebuild_cuda_tensor

    return rebuild_cuda_tensor(
        Tensor,
        torch.Size(source["size"]),
        tuple(source["stride"]),
        source["offset"],
        torch.storage.TypedStorage,
        torch.uint8,
        device.index or 0,
        bytes.fromhex(source["handle"]),
        source["bytes"],
        source["start"],
        False,
        bytes.fromhex(source["counter"]),
        source["slot"],
        bytes.fromhex(source["event"]),
        source["event_sync"],
    )
