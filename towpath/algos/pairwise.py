"""Functions shared by the pairwise algorithms; rows alternate: chosen, rejected.  B rows, T answer tokens, N pairs."""

from typing import Any

import torch
from torch import Tensor

from towpath.algos.contract import Metrics
from towpath.data.batch import Batch


def prepare(batch: Batch, cfg: Any, knobs: dict[str, float]) -> Batch:
    """Pairs need no credit assignment."""
    return batch


def weigh(batch: Batch, cfg: Any) -> float:
    """The number of pairs."""
    return len(batch) / 2


def sums(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Sum over the answer tokens of each row [B]."""
    return torch.where(mask_BT, x_BT, 0.0).sum(1)


def split_pairs(x_B: Tensor) -> tuple[Tensor, Tensor]:
    """The chosen's and the rejected's numbers."""
    return x_B[0::2], x_B[1::2]


def metrics(cost_N: Tensor, chosen_N: Tensor, rejected_N: Tensor) -> Metrics:
    """Loss, accuracy (the chosen answer has the higher log-ratio) and margin."""
    chosen_N = chosen_N.detach()
    rejected_N = rejected_N.detach()
    count = float(len(cost_N))
    values = {
        "loss": cost_N.detach(),
        "accuracy": (chosen_N > rejected_N).float(),
        "gap": chosen_N - rejected_N,
        "chosen": chosen_N,
        "rejected": rejected_N,
    }
    return {name: (x.sum(), count) for name, x in values.items()}
