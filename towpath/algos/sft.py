"""Supervised fine-tuning: cross-entropy on answer tokens, EOS among them, each counted with its row's weight.  B
rows, T tokens."""

import torch
from torch import Tensor

from towpath.algos.contract import Metrics, Outputs
from towpath.data.batch import Batch
from towpath.recipe import Sft

CONFIG = Sft
DATA = "demonstrations"
TRAINS = {"policy": ("logp",)}


def prepare(batch: Batch, cfg: Sft, knobs: dict[str, float]) -> Batch:
    """Demonstrations need no credit assignment."""
    return batch


def weigh(batch: Batch, cfg: Sft) -> float:
    """The weighted number of answer tokens."""
    return float((torch.as_tensor(batch.mask_BT.sum(1)) * _weight_B(batch)).sum())


def loss(out: Outputs, batch: Batch, cfg: Sft, knobs: dict[str, float]) -> tuple[Tensor, Metrics]:
    """Weighted sum of -log p over answer tokens."""
    weight_B = _weight_B(batch).to(out.logp_BT)
    total = -torch.where(out.mask_BT, out.logp_BT * weight_B[:, None], 0.0).sum()
    return total, {"loss": (float(total.detach()), float((out.mask_BT.sum(1) * weight_B).sum()))}


def _weight_B(batch: Batch) -> Tensor:
    """Weight of each row, 1 by default."""
    return batch.columns["weight"] if "weight" in batch.columns else torch.ones(len(batch))
