"""The mathematics of preference learning and policy gradients: tensors in, tensors out.

B rows, T answer tokens.  Masked positions never affect a result.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the positions where the mask is true."""
    return torch.where(mask, x, 0.0).sum() / mask.sum()


def whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Unit (biased) variance over the mask; mean to zero, or kept (Ziegler et al. 2019)."""
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean) ** 2, mask)
    white = (x - mean) * torch.rsqrt(variance + 1e-8)
    return torch.where(mask, white if shift_mean else white + mean, 0.0)


def kl_estimates(logp: Tensor, ref_logp: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """k1, k2, k3 of KL(policy || reference) at sampled tokens (Schulman, "Approximating KL divergence"). Where the
    reference thinks a token e^20 times as likely, k3 continues as a straight line: finite, and its
    gradient still pulls back."""
    log_ratio = logp - ref_logp
    # exp(x) - 1 - x with x = log pi_ref - log pi, linear beyond x = 20
    held = (-log_ratio).clamp(max=20.0)
    beyond = (-log_ratio - held) * held.detach().exp()
    return log_ratio, 0.5 * log_ratio**2, torch.expm1(held) + beyond + log_ratio


def token_rewards(score_B: Tensor, kl_BT: Tensor, mask_BT: Tensor, coef: float) -> Tensor:
    """-coef * KL at every token, plus the score at the last token [B,T]."""
    last_B = mask_BT.sum(1) - 1
    reward_BT = torch.where(mask_BT, -coef * kl_BT, 0.0)
    return reward_BT.scatter_add(1, last_B[:, None], score_B[:, None].to(reward_BT.dtype))


def sequence_rewards(score_B: Tensor, kl_BT: Tensor, mask_BT: Tensor, coef: float) -> Tensor:
    """Reward of a whole answer [B]: its score minus coef * KL summed over its tokens."""
    return score_B - coef * torch.where(mask_BT, kl_BT, 0.0).sum(1)


def group_sums(x_B: Tensor, group_B: Tensor) -> tuple[Tensor, Tensor]:
    """The sum over the group of every row, in float64, and the group's size; groups have integer ids."""
    _, index_B = group_B.unique(return_inverse=True)
    x_B = x_B.double()
    zeros = torch.zeros(int(index_B.max()) + 1, dtype=x_B.dtype, device=x_B.device)
    return zeros.index_add(0, index_B, x_B)[index_B], zeros.index_add(0, index_B, torch.ones_like(x_B))[index_B]


def group_centred(x_B: Tensor, group_B: Tensor, scale: bool, eps: float = 1e-4) -> Tensor:
    """Reward minus the mean of the group; divided by the group's (unbiased) standard deviation if `scale` (GRPO, arXiv
    2402.03300; without it 2503.20783)."""
    total_B, size_B = group_sums(x_B, group_B)
    centred_B = x_B - total_B / size_B
    if scale:
        variance_B = group_sums(centred_B**2, group_B)[0] / (size_B - 1).clamp(min=1)
        centred_B = centred_B / (variance_B.sqrt() + eps)
    return centred_B.to(x_B.dtype)


def leave_one_out(x_B: Tensor, group_B: Tensor) -> Tensor:
    """Reward minus the mean of the *other* answers of the group (RLOO, arXiv 2402.14740); zero in a group of one."""
    total_B, size_B = group_sums(x_B, group_B)
    return torch.where(size_B > 1, x_B - (total_B - x_B) / (size_B - 1).clamp(min=1), 0.0).to(x_B.dtype)


def gae(reward_BT: Tensor, value_BT: Tensor, mask_BT: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantages and returns (Schulman et al. 2016); nothing is bootstrapped past the last token."""
    value_BT = torch.where(mask_BT, value_BT, 0.0)
    advantage_BT = torch.zeros_like(value_BT)
    following = torch.zeros_like(value_BT[:, 0])
    next_value = torch.zeros_like(following)
    # backwards: A_t = delta_t + gamma * lam * A_{t+1}
    for t in range(value_BT.shape[1] - 1, -1, -1):
        delta = reward_BT[:, t] + gamma * next_value - value_BT[:, t]
        following = torch.where(mask_BT[:, t], delta + gamma * lam * following, 0.0)
        next_value = value_BT[:, t]
        advantage_BT[:, t] = following
    return advantage_BT, torch.where(mask_BT, advantage_BT + value_BT, 0.0)


def clipped_policy_loss(log_ratio: Tensor, advantage: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """PPO's pessimistic surrogate (Schulman et al. 2017) and where the clip bites; finite at any ratio.
    The ratio is held within 1 - low and 1 + high, which may differ (DAPO, arXiv 2503.14476)."""
    # larger of the two losses: a step is never rewarded for leaving the clip range
    ratio = log_ratio.clamp(-20.0, 20.0).exp()
    plain = -advantage * ratio
    clipped = -advantage * ratio.clamp(1 - low, 1 + high)
    return torch.maximum(plain, clipped), clipped > plain


def clipped_value_loss(value: Tensor, old_value: Tensor, target: Tensor, clip: float) -> Tensor:
    """Half the squared error, or that of the value clipped around its old one if it is larger (value clipping)."""
    held = old_value + (value - old_value).clamp(-clip, clip)
    return 0.5 * torch.maximum((value - target) ** 2, (held - target) ** 2)


def bradley_terry(margin: Tensor, smoothing: float | Tensor = 0.0) -> Tensor:
    """-log P(chosen beats rejected), with label smoothing."""
    return -(1 - smoothing) * F.logsigmoid(margin) - smoothing * F.logsigmoid(-margin)


def identity_preference(margin: Tensor, tau: float) -> Tensor:
    """Squared distance of the margin from 1 / (2 tau) (IPO, arXiv 2310.12036)."""
    return (margin - 1 / (2 * tau)) ** 2


def kto_loss(log_ratio: Tensor, desirable: Tensor, point: Tensor, beta: float, gain: float, loss: float) -> Tensor:
    """Loss of value against a reference point: weight * (1 - sigmoid(+-beta (log ratio - point))) (KTO, arXiv
    2402.01306)."""
    sign = torch.where(desirable, 1.0, -1.0).to(log_ratio.dtype)
    weight = torch.where(desirable, gain, loss).to(log_ratio.dtype)
    return weight * torch.sigmoid(-sign * beta * (log_ratio - point))


def odds_ratio(chosen_logp: Tensor, rejected_logp: Tensor) -> Tensor:
    """-log sigmoid of the log odds ratio of two mean log-probabilities (ORPO, arXiv 2403.07691)."""
    log_odds = (chosen_logp - rejected_logp) - (_log1mexp(chosen_logp) - _log1mexp(rejected_logp))
    return -F.logsigmoid(log_odds)


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp x) for x < 0, exact at both ends; a certainty counts as 1 - 1e-7."""
    x = x.clamp(max=-1e-7)
    near = x > -0.6931
    return torch.where(
        near, torch.log(-torch.expm1(torch.where(near, x, -1.0))), torch.log1p(-torch.exp(torch.where(near, -1.0, x)))
    )


def adaptive_kl_coef(coef: float, kl: float, target: float, step: float) -> float:
    """The next KL coefficient: a proportional controller with a clipped error (Ziegler et al. 2019, who clip it at a
    fifth: they take thousands of steps)."""
    if target <= 0:
        return coef
    error = max(-1.0, min(1.0, kl / target - 1.0))
    return coef * (1.0 + step * error)
