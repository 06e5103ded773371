"""ORPO: fine-tuning on the chosen and an odds ratio against the rejected, no reference (arXiv 2403.07691).

B rows, T answer tokens, N pairs, the chosen first.
"""

from torch import Tensor

from towpath.algos import functional as F
from towpath.algos import pairwise
from towpath.algos.contract import Metrics, Outputs
from towpath.data.batch import Batch
from towpath.recipe import Policy

CONFIG = Policy
DATA = "comparisons"
TRAINS = {"policy": ("logp",)}
prepare = pairwise.prepare
weigh = pairwise.weigh


def loss(out: Outputs, batch: Batch, cfg: Policy, knobs: dict[str, float]) -> tuple[Tensor, Metrics]:
    """Sum over pairs of the chosen answer's mean -log p and the weighted odds ratio."""
    chosen_N, rejected_N = pairwise.split_pairs(pairwise.sums(out.logp_BT, out.mask_BT) / out.mask_BT.sum(1))
    odds_N = F.odds_ratio(chosen_N, rejected_N)
    cost_N = cfg.orpo.weight * odds_N - chosen_N
    count = float(len(chosen_N))
    parts = {"odds": odds_N, "nll": -chosen_N}
    return cost_N.sum(), pairwise.metrics(cost_N, chosen_N, rejected_N) | {
        name: (x.detach().sum(), count) for name, x in parts.items()
    }
