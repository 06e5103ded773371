"""Bradley-Terry reward model.  Rows come in pairs, chosen before rejected; score read at the last real token."""

import torch
from torch import Tensor

from towpath.algos import functional as F
from towpath.algos.contract import Metrics, Outputs
from towpath.data.batch import Batch
from towpath.recipe import Reward

DATA = "comparisons"
TRAINS = {"reward": ("score",)}


def prepare(batch: Batch, cfg: Reward, knobs: dict[str, float]) -> Batch:
    """Pairs need no credit assignment."""
    return batch


def weigh(batch: Batch) -> float:
    """Pairs."""
    return float(batch.groups)


def loss(out: Outputs, batch: Batch, cfg: Reward, knobs: dict[str, float]) -> tuple[Tensor, Metrics]:
    """Sum over pairs of -log sigmoid(chosen - rejected - margin), plus a pull of the pair's mean to zero."""
    chosen, rejected = out.score_B[0::2], out.score_B[1::2]
    gap = chosen - rejected
    margin = (batch.columns["strength"][0::2] - 1.0) / 2 if cfg.margin else torch.zeros_like(gap)
    pairs = F.bradley_terry(gap - margin, cfg.label_smoothing) + cfg.center * ((chosen + rejected) / 2) ** 2
    total, count = pairs.sum(), weigh(batch)
    return total, {
        "loss": (float(total.detach()), count),
        "accuracy": (float((gap > 0).sum()), count),
        "gap": (float(gap.detach().sum()), count),
    }
