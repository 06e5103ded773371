"""The runtime of one worker whose models are divided over all workers (FSDP2): full weights, and frozen models that do
not fit one device.

Layers are gathered one at a time while they compute. Adapters and heads stay whole on each worker, as in `Replica`.
All workers run the same number of passes, some of them empty.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from towpath.algos.contract import Metrics, Outputs
from towpath.data.batch import Batch, Row
from towpath.data.chat import Chat
from towpath.errors import ResourceError
from towpath.models import export, lm
from towpath.models.head import has_plain_logits
from towpath.models.quantized import whole
from towpath.runtime import state_files
from towpath.runtime.contract import Loss, Needs, Snapshot, WeightSink
from towpath.runtime.local import Local, byte_count
from towpath.runtime.replica import Replica, digest
from towpath.runtime.weights import BEST


class Unit(nn.Module):
    """A model whose forward pass is whatever is computed with it: within it, all of its own weights are gathered."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        return work()


class Sharded(Replica):
    """`Replica` with each model's weights, gradients and optimizer state divided over the workers."""

    def __init__(self, *settings: Any, **named: Any) -> None:
        super().__init__(*settings, **named)
        self._units: dict[str, Unit] = {}
        self._parts: dict[DTensor, nn.Parameter] = {}
        """This worker's part of a weight as a parameter of its own, which the optimizer moves in place."""

        self._wants: dict[str, tuple[str, ...]] = {}
        """What the present verb wants of each role, which an empty pass computes, too."""

    # Models

    def prepare_training(self) -> None:
        """Divide all models that are not divided yet."""
        for name, model in self.trunks.items():
            if name not in self._units:
                self._units[name] = self._divided(model, name)

    def _divided(self, model: Any, name: str) -> Unit:
        has_plain_logits(model)  # measured while the weights are whole
        model.is_sharded = True
        settings: dict[str, Any] = {
            "mesh": init_device_mesh(self.device.type, (self.world,)),
            "mp_policy": MixedPrecisionPolicy(self.dtype, torch.promote_types(self.dtype, torch.float32)),
            "ignored_params": set(self.adapters[name].all_parameters()) if name in self.adapters else set(),
        }
        for layer in lm.layers_of(model):
            fully_shard(layer, **settings)
        unit = Unit(model)
        fully_shard(unit, **settings)
        for module in unit.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)  # losses are sums; gloo has no mean
        return unit

    def close(self, role: str) -> None:
        super().close(role)
        self._units = {name: unit for name, unit in self._units.items() if name in self.trunks}

    def trained(self) -> dict[str, nn.Parameter]:
        """All that trains; of a divided weight the part that is here."""
        return {key: self._part(parameter) for key, parameter in super().trained().items()}

    def _part(self, parameter: nn.Parameter) -> nn.Parameter:
        if not isinstance(parameter, DTensor):
            return parameter
        if parameter not in self._parts:
            parameter.requires_grad_(True)
            self._parts[parameter] = nn.Parameter(parameter.to_local().detach())
        return self._parts[parameter]

    def split_weights(self) -> None:
        """Nothing to do: the parts are float32, and are gathered in the arithmetic of passes."""

    # Passes: all workers make the same number

    def score(self, role: str, batch: Batch, wants: tuple[str, ...], temperature: float = 1.0) -> Outputs | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Outputs for this worker's rows, or None if it has none."""
        self._wants = {role: ("features",) if "value" in wants and self._is_closed_form(role) else wants}
        if len(batch):
            return super().score(role, batch, wants, temperature)
        with torch.no_grad():
            list(self.micro_batches(batch))
        return None

    def forward(self, needs: Needs, batch: Batch, loss: Loss, temperature: float = 1.0) -> Metrics:
        self._wants = {name: wants for name, wants in needs.items() if not self._is_closed_form(name)}
        return super().forward(needs, batch, loss, temperature)

    def forward_backward(
        self,
        needs: Needs,
        batch: Batch,
        loss: Callable[[Outputs, Batch], tuple[Tensor, Metrics]],
        weight: float,
        temperature: float = 1.0,
        count: Callable[[int], None] = lambda rows: None,
    ) -> Metrics:
        self._wants = {name: wants for name, wants in needs.items() if not self._is_closed_form(name)}
        return super().forward_backward(needs, batch, loss, weight, temperature, count)

    def _is_closed_form(self, role: str) -> bool:
        return self.roles[role].closed_form_head is not None

    def micro_batches(self, batch: Batch, tokens: int | None = None) -> Iterator[Batch]:
        """As many passes as the worker with most: where this one has fewer, empty ones follow."""
        parts = list(super().micro_batches(batch, tokens)) if len(batch) else []
        count = torch.tensor(float(len(parts)), device=self.device)
        dist.all_reduce(count, dist.ReduceOp.MAX)
        yield from parts
        for _ in range(int(count) - len(parts)):
            self._empty_pass()

    def _empty_pass(self) -> None:
        """Take part in what other workers gather and add, with a gradient of zero."""
        batch = Batch([Row(np.full(2, self.pad, np.int64), 1)])
        for name, wants in self._wants.items():
            with self._acting(self.roles[name]):
                out = self._forward(name, batch, wants)
                tensors = [x for field in fields(out) if isinstance(x := getattr(out, field.name), Tensor)]
                zeros = [0.0 * tensor.sum() for tensor in tensors if tensor.requires_grad]
                if zeros:
                    torch.stack(zeros).sum().backward()

    def _forward(self, name: str, batch: Batch, wants: tuple[str, ...], temperature: float = 1.0) -> Outputs:
        if self._is_closed_form(name) and "value" in batch.columns:
            return super()._forward(name, batch, wants, temperature)
        outputs: list[Outputs] = []

        def work() -> dict[str, Tensor]:
            out = super(Sharded, self)._forward(name, batch, wants, temperature)
            outputs.append(out)
            # FSDP gathers weights for the backward pass when the gradient of one of these comes
            return {field.name: x for field in fields(out) if isinstance(x := getattr(out, field.name), Tensor)}

        unit = self._units[self.roles[name].trunk]
        self.usage.collective_bytes += self._gathered_bytes(unit)
        tensors = unit(work)
        return replace(outputs[0], **tensors)

    def _gathered_bytes(self, unit: Unit) -> int:
        """Of a pass: layers are gathered for it, and again on the way back, where gradients are added up, too."""
        divided = [weight for weight in unit.parameters() if isinstance(weight, DTensor)]
        gathered = self.dtype.itemsize * sum(weight.numel() for weight in divided)
        if not torch.is_grad_enabled():
            return gathered
        return 2 * gathered + 4 * sum(weight.numel() for weight in divided if weight.requires_grad)

    def cache_frozen_prefix(self, batch: Batch, role: str) -> Batch:
        """The same batch: part of the layers alone would gather weights in another order."""
        return batch

    def _halve(self, batch: Batch) -> None:
        """Other workers are in the middle of the same passes."""
        fix = f"lower model.tokens_per_pass, now {self.tokens_per_pass}, or use more workers"
        raise ResourceError("out of memory in a pass", "workers with divided weights make the same passes", fix)

    # The optimizer moves the parts

    def step(self, rate: float, max_grad_norm: float) -> float:
        for weight, part in self._parts.items():
            part.grad = None if weight.grad is None else weight.grad.to_local()  # pyright: ignore[reportAttributeAccessIssue]
            weight.grad = None
        return super().step(rate, max_grad_norm)

    def replicated(self) -> list[nn.Parameter]:
        parts = set(self._parts.values())
        return [weight for weight in super().replicated() if weight not in parts]

    def gradient_norm(self) -> float:
        """Squares of the parts of all workers, and of what is whole on each once."""
        assert self.optimizer is not None
        gradients = self.optimizer.gradients()
        whole = set(self.replicated())
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        for weight, gradient in gradients.items():
            sums[int(weight in whole)] += gradient.double().square().sum()
        dist.all_reduce(sums[:1])
        return math.sqrt(float(sums.sum()))

    # State: each worker has its part

    def digest(self) -> str:
        """A hash of what is whole on each worker."""
        parts = {id(part) for part in self._parts.values()}
        trained = self.trained()
        return digest({key: x for key, x in self.live().items() if id(trained.get(key)) not in parts})

    def snapshot(self) -> Snapshot:
        return Local.snapshot(self)

    def restore(self, snapshot: Snapshot) -> None:
        Local.restore(self, snapshot)

    def write_state(self, folder: Path, best: Snapshot | None) -> None:
        """Write the parts that are here; the first worker also writes what is whole everywhere."""
        tensors = self.state() | {f"{BEST}{key}": tensor for key, tensor in (best or {}).items()}
        slices: dict[str, state_files.Slice | Tensor] = {}
        for key, tensor in tensors.items():
            rows = self._rows(key)
            if rows is not None:
                slices[key] = state_files.Slice(tensor, rows[0], rows[1])
            elif self.rank == 0:
                slices[key] = tensor
        state_files.write_slices(folder, self.rank, self.world, slices)

    def read_state(self, folder: Path) -> Snapshot | None:
        """Read the parts that belong here, whoever wrote them."""
        reader = state_files.StateReader(folder)
        tensors = {}
        for key in reader.keys():  # noqa: SIM118
            rows = self._rows(key)
            wanted = None if rows is None else (rows[0], rows[0] + rows[2])
            tensors[key] = reader.read_rows(key, wanted)
        state, best = state_files.split_prefix(tensors, BEST)
        self.load_tensors(state)
        return best or None

    def _rows(self, key: str) -> tuple[int, int, int] | None:
        """First row, rows of the whole, and rows here of the weight that a tensor of a checkpoint belongs to; None
        where it is whole on each worker."""
        name = key.removeprefix(BEST).removeprefix("low_bits:")
        if name.startswith("adam:"):
            _, kind, name = name.split(":", 2)
            if kind == "step":
                return None
        weight = super().trained().get(name)
        if not isinstance(weight, DTensor):
            return None
        shape, offset = compute_local_shape_and_global_offset(weight.shape, weight.device_mesh, weight.placements)
        # beyond the end of a small weight there are no rows
        return min(offset[0], weight.shape[0]), weight.shape[0], shape[0]

    # Files and engines

    def export(self, role: str, folder: Path, chat: Chat) -> None:
        """The first worker writes; all gather the weights, one at a time."""
        own = self.roles[role]
        target = None
        if self.rank == 0:
            spec = self._specs[role]
            target = self._load(spec, self.dtype if own.adapter else torch.float32).to(torch.float32)
        self._gather_into(target, role)
        if target is not None:
            export.write_model(target, chat, folder)

    def save(self, role: str, path: Path) -> None:
        if self.rank == 0:
            super().save(role, path)

    def export_adapter(self, role: str, folder: Path) -> None:
        if self.rank == 0:
            super().export_adapter(role, folder)

    def _publish(self, role: str, engine: WeightSink) -> int:
        """Give this worker's engine the gathered weights, as a stream where it takes one, else as a plain model."""
        if hasattr(engine, "receive"):
            return super()._publish(role, engine)
        plain = self._plain_copy(role, self.roles[role].trunk)
        self._gather_into(plain, role)
        self.usage.sync_bytes += byte_count(plain)
        self._version += 1
        engine.refresh(plain, self._version)
        return self._version

    @torch.no_grad()
    def _gather_into(self, target: Any, role: str) -> None:
        """Copy the weights of a role, adapter merged, into a plain model, or take part in gathering them."""
        own = self.roles[role]
        if own.adapter:
            adapters = self.adapters[own.trunk]
            for path, weight in adapters.weights.items():
                merged = weight.merged(own.adapter)
                if target is not None:
                    name = path if path in adapters.experts else f"{path}.weight"
                    target.get_parameter(name).copy_(merged)
            return
        for name, weight in self.trunks[own.trunk].named_parameters():
            gathered = whole(weight)
            if target is not None:
                target.get_parameter(name.replace(".base.", ".")).copy_(gathered)
