"""IPO: the margin is pulled to a number, not to infinity (arXiv 2310.12036).  B rows, T answer tokens, N pairs, the
chosen first."""

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
    """Sum over pairs of (margin - 1 / (2 tau))^2, log-ratios taken per token or per answer."""
    log_ratio_B = pairwise.sums(out.logp_BT - batch.columns["ref_logp"], out.mask_BT)
    if cfg.ipo.per_token:
        log_ratio_B = log_ratio_B / out.mask_BT.sum(1)
    chosen_N, rejected_N = pairwise.split_pairs(log_ratio_B)
    cost_N = F.identity_preference(chosen_N - rejected_N, cfg.ipo.tau)
    return cost_N.sum(), pairwise.metrics(cost_N, chosen_N, rejected_N)
