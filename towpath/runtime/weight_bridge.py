"""Weights of a role from the workers that train to those that only sample: the first of the former broadcasts, between
GPUs where there are GPUs, one tensor after the other; of a role with LoRA the adapter alone.
"""

import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from towpath.errors import TrainingError, WorkerLost
from towpath.models.quantized import whole
from towpath.runtime.background import Background
from towpath.runtime.group import Group

LOSS_SECONDS = 2.0
"""Time in which the loss of a worker is known after its connections have ended."""


class WeightBridge:
    """The connection of two groups, made when weights are first sent."""

    def __init__(self, training: Group, sampling: Group) -> None:
        self.training = training
        self.sampling = sampling
        self._opened: set[str] = set()
        self._store: Any = None

    def send(self, role: str) -> None:
        """Give the workers that sample the role's weights as they are now."""
        spec = self.training.specs[role]
        if role not in self._opened:
            # adapter or weights come from the trainer: nothing is loaded but the model they belong to
            self.sampling.open({role: replace(spec, learning_rate=None, init=None)})
            self._opened.add(role)
        if self._store is None:
            self._connect()
        roles = self.training.specs.values()
        full = any(own.learning_rate is not None and own.lora is None for own in roles if own.model == spec.model)
        sent, received = self._both("send_here", "receive_here", role=role, full=full)
        for rank, bits in enumerate(received):
            if bits != sent[0]:
                state = self.sampling.workers.states[rank]
                raise TrainingError(
                    f"worker {rank + 1} of those that sample ({state.host}, {state.device}) has other weights than "
                    f"were sent for {role}",
                    "what samples is what trains",
                    "run again to resume from the last checkpoint; if it repeats, the network or the memory of that "
                    "host is at fault",
                )

    def _connect(self) -> None:
        """Form a group of the first worker that trains and all that sample."""
        self._store, port = self.training.workers.open_store()
        shared = {
            "backend": self.training.workers.backend,
            "address": self.training.workers.launcher.address,
            "port": port,
            "prefix": uuid.uuid4().hex,
            "size": 1 + self.sampling.workers.count,
        }
        self._both("connect_first_here", "connect_here", **shared)

    def _both(self, first: str, others: str, **arguments: Any) -> tuple[list[Any], list[Any]]:
        """A function on the workers that train, and another on those that sample, at the same time; their results."""

        def ask() -> list[Any]:
            try:
                return self.sampling.run_everywhere(f"{__name__}:{others}", **arguments)
            except BaseException as error:
                self.training.workers.abandon(error)  # they would wait for what is gone
                raise

        receiving = Background(ask)
        try:
            results = self.training.run_everywhere(f"{__name__}:{first}", **arguments)
        except Exception as error:
            # who is lost is the reason that the others failed
            lost = receiving.error if receiving.wait(LOSS_SECONDS) else None
            self.sampling.workers.abandon(error)
            self.training.workers.abandon(error)
            if isinstance(lost, WorkerLost):
                raise lost from None
            raise
        return results, receiving.result()


# In a worker


def connect_first_here(runtime: Any, count: Any, **arguments: Any) -> None:
    """Join the group as its first member, if this is the first worker that trains."""
    if runtime.rank == 0:
        _join(runtime, 0, **arguments)


def connect_here(runtime: Any, count: Any, **arguments: Any) -> None:
    """Join the group as a worker that samples."""
    _join(runtime, 1 + runtime.rank, **arguments)


def _join(runtime: Any, rank: int, backend: str, address: str, port: int, prefix: str, size: int) -> None:
    limit = timedelta(hours=1)  # the controller finds out earlier who is missing
    store = dist.PrefixStore(prefix, dist.TCPStore(address, port, None, False, limit))
    # besides the group of all workers that train, or of all that sample
    if backend == "nccl":
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = limit
        runtime.bridge = dist.ProcessGroupNCCL(store, rank, size, options)
    else:
        runtime.bridge = dist.ProcessGroupGloo(store, rank, size, limit)


@torch.no_grad()
def send_here(runtime: Any, count: Any, role: str, full: bool) -> int:
    """Broadcast, or take part in gathering what the first worker broadcasts; the sum of the bits that were sent."""
    bits = torch.zeros((), dtype=torch.int64, device=runtime.device)
    for weight in weights_of(runtime, role, full):
        value = whole(weight.detach())
        if runtime.rank == 0:
            own = value.to(_dtype_of(runtime, role)).contiguous()
            _broadcast(runtime, own)
            bits += _sum_of_bits(own)
    return int(bits)


@torch.no_grad()
def receive_here(runtime: Any, count: Any, role: str, full: bool) -> int:
    """Take the weights into the role's own; the sum of the bits that it has then."""
    bits = torch.zeros((), dtype=torch.int64, device=runtime.device)
    for weight in weights_of(runtime, role, full):
        weight.data = weight.data.to(_dtype_of(runtime, role))
        _broadcast(runtime, weight.data)
        bits += _sum_of_bits(weight.data)
    return int(bits)


def weights_of(runtime: Any, role: str, full: bool) -> Iterator[Tensor]:
    """What may differ from the model on the disk, in a fixed order: the role's adapter, or all weights where such a
    model is trained."""
    own = runtime.roles[role]
    if own.adapter:
        yield from runtime.adapters[own.trunk].parameters(own.adapter).values()
    elif full:
        yield from runtime.trunks[own.trunk].parameters()


def _dtype_of(runtime: Any, role: str) -> torch.dtype:
    """Adapters are float32 also where passes are not; engines sample from a whole model in the arithmetic of passes."""
    return torch.promote_types(torch.float32, runtime.dtype) if runtime.roles[role].adapter else runtime.dtype


def _sum_of_bits(tensor: Tensor) -> Tensor:
    """Of the tensor's elements as integers; it stays on the device."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.view(integers[tensor.element_size()]).sum(dtype=torch.int64)


def _broadcast(runtime: Any, tensor: Tensor) -> None:
    options = dist.BroadcastOptions()
    options.rootRank = 0
    runtime.bridge.broadcast([tensor], options).wait()
    runtime.usage.sync_bytes += tensor.nbytes
