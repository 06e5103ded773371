"""REINFORCE with a baseline: the mean of all other answers of the rollout (Williams 1992).  B rows, T answer tokens."""

import torch
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
    """Reward of the whole answer, KL within, against the mean of all others; to unit scale when asked."""
    kl_BT, mask_BT = surrogate.log_ratios(batch)
    reward_B = F.sequence_rewards(batch.columns["reward"], kl_BT, mask_BT, knobs["kl_coef"])
    advantage_B = F.leave_one_out(reward_B, torch.zeros_like(reward_B, dtype=torch.int64))
    if cfg.reinforce.whiten:
        advantage_B = F.whiten(advantage_B, torch.ones_like(advantage_B, dtype=torch.bool))
    return batch.with_columns(advantage=advantage_B)


def weigh(batch: Batch, cfg: Policy) -> float:
    """The number of answers: the log-probability of an answer is the sum over its tokens."""
    return float(len(batch))


def loss(out: Outputs, batch: Batch, cfg: Policy, knobs: dict[str, float]) -> tuple[Tensor, Metrics]:
    """Sum over answers and their tokens; later epochs are held by the clip, the first is REINFORCE itself."""
    return surrogate.loss(out, batch, cfg.reinforce.clip, cfg.reinforce.clip)
