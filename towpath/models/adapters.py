"""LoRA adapters: several roles on one frozen base model, one of them active at a time."""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from towpath.errors import ModelError
from towpath.models.lora_layers import LINEAR, ExpertWeight, LoraExperts, LoraLinear, Switch, stacked_weights

ATTENTION = re.compile(r"\.(?:self_)?(?:attn|attention)\.")
"""Parts of the paths of attention's linear layers."""


def depth(name: str) -> int:
    """The number of the layer that a module belongs to."""
    return next((int(part) for part in name.split(".") if part.isdigit()), 0)


def is_target(path: str, targets: Sequence[str], is_expert: bool = False) -> bool:
    """Whether a weight is adapted under `lora.targets`."""
    groups = {"all", "experts"} if is_expert else {"all", "linear", "attention" if ATTENTION.search(path) else "mlp"}
    name = path.rpartition(".")[2]
    return any(target in groups or fnmatchcase(name, target) or fnmatchcase(path, target) for target in targets)


class Adapters:
    """The adapters of one model: add, activate, save, merge."""

    def __init__(self, model: nn.Module) -> None:
        self.switch = Switch()
        self._model: Any = model
        self.depth: int = self._model.config.get_text_config().num_hidden_layers
        self.layers: dict[str, LoraLinear] = {}
        self.experts: dict[str, ExpertWeight] = {}
        """Stacked weights of experts, by path; only where an adapter wants them."""
        self.parameter_count = sum(weight.numel() for weight in model.parameters())
        heads = (self._model.get_output_embeddings(), getattr(model, "score", None))
        for name, module in list(model.named_modules()):
            if isinstance(module, LINEAR) and all(module is not head for head in heads):
                layer = LoraLinear(module, self.switch)
                _replace(model, name, layer)
                self.layers[name] = layer
        model.requires_grad_(False)
        self._model.lora_switch = self.switch

    @property
    def weights(self) -> dict[str, LoraLinear | ExpertWeight]:
        """All that takes an adapter, by path."""
        return self.layers | self.experts

    def summary(self, name: str) -> dict[str, Any]:
        """The names of the weights that an adapter changes, and their share of the model's parameters."""
        adapted = {path: weight for path, weight in self.weights.items() if name in weight.scale}
        return {
            "modules": sorted({path.rpartition(".")[2] for path in adapted}),
            "share": sum(math.prod(weight.sides) * weight.experts for weight in adapted.values())
            / self.parameter_count,
        }

    def add(
        self,
        name: str,
        rank: int,
        alpha: float,
        seed: int,
        last_n_layers: int = 0,
        targets: Sequence[str] = ("linear",),
        dropout: float = 0.0,
    ) -> None:
        """Add an adapter on the last `last_n_layers` layers or on all; it does not change the output yet."""
        if any(target in ("all", "experts") for target in targets):
            self._wrap_experts()
        draw = torch.Generator().manual_seed(seed)
        first = self.depth - (last_n_layers or self.depth)
        chosen = [
            weight
            for path, weight in self.weights.items()
            if depth(path) >= first and is_target(path, targets, path in self.experts)
        ]
        if not chosen:
            names = sorted({path.rpartition(".")[2] for path in self.weights})
            rule = (
                "lora.targets names groups (linear, attention, mlp, experts, all), layers, or patterns of their paths"
            )
            raise ModelError(f"lora.targets = {list(targets)}: no such layer", rule, f"layers are {', '.join(names)}")
        for weight in chosen:
            weight.make(name, rank, alpha, draw, dropout)
        if self._is_partial(name, first):
            self.switch.partial.add(name)

    def _is_partial(self, name: str, first: int) -> bool:
        """Whether an adapter leaves out linear layers of the decoder layers that it changes."""
        return any(name not in layer.scale for path, layer in self.layers.items() if depth(path) >= first)

    def _wrap_experts(self) -> None:
        """Give the stacked weights of experts places for adapters."""
        for path, module in list(self._model.named_modules()):
            names = stacked_weights(module)
            if names and not self.experts.keys() & {f"{path}.{name}" for name in names}:
                wrapper = LoraExperts(module, names, self.switch)
                _replace(self._model, path, wrapper)
                weights: Any = wrapper.weights
                self.experts |= {f"{path}.{name}": weights[name] for name in names}

    def common_depth(self) -> int:
        """The number of lowest layers that no adapter changes: all roles share their outputs."""
        touched = [depth(path) for path, weight in self.weights.items() if weight.scale]
        return min(touched, default=0)

    @contextmanager
    def acting(self, name: str | None, dropping: bool = False) -> Iterator[None]:
        """Activate an adapter within the block, with its dropout or without."""
        before = self.switch.active, self.switch.dropping
        self.switch.active = name
        self.switch.dropping = dropping and any(layer.dropout.get(name or "") for layer in self.layers.values())
        try:
            yield
        finally:
            self.switch.active, self.switch.dropping = before

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """The adapter's weights under the names peft gives them."""
        parameters: dict[str, nn.Parameter] = {}
        for path, weight in self.weights.items():
            if name in weight.scale:
                stem = self._peft_name(path, name) if path in self.experts else path
                parameters[f"base_model.model.{stem}.lora_A.weight"] = weight.a[name]
                parameters[f"base_model.model.{stem}.lora_B.weight"] = weight.b[name]
        return parameters

    def all_parameters(self) -> Iterator[nn.Parameter]:
        """The weights of all adapters."""
        for weight in self.weights.values():
            yield from (*weight.a.values(), *weight.b.values())

    def _peft_name(self, path: str, name: str) -> str:
        """Where peft keeps an adapter of a stacked weight: it wraps the experts once for each weight, the last one
        outside."""
        module = path.rpartition(".")[0]
        adapted = [other for other, weight in self.experts.items() if name in weight.scale]
        siblings = [other for other in adapted if other.rpartition(".")[0] == module]
        return module + ".base_layer" * (len(siblings) - 1 - siblings.index(path))

    def load(self, name: str, state: dict[str, Tensor]) -> None:
        """Fill an adapter from a saved state."""
        with torch.no_grad():
            for key, parameter in self.parameters(name).items():
                parameter.copy_(state[key])

    def merge_into(self, target: nn.Module, name: str | None) -> None:
        """Write the merged weights into a plain copy of the model."""
        with torch.no_grad():
            for path, layer in self.layers.items():
                target.get_submodule(path).weight.copy_(layer.merged(name))  # pyright: ignore[reportCallIssue, reportArgumentType]
            for path, weight in self.experts.items():
                target.get_parameter(path).copy_(weight.merged(name))


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
