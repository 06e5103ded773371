"""Bradley-Terry reward model over all judged pairs of a prompt; each answer is read once (arXiv 2203.02155, section
3.5).

B rows, K answers of one prompt.  `beats_BK` holds, for each row, the strength with which it beat answer k of its own
group, 0 where it did not; `sure_BK` the chance that it is the better one indeed, 1 where nothing else is known;
`place_B` is the row's place in its group.  The score is read at the last real token.
"""

import torch
from torch import Tensor

from towpath.algos import functional as F
from towpath.algos.contract import Metrics, Outputs
from towpath.data.batch import Batch
from towpath.recipe import Reward

CONFIG = Reward
DATA = "comparisons"
TRAINS = {"reward": ("score",)}


def prepare(batch: Batch, cfg: Reward, knobs: dict[str, float]) -> Batch:
    """Pairs need no credit assignment."""
    return batch


def weigh(batch: Batch, cfg: Reward) -> float:
    """The number of decided pairs."""
    return float((batch.on_host("beats") > 0).sum())


def margins(score_B: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Score of the chosen minus score of the rejected for every decided pair, and the strength of each."""
    chosen_N, rejected_N, strength_N = decided(score_B, batch)
    return chosen_N - rejected_N, strength_N


def decided(score_B: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Scores of the chosen and the rejected answer of every decided pair [N], and its strength."""
    row_N, k_N = torch.nonzero(batch.on_host("beats") > 0, as_tuple=True)
    other_N = row_N - batch.on_host("place")[row_N] + k_N
    row_N, k_N, other_N = (index.to(score_B.device, non_blocking=True) for index in (row_N, k_N, other_N))
    return score_B[row_N], score_B[other_N], batch.columns["beats"][row_N, k_N]


def doubt(batch: Batch, smoothing: float) -> Tensor:
    """For every decided pair the chance that the other answer is the better one, the recipe's smoothing on top."""
    beats_BK = batch.on_host("beats")
    sure_BK = batch.on_host("sure") if "sure" in batch.columns else torch.ones_like(beats_BK)
    doubt_N = smoothing + (1 - 2 * smoothing) * (1 - sure_BK[beats_BK > 0])
    return doubt_N.to(batch.columns["beats"].device, non_blocking=True)


def loss(out: Outputs, batch: Batch, cfg: Reward, knobs: dict[str, float]) -> tuple[Tensor, Metrics]:
    """Sum over pairs of -log sigmoid(chosen - rejected - margin), plus a pull of chosen + rejected to zero (arXiv
    2312.09244)."""
    chosen_N, rejected_N, strength_N = decided(out.score_B, batch)
    gap_N = chosen_N - rejected_N
    margin = (strength_N - 1.0) / 2 if cfg.margin else torch.zeros_like(gap_N)
    pairs = F.bradley_terry(gap_N - margin, doubt(batch, cfg.label_smoothing))
    count = weigh(batch, cfg)
    total = pairs.sum() + cfg.center * ((chosen_N + rejected_N) ** 2).sum()
    gap_N = gap_N.detach()
    return total, {
        "loss": (pairs.detach().sum(), count),
        "accuracy": ((gap_N > 0).sum(), count),
        "gap": (gap_N.sum(), count),
    }
