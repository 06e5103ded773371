"""LoRA adapters: several roles on one frozen base model, one of them active at a time."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

LINEAR = (nn.Linear, Conv1D)
"""Layers that take an adapter; Conv1D is GPT-2's linear layer, whose weight is transposed."""


class Switch:
    """The active adapter of all layers of one base model; None for the base model alone."""

    def __init__(self) -> None:
        self.active: str | None = None


class LoraLinear(nn.Module):
    """A frozen linear layer and its adapters: y = Wx + scale B A x."""

    def __init__(self, base: Any, switch: Switch) -> None:
        super().__init__()
        self.base: Any = base
        self.switch = switch
        self.a = nn.ParameterDict()
        self.b = nn.ParameterDict()
        self.scale: dict[str, float] = {}

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        name = self.switch.active
        if name is None or name not in self.scale:
            return y
        a = self.a[name].to(x.dtype)  # [R,in], b [out,R]
        b = self.b[name].to(x.dtype)
        return y + F.linear(F.linear(x, a) * self.scale[name], b)

    def merged(self, name: str | None) -> Tensor:
        """The weight with one adapter added, in float32."""
        weight = self.base.weight.detach().float()
        if name is None or name not in self.scale:
            return weight
        change = self.scale[name] * (self.b[name].detach() @ self.a[name].detach())
        return weight + (change.T if self.is_transposed else change)

    @property
    def is_transposed(self) -> bool:
        """Whether the weight is [in,out]."""
        return isinstance(self.base, Conv1D)

    @property
    def sides(self) -> tuple[int, int]:
        """Numbers of outputs and inputs."""
        first, second = self.base.weight.shape
        return (second, first) if self.is_transposed else (first, second)


def depth(name: str) -> int:
    """The number of the layer that a module belongs to."""
    return next((int(part) for part in name.split(".") if part.isdigit()), 0)


class Adapters:
    """The adapters of one model: add, activate, save, merge."""

    def __init__(self, model: nn.Module) -> None:
        self.switch = Switch()
        self.depth: int = model.config.get_text_config().num_hidden_layers  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
        self.layers: dict[str, LoraLinear] = {}
        self.parameter_count = sum(weight.numel() for weight in model.parameters())
        heads = (model.get_output_embeddings(), getattr(model, "score", None))  # pyright: ignore[reportCallIssue]
        for name, module in list(model.named_modules()):
            if isinstance(module, LINEAR) and all(module is not head for head in heads):
                parent, _, child = name.rpartition(".")
                layer = LoraLinear(module, self.switch)
                setattr(model.get_submodule(parent), child, layer)
                self.layers[name] = layer
        model.requires_grad_(False)

    def summary(self) -> dict[str, Any]:
        """The names of the adapted layers and their share of the model's parameters."""
        names = sorted({name.rpartition(".")[2] for name in self.layers})
        return {
            "modules": names,
            "share": sum(layer.base.weight.numel() for layer in self.layers.values()) / self.parameter_count,
        }

    def add(self, name: str, rank: int, alpha: float, seed: int, last_n_layers: int = 0) -> None:
        """Add an adapter on the last `last_n_layers` layers or on all; B is zero, so the output does not change yet."""
        draw = torch.Generator().manual_seed(seed)
        for path, layer in self.layers.items():
            if depth(path) < self.depth - (last_n_layers or self.depth):
                continue
            out_features, in_features = layer.sides
            bound = 1 / math.sqrt(in_features)
            a = torch.empty(rank, in_features).uniform_(-bound, bound, generator=draw)
            device = layer.base.weight.device
            layer.a[name] = nn.Parameter(a.to(device))
            layer.b[name] = nn.Parameter(torch.zeros(out_features, rank, device=device))
            layer.scale[name] = alpha / rank

    def common_depth(self) -> int:
        """The number of lowest layers that no adapter changes: all roles share their outputs."""
        touched = [depth(name) for name, layer in self.layers.items() if layer.scale]
        return min(touched, default=0)

    @contextmanager
    def acting(self, name: str | None) -> Iterator[None]:
        """Activate an adapter within the block."""
        before = self.switch.active
        self.switch.active = name
        try:
            yield
        finally:
            self.switch.active = before

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """The adapter's weights under the names peft gives them."""
        parameters: dict[str, nn.Parameter] = {}
        for path, layer in self.layers.items():
            if name not in layer.scale:
                continue
            parameters[f"base_model.model.{path}.lora_A.weight"] = layer.a[name]
            parameters[f"base_model.model.{path}.lora_B.weight"] = layer.b[name]
        return parameters

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
