"""The mathematics of preference learning and policy gradients: tensors in, tensors out.

B rows, T answer tokens.  Masked places never reach a result.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the true places of the mask."""
    return torch.where(mask, x, 0.0).sum() / mask.sum()


def whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Unit (biased) variance over the mask; mean to zero, or kept (Ziegler et al. 2019)."""
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean) ** 2, mask)
    white = (x - mean) * torch.rsqrt(variance + 1e-8)
    return torch.where(mask, white if shift_mean else white + mean, 0.0)


def kl_estimates(logp: Tensor, ref_logp: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """k1, k2, k3 of KL(policy || reference) at sampled tokens (Schulman, "Approximating KL divergence")."""
    log_ratio = logp - ref_logp
    return log_ratio, 0.5 * log_ratio**2, torch.expm1(-log_ratio) + log_ratio


def token_rewards(score_B: Tensor, kl_BT: Tensor, mask_BT: Tensor, coef: float) -> Tensor:
    """-coef * KL at every token, the score added at the last one."""
    last_B = mask_BT.sum(1) - 1
    reward_BT = torch.where(mask_BT, -coef * kl_BT, 0.0)
    return reward_BT.scatter_add(1, last_B[:, None], score_B[:, None])


def gae(reward_BT: Tensor, value_BT: Tensor, mask_BT: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantages and returns (Schulman et al. 2016); nothing is bootstrapped past the last token."""
    value_BT = torch.where(mask_BT, value_BT, 0.0)
    advantage_BT = torch.zeros_like(value_BT)
    following = torch.zeros_like(value_BT[:, 0])
    next_value = torch.zeros_like(following)
    for t in range(value_BT.shape[1] - 1, -1, -1):
        delta = reward_BT[:, t] + gamma * next_value - value_BT[:, t]
        following = torch.where(mask_BT[:, t], delta + gamma * lam * following, 0.0)
        next_value = value_BT[:, t]
        advantage_BT[:, t] = following
    return advantage_BT, torch.where(mask_BT, advantage_BT + value_BT, 0.0)


def clipped_policy_loss(log_ratio: Tensor, advantage: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """PPO's pessimistic surrogate (Schulman et al. 2017) and where the clip bites; finite at any ratio."""
    ratio = log_ratio.clamp(-20.0, 20.0).exp()
    plain, clipped = -advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip)
    return torch.maximum(plain, clipped), clipped > plain


def clipped_value_loss(value: Tensor, old_value: Tensor, target: Tensor, clip: float) -> Tensor:
    """Half the squared error, no smaller than that of a value held near its old one."""
    held = old_value + (value - old_value).clamp(-clip, clip)
    return 0.5 * torch.maximum((value - target) ** 2, (held - target) ** 2)


def bradley_terry(margin: Tensor, smoothing: float = 0.0) -> Tensor:
    """-log P(chosen beats rejected), with a chance given to the other answer."""
    return -(1 - smoothing) * F.logsigmoid(margin) - smoothing * F.logsigmoid(-margin)


def controlled(coef: float, kl: float, target: float, step: float) -> float:
    """The next KL coefficient: a proportional controller with a clipped error (Ziegler et al. 2019)."""
    if target <= 0:
        return coef
    error = max(-1.0, min(1.0, kl / target - 1.0))
    return coef * (1.0 + step * error)
