"""PPO with a critic (arXiv 1707.06347, in the form of 1909.08593 and 2009.01325).  B rows, T answer tokens."""

import torch
from torch import Tensor

from towpath.algos import functional as F
from towpath.algos import surrogate
from towpath.algos.contract import Metrics, Outputs
from towpath.data.batch import Batch
from towpath.recipe import Policy

CONFIG = Policy
DATA = "rollouts"
TRAINS = {"policy": ("logp", "entropy"), "critic": ("value",)}


def prepare(batch: Batch, cfg: Policy, knobs: dict[str, float]) -> Batch:
    """Token rewards, advantages and returns (GAE) of a rollout batch, before the first update."""
    c = batch.columns
    # reward: -kl_coef * KL at every token, the score at the last
    kl_BT, mask_BT = surrogate.log_ratios(batch)
    reward_BT = F.token_rewards(c["reward"], kl_BT, mask_BT, knobs["kl_coef"])
    if cfg.ppo.whiten_rewards:
        reward_BT = F.whiten(reward_BT, mask_BT, shift_mean=False)
    advantage_BT, return_BT = F.gae(reward_BT, c["value"], mask_BT, cfg.ppo.gamma, cfg.ppo.lam)
    if cfg.ppo.whiten_advantages:
        advantage_BT = F.whiten(advantage_BT, mask_BT)
    # what a closed-form critic regresses on: returns with lambda 1, which no value estimate enters
    outcome_BT = F.gae(reward_BT, c["value"], mask_BT, cfg.ppo.gamma, 1.0)[1]
    return batch.with_columns(advantage=advantage_BT, returns=return_BT, outcome=outcome_BT)


def weigh(batch: Batch, cfg: Policy) -> float:
    """The number of answer tokens; the loop divides the loss by it."""
    return float(batch.mask_BT.sum())


def loss(out: Outputs, batch: Batch, cfg: Policy, knobs: dict[str, float]) -> tuple[Tensor, Metrics]:
    """Sum over tokens of the clipped surrogate and the weighted value error; policy and critic may come in passes of
    their own, each with the other's output empty."""
    c = batch.columns
    total = torch.zeros(())
    metrics = Metrics()
    if out.logp_BT.numel():
        cost, metrics = surrogate.loss(out, batch, cfg.ppo.clip, cfg.ppo.clip)
        total = total + knobs["policy_weight"] * cost
    if out.value_BT.numel():
        value, old_value, target = (out.answer_tokens(x) for x in (out.value_BT, c["value"], c["returns"]))
        error = F.clipped_value_loss(value, old_value, target, cfg.ppo.value_clip)
        metrics["value_loss"] = error.detach().sum(), weigh(batch, cfg)
        total = total + cfg.ppo.value_weight * error.sum()
    return total, metrics
