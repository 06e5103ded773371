"""Supervised fine-tuning: cross-entropy on answer tokens, EOS among them, each counted with its row's weight.  B
rows, T tokens."""

from typing import Any

import torch
from torch import Tensor

from towpath.algos.contract import Metrics, Outputs
from towpath.data.batch import Batch

DATA = "demonstrations"
TRAINS = {"policy": ("logp",)}


def prepare(batch: Batch, cfg: Any, knobs: dict[str, float]) -> Batch:
    """Nothing to prepare: a demonstration is its own target."""
    return batch


def weigh(batch: Batch, cfg: Any) -> float:
    """Answer tokens, by weight."""
    return float((torch.from_numpy(batch.mask_BT.sum(1)) * _weight_B(batch).cpu()).sum())


def loss(out: Outputs, batch: Batch, cfg: Any, knobs: dict[str, float]) -> tuple[Tensor, Metrics]:
    """Sum of -log p over answer tokens, by weight."""
    total = -torch.where(out.mask_BT, out.logp_BT * _weight_B(batch).to(out.logp_BT)[:, None], 0.0).sum()
    return total, {"loss": (float(total.detach()), weigh(batch, cfg))}


def _weight_B(batch: Batch) -> Tensor:
    """What each row counts; one where nothing is said."""
    return batch.columns["weight"] if "weight" in batch.columns else torch.ones(len(batch))
