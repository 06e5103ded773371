"""What the loop gives an algorithm and what it takes back.  B rows, T answer tokens."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

Metrics = dict[str, tuple[float, float]]
"""name -> (sum, weight): means are taken once, over the whole step."""


def _none() -> Tensor:
    return torch.zeros(0)


@dataclass
class Outputs:
    """What was said of a micro-batch; a field nobody asked for is empty. Where several roles learn the loss is a sum
    over them, and an algorithm is asked for each role's part alone."""

    mask_BT: Tensor
    logp_BT: Tensor = field(default_factory=_none)
    entropy_BT: Tensor = field(default_factory=_none)
    value_BT: Tensor = field(default_factory=_none)
    score_B: Tensor = field(default_factory=_none)
    features_BTD: Tensor = field(default_factory=_none)
    last_BD: Tensor = field(default_factory=_none)
    spread_B: Tensor = field(default_factory=_none)
    """Where several reward models score: the deviation of their scores."""


def add(into: Metrics, more: Metrics) -> None:
    """Add sums to sums and weights to weights."""
    for name, (total, weight) in more.items():
        before = into.get(name, (0.0, 0.0))
        into[name] = (before[0] + total, before[1] + weight)


def means(metrics: Metrics) -> dict[str, float]:
    """Sums over weights."""
    return {name: total / weight if weight else 0.0 for name, (total, weight) in metrics.items()}
