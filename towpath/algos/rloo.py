"""RLOO: the others of the group are the baseline, the whole answer is one action (arXiv 2402.14740).  B rows, T
answer tokens."""

from torch import Tensor

from towpath.algos import functional as F
from towpath.algos import surrogate
from towpath.algos.contract import Metrics, Outputs
from towpath.data.batch import Batch
from towpath.recipe import Policy

CONFIG = Policy
DATA = "rollouts"
TRAINS = {"policy": ("logp", "entropy")}


def prepare(batch: Batch, cfg: Policy, knobs: dict[str, float]) -> Batch:
    """Reward of the whole answer, KL within, against the mean of the others to the same prompt."""
    c = batch.columns
    kl_BT, mask_BT = surrogate.log_ratios(batch)
    reward_B = F.sequence_rewards(c["reward"], kl_BT, mask_BT, knobs["kl_coef"])
    return batch.with_columns(advantage=F.leave_one_out(reward_B, c["group"]))


def weigh(batch: Batch, cfg: Policy) -> float:
    """The number of answers: the log-probability of an answer is the sum over its tokens."""
    return float(len(batch))


def loss(out: Outputs, batch: Batch, cfg: Policy, knobs: dict[str, float]) -> tuple[Tensor, Metrics]:
    """Sum over answers and their tokens of the clipped surrogate; at ratio 1 its gradient is REINFORCE's."""
    return surrogate.loss(out, batch, cfg.rloo.clip, cfg.rloo.clip)
