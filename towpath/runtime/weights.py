"""What is learned: optimizer steps, snapshots, the tensors of checkpoints, and files of adapters and models."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from towpath.data.chat import Chat
from towpath.models import export
from towpath.models.cpu.optimizer import AdamW, merge_float32, split_float32
from towpath.runtime import state_files
from towpath.runtime.contract import Snapshot
from towpath.runtime.models import Models
from towpath.runtime.process import release_memory

BEST = "best:"
"""Begins the names of the best weights in a checkpoint."""


class Weights(Models):
    """`Models` whose weights move, are copied, written and read."""

    # The optimizer

    def step(self, rate: float, max_grad_norm: float) -> float:
        """Clip the gradient, move what trains by `rate` of its peak rate; the gradient's norm. Nothing moves where
        that is not finite."""
        assert self.optimizer is not None
        self._initial_fits.clear()
        norm = self.gradient_norm()
        if np.isfinite(norm):
            # clipped while it is read: no pass over the gradients of its own
            self.optimizer.step(rate, min(1.0, max_grad_norm / (norm + 1e-6)))
        else:
            gradients = self.optimizer.gradients()
            bad = {p for p, grad in gradients.items() if not bool(grad.isfinite().all())}
            self._nonfinite = [key for key, p in self.trained().items() if p in bad]
        self.optimizer.zero_grad()
        return norm

    def gradient_norm(self) -> float:
        """The norm of all gradients together."""
        assert self.optimizer is not None
        return self.optimizer.norm()

    def nonfinite(self) -> list[str]:
        """Names of the weights whose gradient was not finite in the last step that had one."""
        return self._nonfinite

    def reset_optimizer(self) -> None:
        """Reset the optimizer's moments, which belong to other weights."""
        assert self.optimizer is not None
        self.optimizer.state.clear()

    # State

    def write_state(self, folder: Path, best: Snapshot | None) -> None:
        """Write weights, optimizer state and a snapshot to a folder."""
        state_files.write_slices(folder, 0, 1, self.state() | {f"{BEST}{key}": x for key, x in (best or {}).items()})

    def read_state(self, folder: Path) -> Snapshot | None:
        """Load what `write_state` wrote, here or on workers, and return its snapshot."""
        reader = state_files.StateReader(folder)
        state, best = state_files.split_prefix({key: reader.read(key) for key in reader.keys()}, BEST)  # noqa: SIM118
        self.load_tensors(state)
        return best or None

    def snapshot(self) -> Snapshot:
        """A copy of all that trains: weights, and closed-form heads with the sums they rest on."""
        return {key: tensor.clone() for key, tensor in self._learned().items()}

    def state(self) -> dict[str, Tensor]:
        """Weights and optimizer: the tensors themselves, to be written before the next step."""
        assert self.optimizer is not None
        tensors = self._learned()
        for key, parameter in self.trained().items():
            for name, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"adam:{name}:{key}"] = value.cpu()
        return tensors

    def live(self) -> dict[str, Tensor]:
        """The tensors that are learned, themselves."""
        weights = {key: parameter.detach() for key, parameter in self.trained().items()}
        return weights | self._low_bits() | self._closed_form()

    def _learned(self) -> dict[str, Tensor]:
        return {key: tensor.cpu() for key, tensor in self.live().items()}

    def _low_bits(self) -> dict[str, Tensor]:
        """The low bits of weights that are split into bfloat16 and a rest."""
        low_bits = self.optimizer.low_bits if self.optimizer is not None else {}
        return {f"low_bits:{key}": low_bits[p] for key, p in self.trained().items() if p in low_bits}

    def _closed_form(self) -> dict[str, Tensor]:
        """Tensors of the closed-form heads."""
        heads = {name: role.closed_form_head for name, role in self.roles.items() if role.closed_form_head is not None}
        return {f"fit:{name}/{key}": x for name, head in heads.items() for key, x in head.state().items()}

    def restore(self, snapshot: Snapshot) -> None:
        """Load the weights of a snapshot."""
        self.load_tensors(snapshot)

    def load_tensors(self, state: Mapping[str, Tensor]) -> None:
        """Load the tensors of `snapshot` or `state`."""
        for key, part in self._closed_form().items():
            if key in state:
                part.copy_(state[key])
        low_bits = self._low_bits()
        for key, parameter in self.trained().items():
            value = state[key]
            with torch.no_grad():
                if f"low_bits:{key}" in state:
                    value = merge_float32(value, state[f"low_bits:{key}"])
                if f"low_bits:{key}" in low_bits:
                    value, low = split_float32(value)
                    low_bits[f"low_bits:{key}"].copy_(low)
                parameter.copy_(value)
            if self.optimizer is not None and f"adam:step:{key}" in state:
                self.optimizer.load_state(parameter, {name: state[f"adam:{name}:{key}"] for name in AdamW.STATE})

    @contextmanager
    def float32_weights(self, trunk: str) -> Iterator[Any]:
        """The model with split weights merged to float32, for writing."""
        low_bits = self.optimizer.low_bits if self.optimizer is not None else {}
        upper = {weight: weight.data for weight in self.trunks[trunk].parameters() if weight in low_bits}
        for weight, half in upper.items():
            weight.data = merge_float32(half, low_bits[weight])
        try:
            yield self.trunks[trunk]
        finally:
            for weight, half in upper.items():
                weight.data = half

    # Files

    def save(self, role: str, path: Path) -> None:
        """Write a role's adapter and head to a safetensors file."""
        own = self.roles[role]
        tensors: dict[str, Tensor] = {}
        if own.head is not None:
            tensors |= {f"head.{name}": tensor for name, tensor in own.head.named_parameters()}
        if own.adapter:
            tensors |= self.adapters[own.trunk].parameters(own.adapter)
        save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, path)

    def export(self, role: str, folder: Path, chat: Chat) -> None:
        """Write the role's model as transformers loads it, in float32, adapter merged, with the tokenizer."""
        release_memory()  # for a second copy of the weights
        own = self.roles[role]
        if own.adapter is None:
            with self.float32_weights(own.trunk) as model:
                export.write_model(model, chat, folder)
            return
        model = self._load(self._specs[role], self.dtype).to(torch.float32)
        self.adapters[own.trunk].merge_into(model, own.adapter)
        export.write_model(model, chat, folder)

    def export_adapter(self, role: str, folder: Path) -> None:
        """Write the role's adapter in peft's format."""
        spec = self._specs[role]
        assert spec.lora is not None
        export.write_adapter(self.adapters[self.roles[role].trunk], role, spec.lora, spec.model, folder)
