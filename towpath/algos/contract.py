"""Inputs and results of an algorithm: model outputs and metrics.  B rows, T answer tokens, D width."""

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

Metrics = dict[str, tuple[float, float]]
"""name -> (sum, weight): means are taken once, over the whole step."""


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

    def to_host(self) -> "Outputs":
        """The same in host memory."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "features"}
        return Outputs(**{name: tensor.cpu() for name, tensor in tensors.items()}, features=self.features)


def add(into: Metrics, more: Metrics) -> None:
    """Add (sum, weight) metrics to others."""
    for name, (total, weight) in more.items():
        before = into.get(name, (0.0, 0.0))
        into[name] = (before[0] + total, before[1] + weight)


def means(metrics: Metrics) -> dict[str, float]:
    """Metrics as means: sum divided by weight."""
    return {name: total / weight if weight else 0.0 for name, (total, weight) in metrics.items()}
