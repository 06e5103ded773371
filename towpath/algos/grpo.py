"""GRPO: the group is its own baseline (arXiv 2402.03300), with the options of Dr. GRPO (2503.20783) and DAPO
(2503.14476).

B rows, T answer tokens.  KL is part of the reward, or a loss (k3, as published).
"""

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
    """Advantage of each answer: its reward minus the mean reward of its group."""
    c = batch.columns
    reward_B = batch.columns["reward"]
    if cfg.grpo.kl == "reward":
        reward_B = F.sequence_rewards(reward_B, *surrogate.log_ratios(batch), knobs["kl_coef"])
    advantage_B = F.group_centred(reward_B, c["group"], cfg.grpo.scale == "group")
    # one advantage per answer [B]; every token of it gets the same
    if cfg.grpo.scale == "batch":
        advantage_B = advantage_B / (advantage_B.std() + 1e-4)
    return batch.with_columns(advantage=advantage_B)


def weigh(batch: Batch, cfg: Policy) -> float:
    """Tokens, answers, or answers times the longest answer allowed: what the sum of `loss` is divided by."""
    if cfg.grpo.average == "token":
        return float(batch.mask_BT.sum())
    return float(len(batch)) * (cfg.max_new_tokens if cfg.grpo.average == "constant" else 1)


def loss(out: Outputs, batch: Batch, cfg: Policy, knobs: dict[str, float]) -> tuple[Tensor, Metrics]:
    """Sum over tokens of the surrogate and the KL; by answer, a token counts one over its answer's length."""
    weight_B = out.mask_BT.sum(1).to(out.logp_BT.dtype).reciprocal() if cfg.grpo.average == "answer" else None
    return surrogate.loss(
        out, batch, cfg.grpo.clip_low, cfg.grpo.clip_high, weight_B, knobs["kl_coef"] if cfg.grpo.kl == "loss" else 0.0
    )
