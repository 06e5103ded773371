"""vLLM's side of weight transfer: a backend for its four phases, and what its workers answer about their weights."""

import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import network
import tensors
import torch
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

BACKEND = "towpath"


@dataclass
class InitInfo(WeightTransferInitInfo):
    """How bytes come: shm, ipc or nccl, and what that needs to connect."""

    transport: str
    connect: dict[str, Any]


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """One chunk: where its bytes are, and the tensors in it."""

    size: int
    source: dict[str, Any]
    tensors: list[dict[str, Any]]
    faults: list[str]


class Receiver(WeightTransferEngine):
    """Loads chunks of tensors by the model's own `load_weights`, and notes what came and what was loaded."""

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo
    supports_draft_weight_update = False

    def __init__(self, *settings: Any) -> None:
        super().__init__(*settings)
        self.info = InitInfo("shm", {})
        self.group: Any = None
        self.buffers: dict[str, torch.Tensor] = {}
        self.received: list[int] = []
        """Checksums of the last chunk."""
        self.loaded: set[str] = set()

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Connect; again after another transport has failed."""
        self.shutdown()
        self.info = init_info
        if init_info.transport == "nccl":
            rank = self.parallel_config.rank + 1
            self.group = network.open_group(**init_info.connect, rank=rank, device=self.device)

    def start_weight_update(self) -> None:
        """Begin to load; layers are replaced one at a time, in place."""
        self.loaded = set()
        self.buffers.clear()
        initialize_layerwise_reload(self.model)

    def finish_weight_update(self) -> None:
        """Put layers in place that had less than all of their weights."""
        finalize_layerwise_reload(self.model, self.model_config)
        self.buffers.clear()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load one chunk. vLLM's own method waits for an accelerator, which a CPU has not."""
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Copies, since the layers keep tensors until all of them have come, and the buffer is used again."""
        buffer = self.open(update_info.size, update_info.source)
        named = [
            (one["name"], tensors.view(buffer, one["dtype"], one["shape"], one["offset"]).clone().to(self.device))
            for one in update_info.tensors
        ]
        if "corrupt" in update_info.faults:
            named[len(named) // 2][1].view(-1)[0] += 1
        if "skip" in update_info.faults:
            named.pop(len(named) // 2)
        self.received = [tensors.checksum(tensor) for _, tensor in named]
        if "stale" in update_info.faults:
            self.loaded |= dict(self.model.named_parameters()).keys()
        else:
            self.loaded |= set(self.model.load_weights(named) or ())

    def open(self, size: int, source: dict[str, Any]) -> torch.Tensor:
        """The bytes of one chunk."""
        if self.info.transport == "nccl":
            buffer = torch.empty(size, dtype=torch.uint8, device=self.device)
            network.broadcast(self.group, buffer)
            return buffer
        if self.info.transport == "ipc":
            key = f"{source['handle']} {source['start']} {source['bytes']}"
            if key not in self.buffers:
                self.buffers[key] = network.open_handle(source, self.device)
            return self.buffers[key][:size]
        key = source["file"]
        if key not in self.buffers:
            with Path(key).open("r+b") as file:
                self.buffers[key] = torch.frombuffer(mmap.mmap(file.fileno(), 0), dtype=torch.uint8)
        return self.buffers[key][:size]

    def shutdown(self) -> None:
        """Let go of buffers and of the connection."""
        self.buffers.clear()
        self.group = None


class Extension:
    """Methods of vLLM's workers, by `collective_rpc`."""

    def towpath_device(self) -> dict[str, Any]:
        """Where this worker computes."""
        device = self.device
        uuid = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""
        return {"type": device.type, "uuid": uuid, "host": os.uname().nodename}

    def towpath_try(self, size: int, source: dict[str, Any]) -> int:
        """The checksum of bytes that came, for a test of the transport."""
        return tensors.checksum(self.weight_transfer_engine.open(size, source))

    def towpath_received(self) -> list[int]:
        """Checksums of the tensors of the last chunk."""
        return self.weight_transfer_engine.received

    def towpath_fingerprints(self, names: list[str] | None) -> dict[str, Any]:
        """Fingerprints of weights as they serve now, by parameter, with the names that each is made of; and weights
        that were not loaded. Weights that vLLM repacked, as on a CPU, cannot be read."""
        engine = self.weight_transfer_engine
        weights = dict(engine.model.named_parameters())
        packed = getattr(engine.model, "packed_modules_mapping", {})
        readable = [name for name, weight in weights.items() if weight.numel()]
        chosen = readable if names is None else [name for name in names if name in readable]
        return {
            "parts": {name: _parts(name, packed) for name in weights},
            "readable": readable,
            "prints": {name: tensors.fingerprint(weights[name]) for name in chosen},
            "missing": sorted(weights.keys() - engine.loaded),
        }


def _parts(name: str, packed: dict[str, list[str]]) -> list[str]:
    """The tensors of a checkpoint that make up a parameter: vLLM joins some into one matrix."""
    for packed_name, parts in packed.items():
        if f".{packed_name}." in name:
            return [name.replace(f".{packed_name}.", f".{part}.") for part in parts]
    return [name]


WeightTransferEngineFactory.register_engine(BACKEND, Receiver)
