"""Supervised fine-tuning: cross-entropy on answer tokens, EOS among them.  B rows, T tokens."""

from typing import Any

from torch import Tensor

from towpath.algos.contract import Metrics, Outputs
from towpath.data.batch import Batch

DATA = "demonstrations"
TRAINS = {"policy": ("logp",)}


def prepare(batch: Batch, cfg: Any, knobs: dict[str, float]) -> Batch:
    """Nothing to prepare: a demonstration is its own target."""
    return batch


def weigh(batch: Batch, cfg: Any) -> float:
    """Answer tokens."""
    return float(batch.mask_BT.sum())


def loss(out: Outputs, batch: Batch, cfg: Any, knobs: dict[str, float]) -> tuple[Tensor, Metrics]:
    """Sum of -log p over answer tokens."""
    total = -out.logp_BT[out.mask_BT].sum()
    return total, {"loss": (float(total.detach()), weigh(batch, cfg))}
