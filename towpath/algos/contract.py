"""Inputs and results of an algorithm: model outputs and metrics.  B rows, T answer tokens, N answer tokens of all rows,
D width."""

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

Metrics = dict[str, tuple[float | Tensor, float | Tensor]]
"""name -> (sum, weight): means are taken once, over the whole step. Sums may be tensors of one number, which stay on
their device until the end of a step: to read one waits for all work before it."""


def _none() -> Tensor:
    return torch.zeros(0)


@dataclass
class Outputs:
    """Outputs of one role on a micro-batch; fields that were not wanted are empty. Where several roles train, the loss
    is a sum over them and is called with the outputs of each in turn."""

    mask_BT: Tensor
    logp_BT: Tensor = field(default_factory=_none)
    entropy_BT: Tensor = field(default_factory=_none)
    value_BT: Tensor = field(default_factory=_none)
    score_B: Tensor = field(default_factory=_none)
    features_BTD: Tensor = field(default_factory=_none)
    last_BD: Tensor = field(default_factory=_none)
    spread_B: Tensor = field(default_factory=_none)
    """Standard deviation of the scores of several reward models."""
    features: Any = None
    """Handle to `features_BTD` where they stay in the runtime."""
    token_N: Tensor = field(default_factory=_none)
    """Where the answer tokens are in the flattened mask; known in advance, so that no pass searches for them."""

    def answer_tokens(self, x_BT: Tensor) -> Tensor:
        """The values of the answer tokens of all rows [N]."""
        if not self.token_N.numel():
            self.token_N = self.mask_BT.flatten().nonzero()[:, 0]
        return x_BT.flatten()[self.token_N]

    def to_host(self) -> "Outputs":
        """The same in host memory."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "features"}
        return Outputs(**{name: tensor.cpu() for name, tensor in tensors.items()}, features=self.features)


def add(into: Metrics, more: Metrics) -> None:
    """Add (sum, weight) metrics to others, in float64."""
    for name, numbers in more.items():
        before = into.get(name, (0.0, 0.0))
        total, weight = (x.detach().double() if isinstance(x, Tensor) else x for x in numbers)
        into[name] = (before[0] + total, before[1] + weight)


def to_floats(metrics: Metrics) -> Metrics:
    """Metrics with their numbers in host memory, by one transfer."""
    pending = [x for numbers in metrics.values() for x in numbers if isinstance(x, Tensor)]
    values = iter(torch.stack([x.to(pending[0]).reshape(()) for x in pending]).tolist() if pending else [])

    def read(x: float | Tensor) -> float:
        return next(values) if isinstance(x, Tensor) else x

    return {name: (read(total), read(weight)) for name, (total, weight) in metrics.items()}


def means(metrics: Metrics) -> dict[str, float]:
    """Metrics as means: sum divided by weight."""
    return {name: float(total / weight) if weight else 0.0 for name, (total, weight) in metrics.items()}
