"""Supervised fine-tuning: cross-entropy on answer tokens, EOS among them, each counted with its weight.  B rows, T
tokens from the first answer on."""

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
    return float(_weight_BT(batch).sum())


def loss(out: Outputs, batch: Batch, cfg: Sft, knobs: dict[str, float]) -> tuple[Tensor, Metrics]:
    """Weighted sum of -log p over answer tokens."""
    host_BT = _weight_BT(batch)
    weight_BT = host_BT.to(out.logp_BT.dtype).to(out.logp_BT.device, non_blocking=True)
    total = -torch.where(out.mask_BT, out.logp_BT * weight_BT, 0.0).sum()
    return total, {"loss": (total.detach(), float(host_BT.to(out.logp_BT.dtype).sum()))}


def _weight_BT(batch: Batch) -> Tensor:
    """Weight of each token, in host memory: 0 on padding and on turns that are not trained on, 1 elsewhere by
    default."""
    mask_BT = torch.as_tensor(batch.mask_BT, dtype=torch.float32)
    return mask_BT * batch.on_host("weight") if "weight" in batch.columns else mask_BT
