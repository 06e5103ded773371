"""PPO with a critic (arXiv 1707.06347, in the form of 1909.08593 and 2009.01325).  B rows, T answer tokens."""

import torch
from torch import Tensor

from towpath.algos import functional as F
from towpath.algos.contract import Metrics, Outputs
from towpath.data.batch import Batch
from towpath.recipe import Policy

DATA = "rollouts"
TRAINS = {"policy": ("logp", "entropy"), "critic": ("value",)}


def prepare(batch: Batch, cfg: Policy, knobs: dict[str, float]) -> Batch:
    """Credit: per-token KL in the reward, the score at the last token, GAE, whitening."""
    c = batch.columns
    mask_BT = torch.from_numpy(batch.mask_BT).to(c["old_logp"].device)
    kl_BT = torch.where(mask_BT, c["old_logp"] - c["ref_logp"], 0.0)
    reward_BT = F.token_rewards(c["reward"], kl_BT, mask_BT, knobs["kl_coef"])
    if cfg.ppo.whiten_rewards:
        reward_BT = F.whiten(reward_BT, mask_BT, shift_mean=False)
    advantage_BT, return_BT = F.gae(reward_BT, c["value"], mask_BT, cfg.ppo.gamma, cfg.ppo.lam)
    if cfg.ppo.whiten_advantages:
        advantage_BT = F.whiten(advantage_BT, mask_BT)
    return batch.with_columns(advantage=advantage_BT, returns=return_BT)


def weigh(batch: Batch, cfg: Policy) -> float:
    """Answer tokens."""
    return float(batch.mask_BT.sum())


def loss(out: Outputs, batch: Batch, cfg: Policy, knobs: dict[str, float]) -> tuple[Tensor, Metrics]:
    """Sum over tokens of the clipped surrogate and the weighted value error."""
    mask, c = out.mask_BT, batch.columns
    log_ratio = (out.logp_BT - c["old_logp"])[mask]
    surrogate, clipped = F.clipped_policy_loss(log_ratio, c["advantage"][mask], cfg.ppo.clip, cfg.ppo.clip)
    error = F.clipped_value_loss(out.value_BT[mask], c["value"][mask], c["returns"][mask], cfg.ppo.value_clip)
    total = knobs["policy_weight"] * surrogate.sum() + cfg.ppo.value_weight * error.sum()
    tokens, ratio = weigh(batch, cfg), log_ratio.detach().exp()
    sums = {
        "policy_loss": surrogate, "value_loss": error, "clip_fraction": clipped.float(), "ratio": ratio,
        "ratio_error": (ratio - 1).abs(), "approx_kl": F.kl_estimates(-log_ratio.detach(), torch.zeros_like(ratio))[2],
        "entropy": out.entropy_BT[mask],
    }  # fmt: skip
    return total, {name: (float(x.detach().sum()), tokens) for name, x in sums.items()}
