"""Layers with LoRA adapters: linear layers, and the stacked weights of experts."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from towpath.models.quantized import full_weight

LINEAR = (nn.Linear, Conv1D)
"""Layers that take an adapter; Conv1D is GPT-2's linear layer, whose weight is transposed."""


class Switch:
    """The active adapter of all layers of one base model; None for the base model alone."""

    def __init__(self) -> None:
        self.active: str | None = None
        self.dropping = False
        """Whether dropout acts: in gradient passes of stages that allow it."""
        self.partial: set[str] = set()
        """Adapters that leave out some linear layers of a decoder layer."""


class LoraLinear(nn.Module):
    """A frozen linear layer and its adapters: y = Wx + scale B A x."""

    experts = 1

    def __init__(self, base: Any, switch: Switch) -> None:
        super().__init__()
        self.base: Any = base
        self.switch = switch
        self.a = nn.ParameterDict()
        self.b = nn.ParameterDict()
        self.scale: dict[str, float] = {}
        self.dropout: dict[str, float] = {}

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        name = self.switch.active
        if name is None or name not in self.scale:
            return y
        a = self.a[name].to(x.dtype)  # [R,in], b [out,R]
        b = self.b[name].to(x.dtype)
        if self.switch.dropping and self.dropout.get(name):
            x = F.dropout(x, self.dropout[name])
        return y + F.linear(F.linear(x, a) * self.scale[name], b)

    def make(self, name: str, rank: int, alpha: float, draw: torch.Generator, dropout: float = 0.0) -> None:
        """A new adapter; B is zero, so the output does not change yet."""
        out_features, in_features = self.sides
        bound = in_features**-0.5
        device = self.base.weight.device
        self.a[name] = nn.Parameter(torch.empty(rank, in_features).uniform_(-bound, bound, generator=draw).to(device))
        self.b[name] = nn.Parameter(torch.zeros(out_features, rank, device=device))
        self.scale[name] = alpha / rank
        self.dropout[name] = dropout

    def merged(self, name: str | None) -> Tensor:
        """The weight with one adapter added, in float32."""
        weight = full_weight(self.base)
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
        if self.is_transposed:
            return self.base.weight.shape[1], self.base.weight.shape[0]
        return self.base.out_features, self.base.in_features


class ExpertWeight(nn.Module):
    """Adapters of one stacked weight of experts [E,out,in], or [E,in,out]: every expert has an A and a B of its own,
    stacked as peft stores them, A [E*R,in] and B [out,R*E]."""

    def __init__(self, experts: Any, parameter: str) -> None:
        super().__init__()
        self.a = nn.ParameterDict()
        self.b = nn.ParameterDict()
        self.scale: dict[str, float] = {}
        self.parameter = parameter
        self._experts = [experts]  # in a list: it is no part of this module
        self.is_transposed: bool = getattr(experts, "is_transposed", False)

    @property
    def experts(self) -> int:
        return len(self.weight)

    @property
    def weight(self) -> Tensor:
        return getattr(self._experts[0], self.parameter)

    @property
    def sides(self) -> tuple[int, int]:
        """Numbers of outputs and inputs."""
        _, first, second = self.weight.shape
        return (second, first) if self.is_transposed else (first, second)

    def make(self, name: str, rank: int, alpha: float, draw: torch.Generator, _dropout: float = 0.0) -> None:
        """A new adapter; B is zero, so the output does not change yet. There is no dropout within experts."""
        out_features, in_features = self.sides
        bound = in_features**-0.5
        device = self.weight.device
        a = torch.empty(self.experts * rank, in_features).uniform_(-bound, bound, generator=draw)
        self.a[name] = nn.Parameter(a.to(device))
        self.b[name] = nn.Parameter(torch.zeros(out_features, rank * self.experts, device=device))
        self.scale[name] = alpha / rank

    def change(self, name: str) -> Tensor:
        """What an adapter adds to the weight."""
        a_ERI = self.a[name].view(self.experts, -1, self.a[name].shape[1])
        b_ORE = self.b[name].view(self.b[name].shape[0], -1, self.experts)
        order = "ore,eri->eio" if self.is_transposed else "ore,eri->eoi"
        return self.scale[name] * torch.einsum(order, b_ORE, a_ERI)

    def merged(self, name: str | None) -> Tensor:
        """The weight with one adapter added, in float32."""
        weight = self.weight.detach().float()
        return weight if name is None or name not in self.scale else weight + self.change(name).detach()


class LoraExperts(nn.Module):
    """Experts whose stacked weights have adapters: the weights of the active one are added before they are used."""

    def __init__(self, base: Any, parameters: Sequence[str], switch: Switch) -> None:
        super().__init__()
        self.base: Any = base
        self.switch = switch
        self.weights = nn.ModuleDict({name: ExpertWeight(base, name) for name in parameters})

    def forward(self, *inputs: Any, **settings: Any) -> Any:
        name = self.switch.active
        weights: Any = self.weights
        changed = {
            key: weight.weight + weight.change(name).to(weight.weight.dtype)
            for key, weight in weights.items()
            if name is not None and name in weight.scale
        }
        if not changed:
            return self.base(*inputs, **settings)
        return functional_call(self.base, changed, inputs, settings)


def stacked_weights(module: nn.Module) -> list[str]:
    """The names of a module's own stacked weights; a convolution's are none."""
    if hasattr(module, "kernel_size"):
        return []
    return [name for name, weight in module.named_parameters(recurse=False) if weight.ndim == 3]
