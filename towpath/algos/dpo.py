"""DPO: the policy is its own reward model (arXiv 2305.18290), with label smoothing.  B rows, T answer tokens, N
pairs, the chosen first."""

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
    """Sum over pairs of -log sigmoid(beta * margin of log-ratios)."""
    # sums over tokens of log pi - log pi_ref: the implicit rewards over beta
    chosen_N, rejected_N = pairwise.split_pairs(pairwise.sums(out.logp_BT - batch.columns["ref_logp"], out.mask_BT))
    cost_N = F.bradley_terry(cfg.dpo.beta * (chosen_N - rejected_N), cfg.dpo.label_smoothing)
    return cost_N.sum(), pairwise.metrics(cost_N, chosen_N, rejected_N)
